"""What a dataset holds and lacks, from the files that are there so far."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medkd.config import Config
from medkd.datasets.patches import patch_items
from medkd.datasets.split import ROLES, read_split
from medkd.datasets.stain_reference import tiles_in_turn
from medkd.datasets.tables import SlideRow
from medkd.datasets.transforms import LoadStoredTiled
from medkd.slides.imported_tiles import read_import_record, slide_records
from medkd.slides.store import INDEX_NAME, encode_tile, read_index

NOT_SAID = "not said"
"""Stands for a site, scanner, role or resolution that nobody gave."""

_NAMED = 5


@dataclass(frozen=True)
class Group:
    """A class, site, scanner, role or resolution, and what belongs to it.

    Attributes:
        name: of it, or :data:`NOT_SAID`.
        patients: who have a slide in it.
        slides: how many.
        tiles: how many; None before the slides are tiled.
        patients_of_class: the patients, in the order of ``data.classes``.
    """

    name: str
    patients: int
    slides: int
    tiles: int | None
    patients_of_class: tuple[int, ...]


@dataclass(frozen=True)
class Gap:
    """Something that is missing, of how many, and the first of them by name."""

    what: str
    count: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.names) else ""
        return f"{self.what}: {self.count:,} ({', '.join(self.names)}{more})"


@dataclass(frozen=True)
class SheetTile:
    """A tile or image to be looked at: its class, the name of its slide or its own, the JPEG."""

    label: str
    name: str
    jpeg: bytes


@dataclass(frozen=True)
class DatasetSummary:
    """A dataset in figures.

    Attributes:
        classes: ``data.classes``.
        total: everything.
        groups: ``class``, ``role``, ``site``, ``scanner`` and ``slide resolution`` to their groups;
            without ``role`` before the split.
        tiling: size and resolution of the tiles in words; empty before tiling.
        gaps: what is missing.
        to_do: stages that have not been run yet, in words.
        synthetic: how many slides were drawn, not scanned.
        sheet: some tiles of each class, of training patients where there is a split.
    """

    classes: tuple[str, ...]
    total: Group
    groups: dict[str, tuple[Group, ...]]
    tiling: str
    gaps: tuple[Gap, ...]
    to_do: tuple[str, ...]
    synthetic: int
    sheet: tuple[SheetTile, ...]


def summarise(
    config: Config, rows: Sequence[SlideRow], *, tiles_of_class: int = 8
) -> DatasetSummary:
    """Count the dataset, whether or not it has been tiled and split.

    Args:
        config: of the experiment.
        rows: of slides.csv.
        tiles_of_class: tiles of each class on the sheet.

    Raises:
        StageError: the tiles or the split that are there cannot be read.
    """
    slides = pd.DataFrame([vars(row) for row in rows])
    slides["file_is_there"] = [row.path.exists() for row in rows]
    slides["mpp"] = [f"{row.mpp:.4g} um/px, from slides.csv" if row.mpp else "" for row in rows]
    gaps, to_do = _gaps_of_table(slides, config), []
    index = _index(config)
    synthetic = 0
    slides["tiles"] = None
    if index is None:
        to_do.append("There are no tiles yet: run 'medkd tile'.")
    else:
        count = index["slide_id"].value_counts()
        slides["tiles"] = slides["slide_id"].map(count).fillna(0).astype(int)
        tiled = slides.loc[slides["tiles"] > 0, "slide_id"].tolist()
        records = slide_records(config.tiles_folder, tiled, config.tile)
        synthetic = sum(record["slide"]["synthetic"] for record in records.values())
        known = {
            slide_id: f"{slide['mpp']:.4g} um/px, from {slide['mpp_source']}"
            for slide_id, slide in ((name, record["slide"]) for name, record in records.items())
            if slide.get("mpp")
        }
        slides["mpp"] = slides["slide_id"].map(known).fillna(slides["mpp"])
        gaps += _gaps_of_tiles(slides, index, config.tiles_folder)
    split = (
        read_split(config.splits_file, config.split.fold) if config.splits_file.exists() else None
    )
    if split is None:
        to_do.append("The patients have no roles yet: run 'medkd split'.")
    else:
        role = dict(zip(split["patient_id"], split["role"], strict=True))
        slides["role"] = slides["patient_id"].map(role).fillna("")
        without = slides.loc[slides["role"] == "", "patient_id"]
        gaps += gap_of("patients without a role", without.unique())
    columns = {"class": "label", "role": "role", "site": "site", "scanner": "scanner"}
    columns["slide resolution"] = "mpp"
    return DatasetSummary(
        config.data.classes,
        _group("all", slides, config.data.classes),
        {
            name: _groups(slides, column, config.data.classes)
            for name, column in columns.items()
            if column in slides
        },
        "" if index is None else _tiling(config, index),
        tuple(gaps),
        tuple(to_do),
        synthetic,
        () if index is None else _sheet(config, slides, index, tiles_of_class),
    )


def _index(config: Config) -> pd.DataFrame | None:
    if not (config.tiles_folder / INDEX_NAME).exists():
        return None
    return read_index(config.tiles_folder)


def _group(name: str, slides: pd.DataFrame, classes: Sequence[str]) -> Group:
    patients = slides.drop_duplicates("patient_id")
    tiles = None if slides["tiles"].isna().any() else int(slides["tiles"].sum())
    of_class = tuple(int((patients["label"] == label).sum()) for label in classes)
    return Group(name, len(patients), len(slides), tiles, of_class)


def _groups(slides: pd.DataFrame, column: str, classes: Sequence[str]) -> tuple[Group, ...]:
    """In the order of classes and roles, others by name; what is not said comes last."""
    order = {name: place for place, name in enumerate((*classes, *ROLES))}
    values = sorted(slides[column].unique(), key=lambda v: (not v, order.get(v, len(order)), v))
    return tuple(
        _group(value or NOT_SAID, slides[slides[column] == value], classes) for value in values
    )


def gap_of(what: str, names: Sequence[str] | np.ndarray | pd.Series) -> list[Gap]:
    """These are missing; nothing where there are none."""
    found = sorted(str(name) for name in names)
    return [Gap(what, len(found), tuple(found[:_NAMED]))] if found else []


def _gaps_of_table(slides: pd.DataFrame, config: Config) -> list[Gap]:
    gaps = []
    for label in config.data.classes:
        if not (slides["label"] == label).any():
            gaps += gap_of("classes without a slide", [label])
    # Of imported tiles nobody needs the slides.
    if read_import_record(config.tiles_folder) is None:
        gaps += gap_of(
            "slides whose file is not there", slides["slide_id"][~slides["file_is_there"]]
        )
    for column in ("site", "scanner"):
        gaps += gap_of(f"slides without a {column}", slides.loc[slides[column] == "", "slide_id"])
    return gaps


def _gaps_of_tiles(slides: pd.DataFrame, index: pd.DataFrame, folder: Path) -> list[Gap]:
    reasons = _reasons(folder / "report.csv")
    without = slides.loc[slides["tiles"] == 0, "slide_id"]
    gaps = gap_of(
        "slides without tiles",
        [f"{name}: {reasons[name]}" if name in reasons else name for name in without],
    )
    strangers = set(index["slide_id"]) - set(slides["slide_id"])
    gaps += gap_of("tiled slides that are not in slides.csv", sorted(strangers))
    return gaps


def _reasons(report: Path) -> dict[str, str]:
    """Why slides failed, from the report of the tile stage; imported tiles have none."""
    if not report.exists():
        return {}
    rows = csv.DictReader(io.StringIO(report.read_text(encoding="utf-8")))
    return {row["slide_id"]: row["reason"].replace("_", " ") for row in rows if row["reason"]}


def _tiling(config: Config, index: pd.DataFrame) -> str:
    imported = read_import_record(config.tiles_folder)
    if imported is not None and imported.mpp is None:
        return f"{imported.size_px} px, resolution {NOT_SAID}"
    kinds = Counter(zip(index["size_px"], index["mpp"], strict=True))
    return "; ".join(f"{px} px at {mpp:g} um/px ({px * mpp:g} um)" for px, mpp in sorted(kinds))


def _sheet(
    config: Config, slides: pd.DataFrame, index: pd.DataFrame, count: int
) -> tuple[SheetTile, ...]:
    if "role" in slides:
        slides = slides[slides["role"] == "train"]
    label = dict(zip(slides["slide_id"], slides["label"], strict=True))
    tiles = index[index["slide_id"].isin(label)]
    tiles = tiles.assign(label=tiles["slide_id"].map(label))
    load, sheet = LoadStoredTiled("image"), []
    for name in config.data.classes:
        part = tiles_in_turn(tiles[tiles["label"] == name], "slide_id", count, seed=config.seed)
        items = patch_items(part, config.tiles_folder, config.data.classes, store=config.tile.store)
        for slide_id, item in zip(part["slide_id"], items, strict=True):
            pixels = load(item)["image"].transpose(1, 2, 0)
            sheet.append(SheetTile(name, slide_id, encode_tile(pixels, quality=85)))
    return tuple(sheet)
