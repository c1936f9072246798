"""Whole sites in parts, against the best of all divisions."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from medkd.datasets.whole_sites import divide_sites, division_cost


def random_sites(seed: int, sites: int) -> dict[str, dict[str, int]]:
    """Sizes as of real cohorts: few large sites, many small ones; MSI is the rare class."""
    random = np.random.default_rng(seed)
    sizes = np.ceil(random.pareto(1.2, sites) * 6 + 3).astype(int)
    positives = random.binomial(sizes, random.uniform(0.05, 0.3, sites)) + 1
    return {
        f"S{number:02d}": {"MSI": int(positive), "MSS": int(size)}
        for number, (size, positive) in enumerate(zip(sizes, positives, strict=True))
    }


def shares_of(counts: dict[str, dict[str, int]]) -> np.ndarray:
    patients = np.array([[of["MSI"], of["MSS"]] for _, of in sorted(counts.items())], float)
    return patients / patients.sum(axis=0)


def best_of_all(shares: np.ndarray, parts: int) -> float:
    """The lowest cost, by trying every division; written without the module's own sums."""
    best = np.inf
    for part_of in product(range(parts), repeat=len(shares)):
        chosen = np.array(part_of)
        loads = np.stack([shares[chosen == part].sum(axis=0) for part in range(parts)])
        if (loads > 0).all():
            best = min(best, float(((loads - 1 / parts) ** 2).sum()))
    return best


@pytest.mark.parametrize("case", range(6))
def test_no_division_is_better(case: int) -> None:
    counts = random_sites(case, sites=8)
    part_of = divide_sites(counts, 3, seed=case)
    assert sorted(part_of) == sorted(counts)
    found = division_cost(shares_of(counts), np.array([part_of[s] for s in sorted(counts)]), 3)
    assert found == pytest.approx(best_of_all(shares_of(counts), 3), abs=1e-9)


def test_equal_sites_are_shared_out_equally() -> None:
    counts = {f"S{n}": {"MSI": 2, "MSS": 10} for n in range(9)}
    part_of = divide_sites(counts, 3, seed=0)
    assert sorted(part_of.values()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_no_part_lacks_a_class_where_that_can_be() -> None:
    """The three sites with MSI must be torn apart, though MSS alone would put two together."""
    counts = {
        "big": {"MSI": 1, "MSS": 90},
        "small": {"MSI": 1, "MSS": 1},
        "tiny": {"MSI": 1, "MSS": 1},
        "other": {"MSS": 50},
    }
    part_of = divide_sites(counts, 3, seed=0)
    assert len({part_of[site] for site in ("big", "small", "tiny")}) == 3


def test_the_order_of_the_sites_plays_no_part() -> None:
    counts = random_sites(1, sites=20)
    assert divide_sites(dict(reversed(counts.items())), 5, 3) == divide_sites(counts, 5, 3)
