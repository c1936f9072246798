"""Tiles that someone else cut: checked, and written as the tables that training reads."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from medkd import __version__
from medkd.datasets.tables import REQUIRED_COLUMNS
from medkd.files import atomic_path, make_folder, output_errors, write_text
from medkd.importers.images import image_sizes
from medkd.importers.problems import LayoutError, Problem, write_csv, write_problems
from medkd.importers.tcga import tissue_source_site
from medkd.progress import progress
from medkd.slides.imported_tiles import (
    IMAGE_COLUMN,
    RECORD_NAME,
    ImportedTiles,
    write_import_record,
)
from medkd.slides.store import INDEX_COLUMNS, INDEX_NAME

PROBLEMS_NAME = "import_problems.csv"
CONFIG_NAME = "medkd.yaml"

_COPIES = "images"

# In the order in which they are told; none, where a set says nothing.
_ROLES = ("", "train", "validation", "test")


class FoundTile(NamedTuple):
    """One image of a tile set.

    Attributes:
        image: its path, relative to the root of the set.
        slide_id, patient_id, label: as in slides.csv.
        role: ``train`` or ``test`` where the set says so.
        x, y: top left corner, level-0 pixels, where the set says so.
        site: the hospital, where a table says so.
    """

    image: str
    slide_id: str
    patient_id: str
    label: str
    role: str = ""
    x: int = 0
    y: int = -1
    site: str = ""


@dataclass(frozen=True)
class TileSetOptions:
    """How a tile set is written.

    Attributes:
        kind: the importer, such as ``tcga-tiles``.
        mpp: micrometres per pixel of the tiles; None where nobody knows.
        positive: the class that a slide's probability speaks of.
        has_places: the tiles' x and y are level-0 pixels.
        copy: copy the images below the output; otherwise they stay where they are.
        decode: read every pixel of every image once.
        validation: share of the patients of a published training set that choose the epoch.
        seed: draws these.
    """

    kind: str
    mpp: float | None
    positive: str
    has_places: bool = False
    copy: bool = False
    decode: bool = False
    validation: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class TileSetSummary:
    """What was written.

    Attributes:
        counts: (role, label) to the number of patients, slides and tiles; the role is empty where
            the set says none.
        size_px: of the tiles.
        problems: what was left out.
        config: the configuration to go on with; ``config_kept`` where it was there already.
    """

    counts: Mapping[tuple[str, str], tuple[int, int, int]]
    size_px: int
    problems: tuple[Problem, ...]
    config: Path
    config_kept: bool


def write_tile_set(
    tiles: Iterable[FoundTile],
    problems: Sequence[Problem],
    root: Path,
    out: Path,
    options: TileSetOptions,
) -> TileSetSummary:
    """Check the images of a tile set, and write slides.csv, tiles/index.parquet and the rest.

    What cannot be used is left out and told of: images that cannot be read or have another size
    than most, patients with two labels or two roles.

    Args:
        tiles: all images.
        problems: what was left out before.
        root: folder of the set.
        out: folder to write to.
        options: how.

    Raises:
        LayoutError: nothing is left, the tiles are not square, or ``out`` holds other tiles.
        OutputError: no permission, or no space.
    """
    folder = out / "tiles"
    _check_output(out)
    table = pd.DataFrame(tiles, columns=list(FoundTile._fields))
    left_out = list(problems)
    table = _without_two(table, "patient_id", "label", "two_labels", left_out)
    table = _without_two(table, "patient_id", "role", "two_roles", left_out)
    table = _without_two(table, "slide_id", "patient_id", "two_patients", left_out)
    table, size_px = _with_size(table, root, options.decode, left_out)
    if table.empty:
        raise LayoutError(
            "no tile is left" + (f"; the first problem: {left_out[0]}" if left_out else ""),
            where=root,
            remedy="Name the folder as it was unpacked.",
        )
    table = table.sort_values(["slide_id", "y", "x", "image"], ignore_index=True)
    if not options.has_places:
        table["x"] = table.groupby("slide_id").cumcount()
    make_folder(folder)
    if options.copy:
        table["image"] = _copy(table, root, folder / _COPIES)
        root = folder / _COPIES
    _write_slides(table, root, out)
    table["role"] = _with_validation(table, options)
    published = bool((table["role"] != "").all())
    if published:
        _write_split(table, out / "splits.parquet")
    imported = ImportedTiles(
        options.kind, root, size_px, options.mpp, options.has_places, published
    )
    write_problems(folder / PROBLEMS_NAME, left_out)
    details = {"tiles": len(table), "left_out": len(left_out), "software": f"medkd {__version__}"}
    write_import_record(folder, imported, details)
    _write_index(table, imported, folder / INDEX_NAME)
    classes = sorted(set(table["label"]), key=lambda name: (name == options.positive, name))
    config = out / CONFIG_NAME
    kept = config.exists()
    if not kept:
        write_text(config, _config_text(imported, classes, options.positive))
    return TileSetSummary(_counts(table), size_px, tuple(left_out), config, kept)


def _check_output(out: Path) -> None:
    index = out / "tiles" / INDEX_NAME
    remedy = "Choose another folder with --out."
    if index.exists() and not (out / "tiles" / RECORD_NAME).exists():
        raise LayoutError("holds tiles that 'medkd tile' made", where=index.parent, remedy=remedy)
    runs = sorted(path.parent.name for path in out.glob("runs/*/checkpoints"))
    if runs:
        raise LayoutError(
            f"{', '.join(runs)} was trained on the tiles that are there", where=out, remedy=remedy
        )


def _without_two(
    table: pd.DataFrame, key: str, column: str, reason: str, problems: list[Problem]
) -> pd.DataFrame:
    """``table`` without the patients (or slides) that have two values in ``column``."""
    pairs = table[[key, column]].drop_duplicates()
    wrong = pairs[pairs[key].duplicated(keep=False)]
    for name, values in wrong.groupby(key)[column]:
        has = Counter(table.loc[table[key] == name, column])
        problems.append(
            Problem(
                reason,
                f"{key.removesuffix('_id')} {name}",
                "has tiles of "
                + " and of ".join(f"{value} ({has[value]:,})" for value in sorted(values)),
                "All of its tiles are left out; remove those that are wrong, and import again.",
            )
        )
    return table[~table[key].isin(wrong[key])]


def _with_size(
    table: pd.DataFrame, root: Path, decode: bool, problems: list[Problem]
) -> tuple[pd.DataFrame, int]:
    """``table`` with the images that can be read and have the size of most; and that size."""
    sizes = list(image_sizes(root, table["image"].tolist(), decode=decode))
    common = Counter(size for size in sizes if not isinstance(size, Problem)).most_common(1)
    width_px, height_px = common[0][0] if common else (0, 0)
    if width_px != height_px:
        raise LayoutError(
            f"most tiles are {width_px} x {height_px} px, not square",
            where=root,
            remedy="Cut them to squares first.",
        )
    usual = (width_px, height_px)
    for image, size in zip(table["image"], sizes, strict=True):
        if isinstance(size, Problem):
            problems.append(size)
        elif size != usual:
            problems.append(
                Problem(
                    "other_size",
                    str(root / image),
                    f"is {size[0]} x {size[1]} px, and most tiles are {width_px} x {height_px} px",
                    "Resize it, if it belongs to the set.",
                )
            )
    return table[[size == usual for size in sizes]], width_px


def _copy(table: pd.DataFrame, root: Path, folder: Path) -> list[str]:
    """Copy the images to a folder for each slide; what was copied before is left."""
    copies = []
    with progress("copying", len(table)) as advance, output_errors(folder):
        for slide_id, image in zip(table["slide_id"], table["image"], strict=True):
            # The whole path, as two folders may hold images of one name.
            name = image.replace("/", "__")
            source, copy = root / image, folder / slide_id / name
            if not _is_copied(source, copy):
                copy.parent.mkdir(parents=True, exist_ok=True)
                temporary = copy.with_name(f".{name}.{os.getpid()}.medkd-tmp")
                # Not flushed one by one, which would take longer than the copying: after a power
                # cut a file may be short, and is then copied again.
                try:
                    shutil.copyfile(source, temporary)
                    temporary.replace(copy)
                except BaseException:
                    temporary.unlink(missing_ok=True)
                    raise
            copies.append(f"{slide_id}/{name}")
            advance()
    return copies


def _is_copied(source: Path, copy: Path) -> bool:
    return copy.is_file() and copy.stat().st_size == source.stat().st_size


def _with_validation(table: pd.DataFrame, options: TileSetOptions) -> pd.Series:
    """The published roles, with some patients of the training set drawn for validation."""
    patients = table.drop_duplicates("patient_id").sort_values("patient_id")
    training = patients[patients["role"] == "train"]
    drawn: list[str] = []
    for number, (_, of_class) in enumerate(training.groupby("label")):
        wanted = max(1, round(options.validation * len(of_class)))
        order = np.random.default_rng((options.seed, number)).permutation(len(of_class))
        drawn += of_class["patient_id"].iloc[order[:wanted]].tolist()
    return table["role"].mask(table["patient_id"].isin(drawn), "validation")


def _write_slides(table: pd.DataFrame, root: Path, out: Path) -> None:
    first = table.drop_duplicates("slide_id")
    alone = ~first["slide_id"].isin(table.loc[table["slide_id"].duplicated(), "slide_id"])
    rows = []
    for tile, of_one_image in zip(first.itertuples(), alone, strict=True):
        image = root / str(tile.image)
        path = image if of_one_image else image.parent
        shown = Path(os.path.relpath(path, out)) if root.is_relative_to(out) else path.absolute()
        site = tile.site or tissue_source_site(str(tile.patient_id))
        rows.append((tile.slide_id, shown.as_posix(), tile.patient_id, tile.label, site))
    width = 5 if any(row[4] for row in rows) else 4
    header = (*REQUIRED_COLUMNS, "site")[:width]
    write_csv(out / "slides.csv", header, [row[:width] for row in rows])


def _write_split(table: pd.DataFrame, path: Path) -> None:
    split = table[["patient_id", "label", "role"]].drop_duplicates()
    split = split.sort_values("patient_id", ignore_index=True)
    with atomic_path(path) as temporary:
        split.to_parquet(temporary, index=False)


def _write_index(table: pd.DataFrame, imported: ImportedTiles, path: Path) -> None:
    index = table[["slide_id", "patient_id", "x", "y"]].assign(
        mpp=np.nan if imported.mpp is None else imported.mpp,
        size_px=imported.size_px,
        # Nobody measured these.
        tissue_fraction=np.nan,
        focus=np.nan,
    )
    index = index[list(INDEX_COLUMNS)].astype(INDEX_COLUMNS)
    index[IMAGE_COLUMN] = table["image"].astype("string")
    with atomic_path(path) as temporary:
        index.to_parquet(temporary, index=False)


def _counts(table: pd.DataFrame) -> dict[tuple[str, str], tuple[int, int, int]]:
    groups = table.groupby(["role", "label"])
    parts = {(str(role), str(label)): part for (role, label), part in groups}
    return {
        key: (parts[key]["patient_id"].nunique(), parts[key]["slide_id"].nunique(), len(parts[key]))
        for key in sorted(parts, key=lambda key: (_ROLES.index(key[0]), key[1]))
    }


def _config_text(imported: ImportedTiles, classes: Sequence[str], positive: str) -> str:
    import yaml

    tile: dict[str, float] = {"size_px": imported.size_px}
    if imported.mpp is not None:
        tile["mpp"] = imported.mpp
    content = {
        "output": ".",
        "data": {"slides": "slides.csv", "classes": list(classes), "positive": positive},
        "tile": tile,
    }
    unknown = (
        ""
        if imported.mpp is not None
        else "# The resolution of the tiles is not known: set tile.mpp before a model trained on\n"
        "# them is applied to slides.\n"
    )
    return (
        f"# Written by 'medkd import {imported.kind}'. All keys: medkd config init all.yaml\n"
        + unknown
        + yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
    )
