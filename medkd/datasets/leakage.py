"""The leakage audit of every training: what the roles share that they must not share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medkd.config import Config
from medkd.config.data import LeakageKind
from medkd.datasets.confounding import Confounding, confounding
from medkd.datasets.near_duplicates import confirmed_duplicates
from medkd.datasets.patches import patch_items
from medkd.datasets.shared_origins import Finding, Weights, origin_findings, read_weights
from medkd.datasets.split import ROLES, read_split
from medkd.datasets.tables import SlideRow
from medkd.datasets.tile_hashes import GreyTiles, TilePlace, tile_hashes
from medkd.errors import StageError
from medkd.files import write_json
from medkd.progress import warn
from medkd.slides.imported_tiles import read_import_record
from medkd.slides.store import read_tile_records

REPORT_NAME = "leakage.json"

# Blank tiles of real slides have up to 1.3, tissue 4 and more: levels of the 64 low frequencies.
LEAST_CONTRAST = 2.0

_EXAMPLES = 20
_STRONG = 0.3
_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class LeakageReport:
    """What an audit came to.

    Attributes:
        findings: each a reason not to train.
        confounding: of the class with site and scanner, where the table of slides has them.
        tiles: how many were compared.
        blank_tiles: how many were not, as blank tiles are all alike.
        weights: what is known of the weights that the run starts from.
    """

    findings: tuple[Finding, ...]
    confounding: dict[str, Confounding | None]
    tiles: int
    blank_tiles: int
    weights: tuple[Weights, ...]


def check_leakage(
    config: Config, rows: Sequence[SlideRow], tiles: pd.DataFrame, weights: Sequence[Path]
) -> LeakageReport:
    """Audit a run before it trains, and write ``runs/<name>/leakage.json``.

    Args:
        config: the experiment; ``data.allow_leakage`` names the kinds that do not stop it.
        rows: of slides.csv.
        tiles: rows of the tile index with the columns label and role.
        weights: files that networks start from.

    Raises:
        StageError: the roles share something that was not allowed, or tiles cannot be read.
        SlideError: a slide whose tiles were not stored cannot be opened.
    """
    began = time.monotonic()
    split = read_split(config.splits_file, config.split.fold)
    report = audit(config, rows, split, tiles, weights)
    allowed = config.data.allow_leakage
    content = _content(config, split, report)
    path = config.run_folder / REPORT_NAME
    write_json(path, {**content, "seconds": round(time.monotonic() - began, 2)})
    for name, found in report.confounding.items():
        if found is not None and found.cramers_v >= _STRONG and found.p_value < _SIGNIFICANT:
            warn(
                f"{name} and class go together (Cramer's V {found.cramers_v:.2f}, p "
                f"{found.p_value:.2g}): a network can learn the {name} instead. docs/splits.md"
            )
    for of_weights in report.weights:
        if not of_weights.known:
            warn(f"nobody knows which patients trained {of_weights.file}.")
    for finding in report.findings:
        if finding.kind in allowed:
            warn(f"allowed by data.allow_leakage: {finding.what}.")
    refused = [finding for finding in report.findings if finding.kind not in allowed]
    if refused:
        kinds = list(dict.fromkeys(finding.kind for finding in refused))
        raise StageError(
            "; ".join(finding.what for finding in refused),
            where=path,
            remedy="Mend the table of slides or the split; to train on it on purpose, set "
            f"data.allow_leakage=[{', '.join([*allowed, *kinds])}].",
        )
    return report


def audit(
    config: Config,
    rows: Sequence[SlideRow],
    split: pd.DataFrame,
    tiles: pd.DataFrame,
    weights: Sequence[Path] = (),
) -> LeakageReport:
    """Look for everything that one role has from another. Writes nothing but the tiles' hashes.

    Args:
        config: the experiment.
        rows: of slides.csv.
        split: of the fold: patient_id, role.
        tiles: as of :func:`check_leakage`.
        weights: files that networks start from.

    Raises:
        StageError: a tile cannot be read.
        SlideError: a slide whose tiles were not stored cannot be opened.
    """
    known = tuple(read_weights(path) for path in weights)
    findings = origin_findings(split, rows, _fingerprints(config, tiles), known)
    tiles = tiles.reset_index(drop=True)
    items = patch_items(tiles, config.tiles_folder, config.data.classes, store=config.tile.store)
    places: list[TilePlace] = items.places()
    hashes = tile_hashes(places, config.tiles_folder)
    shown = hashes["contrast"].to_numpy() >= LEAST_CONTRAST
    findings += _tile_findings(tiles, places, hashes, shown)
    return LeakageReport(
        tuple(findings),
        {name: confounding(rows, split, name) for name in ("site", "scanner")},
        int(shown.sum()),
        int((~shown).sum()),
        known,
    )


def _fingerprints(config: Config, tiles: pd.DataFrame) -> dict[str, str]:
    """Slide to fingerprint of its file; of imported tiles there are none."""
    if read_import_record(config.tiles_folder) is not None:
        return {}
    records = read_tile_records(config.tiles_folder, sorted(tiles["slide_id"].unique()))
    return {slide: record["slide"]["fingerprint"] for slide, record in records.items()}


def _tile_findings(
    tiles: pd.DataFrame, places: Sequence[TilePlace], hashes: pd.DataFrame, shown: np.ndarray
) -> list[Finding]:
    roles = tiles["role"].to_numpy()
    digests = hashes["digest"].to_numpy()
    of_role = {role: np.flatnonzero((roles == role) & shown) for role in ROLES}
    reader = GreyTiles()

    def grey(row: int) -> np.ndarray:
        return reader.read(places[row])[0]

    findings = []
    try:
        for one, other in combinations(ROLES, 2):
            same = _same_bytes(digests, of_role[one], of_role[other])
            findings += _finding("duplicate_tiles", one, other, same, tiles)
            rest = np.setdiff1d(of_role[other], [row for _, row in same])
            near = confirmed_duplicates(hashes["hash"].to_numpy(), of_role[one], rest, grey)
            findings += _finding(
                "near_duplicate_tiles", one, other, near.pairs, tiles, stopped=near.stopped
            )
            if near.not_compared:
                warn(
                    f"{near.not_compared} {other} tiles resemble too many {one} tiles to compare "
                    "them with each."
                )
    finally:
        reader.close()
    return findings


def _same_bytes(
    digests: np.ndarray, one: np.ndarray, other: np.ndarray
) -> tuple[tuple[int, int], ...]:
    """Row numbers (of one, of other) of tiles with equal bytes; each of ``other`` once."""
    first: dict[int, int] = {}
    for row in one[np.isin(digests[one], digests[other])].tolist():
        first.setdefault(int(digests[row]), row)
    again = other[np.isin(digests[other], digests[one])].tolist()
    return tuple((first[int(digests[row])], row) for row in again)


def _finding(
    kind: LeakageKind,
    one: str,
    other: str,
    pairs: Sequence[tuple[int, int]],
    tiles: pd.DataFrame,
    *,
    stopped: bool = False,
) -> list[Finding]:
    if not pairs:
        return []
    slide, x, y = tiles["slide_id"], tiles["x"], tiles["y"]

    def place(row: int) -> str:
        return f"{slide.iloc[row]} ({x.iloc[row]}, {y.iloc[row]})"

    alike = "the same tile" if kind == "duplicate_tiles" else "nearly the same tile"
    count = f"{len(pairs)} or more" if stopped else str(len(pairs))
    return [
        Finding(
            kind,
            f"{one} and {other}: {alike} {count} time{'s' * (len(pairs) != 1)}, such as "
            f"{place(pairs[0][0])} and {place(pairs[0][1])}",
            len(pairs),
            tuple((place(a), place(b)) for a, b in pairs[:_EXAMPLES]),
        )
    ]


def _content(config: Config, split: pd.DataFrame, report: LeakageReport) -> dict[str, Any]:
    own = {role: set(split.loc[split["role"] == role, "patient_id"]) for role in ROLES}
    seen = {
        role: own[role].union(*(of_weights.seen[role] for of_weights in report.weights))
        for role in ("train", "validation")
    }
    return {
        "schema_version": 1,
        "allowed": list(config.data.allow_leakage),
        "findings": [
            {**asdict(finding), "allowed": finding.kind in config.data.allow_leakage}
            for finding in report.findings
        ],
        "confounding": {
            name: None if found is None else asdict(found)
            for name, found in report.confounding.items()
        },
        "tiles": report.tiles,
        "blank_tiles": report.blank_tiles,
        "fold": config.split.fold,
        "roles": {role: sorted(own[role]) for role in ROLES},
        # What the networks of this run know, by themselves or from what they started from.
        "seen": {role: sorted(patients) for role, patients in seen.items()},
        "weights": [
            {"file": str(of_weights.file), "known": of_weights.known}
            for of_weights in report.weights
        ],
    }
