"""What the networks cost: parameters, multiply-adds, and the time they take on this machine."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from medkd.errors import ConfigError
from medkd.networks.staged import Network
from medkd.networks.zoo import (
    FAMILIES,
    NETWORK_NAMES,
    build_network,
    count_parameters,
    family_of,
)
from medkd.progress import progress

BATCHES = (1, 32)
_RUNS = 5
_PATIENCE_S = 10.0


@dataclass(frozen=True)
class NetworkCost:
    """A network's row.

    Attributes:
        name: of the network.
        family: heading it stands under.
        parameters: trained ones, with ``classes`` classes.
        classes: number of logits.
        input_px: side of the images that the other figures are for.
        multiply_adds: of convolutions and matrix products, one image.
        stages: 0 if it cannot be taken apart.
        ms_per_image: median milliseconds by batch size; empty if they were not measured.
    """

    name: str
    family: str
    parameters: int
    classes: int
    input_px: int
    multiply_adds: int
    stages: int
    ms_per_image: dict[int, float]


def network_costs(
    names: Sequence[str] = (), *, input_px: int | None = None, device: str | None = None
) -> list[NetworkCost]:
    """The costs of several networks, all that have a name of their own unless told otherwise.

    Args and errors as of :func:`network_cost`; progress is shown while times are measured.
    """
    chosen = tuple(names) or NETWORK_NAMES
    if device is None:
        return [network_cost(name, input_px=input_px) for name in chosen]
    device_words(device)
    costs = []
    with progress("measuring", len(chosen)) as advance:
        for name in chosen:
            costs.append(network_cost(name, input_px=input_px, device=device))
            advance(note=name)
    return costs


def device_words(device: str) -> str:
    """What a device is, in words.

    Raises:
        ConfigError: torch cannot use it here.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"torch cannot use the device '{device}' ({str(error).splitlines()[0][:120]})",
            where="medkd networks",
            remedy="Use cpu, or cuda where there is a GPU.",
        ) from None
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    threads = torch.get_num_threads()
    words = f"{threads} CPU thread{'s' if threads > 1 else ''}"
    return f"{words}, {platform.machine()}, torch {torch.__version__}"


def network_cost(
    name: str, *, classes: int = 2, input_px: int | None = None, device: str | None = None
) -> NetworkCost:
    """Count, and measure if asked to, what a network costs.

    Args:
        name: as in :func:`medkd.networks.zoo.build_network`.
        classes: number of logits.
        input_px: side of the images; None: what the network's authors tell of.
        device: where to measure the time, such as ``cpu``; None: do not measure.

    Raises:
        ConfigError: no such network, or not for images of that size.
    """
    family = family_of(name)
    side = input_px or family.input_px
    # A network of the zoo is counted without memory for its weights; of others it is not known
    # whether they can be built so.
    with torch.device("meta" if family.names else "cpu"):
        network = build_network(name, classes=classes, where="medkd networks").eval()
        images = torch.zeros(1, 3, side, side)
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(images)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"'{name}' cannot take images of {side} px ({str(error).splitlines()[0][:120]})",
            where="medkd networks",
            remedy="Choose another --input-px.",
        ) from error
    if device is not None and family.names:
        network = build_network(name, classes=classes).eval()
    return NetworkCost(
        name=name,
        family=family.title,
        parameters=count_parameters(network),
        classes=classes,
        input_px=side,
        # A multiplication and an addition are two operations.
        multiply_adds=counter.get_total_flops() // 2,
        stages=_stages(network),
        ms_per_image={} if device is None else _latency(network.to(device), side, device),
    )


def _stages(network: Network) -> int:
    stages = getattr(network, "stages", None)
    return len(stages) if isinstance(stages, nn.ModuleList) else 0


@torch.inference_mode()
def _latency(network: nn.Module, side: int, device: str) -> dict[int, float]:
    def run(images: torch.Tensor) -> None:
        network(images)
        if images.is_cuda:
            torch.cuda.synchronize()

    found = {}
    for batch in BATCHES:
        images = torch.rand(batch, 3, side, side, device=device)
        found[batch] = 1000 * median_seconds(partial(run, images)) / batch
    return found


def median_seconds(run: Callable[[], None]) -> float:
    """Median time of five runs after a first that does not count; of three where they are slow."""
    run()
    seconds: list[float] = []
    while len(seconds) < 3 or (len(seconds) < _RUNS and sum(seconds) < _PATIENCE_S):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return median(seconds)


def _counted(operations: int) -> str:
    return f"{operations / 1e9:.2f} G" if operations >= 1e9 else f"{operations / 1e6:.0f} M"


def cost_table(costs: Sequence[NetworkCost]) -> Table:
    """The rows under their families, at most 100 columns wide."""
    table = Table(title="Networks", title_justify="left", title_style="bold")
    table.add_column("name", overflow="fold")
    for header in ("parameters", "multiply-\nadds", "at px", "stages"):
        table.add_column(header, justify="right", no_wrap=True)
    measured = any(cost.ms_per_image for cost in costs)
    for batch in BATCHES if measured else ():
        table.add_column(f"ms/image,\nbatch {batch}", justify="right", no_wrap=True)
    titles = [family.title for family in FAMILIES]
    order = [*titles, *sorted({cost.family for cost in costs} - set(titles))]
    for title in order:
        rows = [cost for cost in costs if cost.family == title]
        if rows:
            table.add_section()
            table.add_row(f"[bold cyan]{title}[/]")
        for cost in rows:
            times = [f"{value:.1f}" for value in cost.ms_per_image.values()]
            table.add_row(
                f"  {cost.name}",
                f"{cost.parameters / 1e6:.2f} M",
                _counted(cost.multiply_adds),
                str(cost.input_px),
                str(cost.stages) if cost.stages else "whole",
                *times,
            )
    return table
