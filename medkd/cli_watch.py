"""``medkd watch``: a folder that scanners write to, called slide by slide."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medkd.cli_options import MapOption, MppOption


def watch(
    incoming: Annotated[
        Path, typer.Argument(help="The folder that scanners write to.", show_default=False)
    ],
    *,
    model: Annotated[Path, typer.Option("--model", help="A model package (a folder).")],
    out: Annotated[Path, typer.Option("--out", help="Folder for results, log and queue page.")],
    mpp: MppOption = None,
    maps: MapOption = None,
    settle_s: Annotated[
        float,
        typer.Option("--settle", help="Seconds for which nobody wrote to a slide.", min=0),
    ] = 60,
    poll_s: Annotated[
        float, typer.Option("--poll", help="Seconds between two looks at the folder.", min=0.1)
    ] = 10,
    time_limit_s: Annotated[
        float,
        typer.Option("--time-limit", help="Seconds after which a slide is given up.", min=1),
    ] = 3600,
    memory_gb: Annotated[
        float, typer.Option("--memory-gb", help="Memory that calling a slide may take.", min=1)
    ] = 8,
) -> None:
    """Call each slide that arrives in a folder, once. Ends with Ctrl-C or SIGTERM.

    Nothing in the folder is moved or written. What was interrupted goes on at the next start.
    """
    from medkd.inference.watch import WatchOptions
    from medkd.inference.watch import watch as watch_folder

    options = WatchOptions(
        incoming=incoming,
        model=model,
        out=out,
        mpp=mpp,
        maps=tuple(maps or ()),
        settle_s=settle_s,
        poll_s=poll_s,
        time_limit_s=time_limit_s,
        memory_gb=memory_gb,
    )
    print(
        f"Watching {incoming}. Queue: {out / 'queue.html'}, log: {out / 'watch.jsonl'}", flush=True
    )
    watch_folder(options)
    print("Stopped. A slide that was being called is called first at the next start.")
