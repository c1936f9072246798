"""What 'medkd networks' tells."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from medkd.cli import app
from medkd.errors import ConfigError
from medkd.networks.table import (
    NetworkCost,
    cost_table,
    device_words,
    median_seconds,
    network_cost,
    network_costs,
)


@pytest.mark.parametrize(
    ("name", "giga"),
    [
        # As published, with 1,000 classes at 224 pixels: arXiv 1512.03385 (a pooled layer counts
        # there, not here), 1608.06993 and 2010.11929; CIFAR's in 1611.05431 and counted.
        ("resnet18", 1.8),
        ("resnet50", 4.1),
        ("densenet121", 2.8),
        ("efficientnet-b0", 0.39),
        ("vit-base", 17.5),
        ("cifar-resnet20", 0.041),
        ("wrn-28-10", 5.2),
    ],
)
def test_multiply_adds_as_published(name: str, giga: float) -> None:
    cost = network_cost(name, classes=1000 if "cifar" not in name else 10)
    assert cost.multiply_adds / 1e9 == pytest.approx(giga, rel=0.03)
    assert cost.ms_per_image == {}


def test_multiply_adds_grow_with_the_image() -> None:
    small, large = (network_cost("resnet10", input_px=px) for px in (64, 128))
    # All but the classifier, 512 x 2.
    assert large.multiply_adds - 1024 == 4 * (small.multiply_adds - 1024)
    assert (small.input_px, small.stages) == (64, 4)


def test_every_network_stands_in_a_table_of_100_columns() -> None:
    costs = [
        NetworkCost("cifar-resnet110-bottleneck", "A", 1, 2, 224, 10**12, 4, {1: 1e4, 32: 1e4}),
        NetworkCost("my_package.my_module.deeper:MyNetwork", "B", 10**9, 2, 224, 10**9, 0, {}),
    ]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(cost_table(costs))
    text = console.export_text()
    for shown in ("cifar-resnet110-bottleneck", "1000.00 G", "10000.0", "whole", "1000.00 M"):
        assert shown in text
    assert "…" not in text


def test_the_command_prints_json() -> None:
    result = CliRunner().invoke(app, ["networks", "cifar-resnet20", "wrn-10-1", "--json"])
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert [row["name"] for row in rows] == ["cifar-resnet20", "wrn-10-1"]
    assert [row["stages"] for row in rows] == [3, 3]
    assert rows[0]["parameters"] == 269_722 - 65 * 8  # 2 classes, not 10


def test_the_command_measures() -> None:
    result = CliRunner().invoke(app, ["networks", "cifar-resnet20", "--latency"])
    assert result.exit_code == 0
    assert "batch 32" in result.stdout
    assert "CPU thread" in result.stdout


def test_an_own_network_is_listed_too() -> None:
    (cost,) = network_costs(["tests.networks.own_networks:Whole"], input_px=16)
    assert (cost.stages, cost.multiply_adds) == (0, 3 * 16 * 16 * 2)


def test_the_median_leaves_the_first_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 1.0, 4.0, 4.0, 6.0, 6.0, 16.0, 16.0, 20.0])
    monkeypatch.setattr("medkd.networks.table.time.perf_counter", lambda: next(clock))
    runs: list[int] = []
    assert median_seconds(lambda: runs.append(1)) == 2.5  # of 1, 3, 2 and 10 s; then patience ends
    assert len(runs) == 5


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^unknown network 'resnet1'. Did you mean"):
        network_costs(["resnet1"])
    with pytest.raises(ConfigError, match=r"'tests.*:fixed_size' on images"):
        network_costs(["tests.networks.own_networks:fixed_size"])
    with pytest.raises(ConfigError, match=r"'vgg16-bn-cifar' cannot take images of 8 px"):
        network_costs(["vgg16-bn-cifar"], input_px=8)
    with pytest.raises(ConfigError, match=r"torch cannot use the device 'cuda:7'.*Use cpu"):
        device_words("cuda:7")
    with pytest.raises(ConfigError, match=r"torch cannot use the device 'nonsense'"):
        network_costs(["resnet10"], device="nonsense")
