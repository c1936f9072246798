"""Sites divided into parts, none of them torn, each class spread as evenly as they allow."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# A part without a class cannot be tested: worse than any imbalance, which stays below 1 a class.
_CLASS_IS_MISSING = 100.0
_RESTARTS = 20


def divide_sites(counts: Mapping[str, Mapping[str, int]], parts: int, seed: int) -> dict[str, int]:
    """Give every site a part, so that each part has nearly the same share of each class.

    Minimised is the sum over parts and classes of (share of the class in this part - 1/parts)^2,
    the aim of the quadratic program of Howard et al. 2021 (doi:10.1038/s41467-021-24698-1). The
    search moves one site or swaps two as long as that helps, from 20 beginnings; tests compare it
    with the best of all divisions.

    Args:
        counts: site to class to number of patients.
        parts: how many; no more than there are sites.
        seed: the same seed gives the same parts, whatever the order of ``counts``.

    Returns:
        Site to part, from 0. A part may lack a class where no other division was found.
    """
    sites = sorted(counts)
    classes = sorted({label for of_site in counts.values() for label in of_site})
    patients = np.array([[counts[site].get(name, 0) for name in classes] for site in sites], float)
    shares = patients / patients.sum(axis=0)
    random = np.random.default_rng((seed, parts))
    found = [_search(shares, parts, random) for _ in range(_RESTARTS)]
    best = min(found, key=lambda part_of: round(division_cost(shares, part_of, parts), 12))
    return dict(zip(sites, best.tolist(), strict=True))


def division_cost(shares: np.ndarray, part_of: np.ndarray, parts: int) -> float:
    """What :func:`divide_sites` minimises.

    Args:
        shares: sites x classes, the share of each class that each site has.
        part_of: part of each site.
        parts: how many.
    """
    return float(_cost(_loads(shares, part_of, parts), parts).sum())


def _loads(shares: np.ndarray, part_of: np.ndarray, parts: int) -> np.ndarray:
    loads = np.zeros((parts, shares.shape[1]))
    np.add.at(loads, part_of, shares)
    return loads


def _cost(loads: np.ndarray, parts: int) -> np.ndarray:
    """Cost of parts with these ``loads`` (... x classes): ..."""
    missing = (loads < 1e-9).sum(axis=-1)
    return ((loads - 1 / parts) ** 2).sum(axis=-1) + _CLASS_IS_MISSING * missing


def _search(shares: np.ndarray, parts: int, random: np.random.Generator) -> np.ndarray:
    part_of = _greedy(shares, parts, random)
    while True:
        loads = _loads(shares, part_of, parts)
        costs = _cost(loads, parts)
        own = loads[part_of]
        # Gains of moving each site to each part: sites x parts.
        left = _cost(own - shares, parts) - costs[part_of]
        moves = left[:, None] + _cost(loads[None] + shares[:, None], parts) - costs
        moves[np.arange(len(part_of)), part_of] = 0
        # Gains of swapping each two sites: sites x sites.
        change = shares[None] - shares[:, None]
        here = _cost(own[:, None] + change, parts) - costs[part_of][:, None]
        swaps = here + here.T
        swaps[part_of[:, None] == part_of] = 0
        if min(moves.min(), swaps.min()) > -1e-12:
            return part_of
        if moves.min() <= swaps.min():
            site, to = np.unravel_index(moves.argmin(), moves.shape)
            part_of[site] = to
        else:
            one, other = np.unravel_index(swaps.argmin(), swaps.shape)
            part_of[[one, other]] = part_of[[other, one]]


def _greedy(shares: np.ndarray, parts: int, random: np.random.Generator) -> np.ndarray:
    """Large sites first, each to the part that it serves best; the order a little at random."""
    sizes = shares.sum(axis=1) * random.uniform(0.5, 1.5, len(shares))
    part_of = np.zeros(len(shares), np.int64)
    loads = np.zeros((parts, shares.shape[1]))
    for site in np.argsort(-sizes, kind="stable"):
        gains = _cost(loads + shares[site], parts) - _cost(loads, parts)
        part = int(random.choice(np.flatnonzero(gains <= gains.min() + 1e-12)))
        part_of[site] = part
        loads[part] += shares[site]
    return part_of
