"""Commands that show the methods and the networks that come along."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

methods_app = typer.Typer(no_args_is_help=True, help="The distillation methods that come along.")


@methods_app.command("list")
def methods_list() -> None:
    """List the methods that come along, and where they are from."""
    from medkd.distill.describe import console, methods_table
    from medkd.distill.method import load_method, method_names

    console().print(methods_table(load_method(name) for name in method_names()))
    print("One of them in full: medkd methods show NAME")


@methods_app.command("show")
def methods_show(
    name: Annotated[str, typer.Argument(help="A method's name, or a YAML file.")],
    students: Annotated[int, typer.Option("--students", help="How many students.", min=1)] = 2,
    out: Annotated[
        Path | None, typer.Option("--out", help="Draw it, too: NAME.svg and NAME.png in FOLDER.")
    ] = None,
) -> None:
    """Print a method's file and every node and link that it makes; draw it."""
    from medkd.distill.describe import console, links_table, nodes_table, what_ships
    from medkd.distill.graph import expand
    from medkd.distill.method import load_method

    method = load_method(name)
    graph = expand(method, students)
    print(method.text)
    console().print(nodes_table(graph, students))
    if graph.links:
        console().print(links_table(graph, students))
    print(what_ships(graph))
    if out is None:
        print(f"To draw it: medkd methods show {name} --out FOLDER")
    else:
        from medkd.distill.drawing import write_drawing

        svg, png = write_drawing(method, out)
        print(f"Drawings: {svg} and {png}")


def networks(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Only these; also wrn-D-K, timm:NAME or package.module:NAME.", show_default=False
        ),
    ] = None,
    input_px: Annotated[
        int | None,
        typer.Option(
            "--input-px", help="Side of the images; 224, and 32 for CIFAR's, unless told.", min=16
        ),
    ] = None,
    latency: Annotated[
        bool, typer.Option("--latency", help="Measure milliseconds per image too (takes minutes).")
    ] = False,
    device: Annotated[
        str, typer.Option("--device", help="Where to measure, such as cpu or cuda.")
    ] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
) -> None:
    """List the networks that a configuration can name, and what they cost."""
    import json
    from dataclasses import asdict

    from rich.console import Console

    from medkd.networks.table import cost_table, device_words, network_costs

    costs = network_costs(names or (), input_px=input_px, device=device if latency else None)
    if as_json:
        print(json.dumps([asdict(cost) for cost in costs], indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    console.print(cost_table(costs))
    console.print(
        f"Parameters with {costs[0].classes} classes; multiply-adds of one image. Not listed: "
        "wrn-D-K, timm:NAME, package.module:NAME; see docs/networks.md."
        + (f" Times: medians on {device_words(device)}." if latency else "")
    )
