"""What a dataset of images with boxes holds and lacks, and which boxes are hard to learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medkd.config import Config, DetectionConfig
from medkd.datasets.box_drawing import draw_boxes
from medkd.datasets.box_members import members
from medkd.datasets.box_transforms import LoadBoxedImaged, ResizeBoxedImaged, resized_px
from medkd.datasets.boxes import BoxItems, box_items
from medkd.datasets.split import ROLES, read_split
from medkd.datasets.stain_reference import tiles_in_turn
from medkd.datasets.summary import Gap, SheetTile, gap_of
from medkd.importers.box_table import read_boxes
from medkd.slides.store import encode_tile

NO_ROLE = "no role yet"
NO_BOX = "no box"

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Of the sizes of boxes; 0 and 1 are the least and the largest."""

# A box so many times as long as the largest anchor overlaps it by a quarter at most, a square one
# by a sixteenth.
_FAR_LARGER = 4
_SHEET_PX = 224


@dataclass(frozen=True)
class RoleCount:
    """What a role has; all images together are such a row, too.

    Attributes:
        name: of the role, :data:`NO_ROLE`, or ``all``.
        images: how many.
        without_boxes: of these, how many show nothing.
        boxes_of_class: how many, in the order of ``detection.classes``.
        most_boxes: of one image.
        patients, sequences: how many are named; None: none is in the whole table.
    """

    name: str
    images: int
    without_boxes: int
    boxes_of_class: tuple[int, ...]
    most_boxes: int
    patients: int | None
    sequences: int | None


@dataclass(frozen=True)
class BoxSizes:
    """How large the boxes of a class are in the square that images are resized to.

    Attributes:
        name: of the class, or ``all``.
        boxes: how many.
        longer_px: the :data:`QUANTILES` of their longer side, pixels of the square; empty where
            there is no box.
        narrow: how many have a side of less than the finest stride.
        far_larger: how many are more than four times as long as the largest anchor.
    """

    name: str
    boxes: int
    longer_px: tuple[float, ...]
    narrow: int
    far_larger: int


@dataclass(frozen=True)
class BoxedSummary:
    """A dataset of images with boxes in figures.

    Attributes:
        classes: ``detection.classes``.
        total: everything.
        roles: those that some image has, in the order train, validation, test, :data:`NO_ROLE`.
        sizes: of the boxes of each class; of all, too, where there are several classes.
        widths_px, heights_px: the least and the largest of the images' files.
        settings: ``detection`` of the configuration.
        gaps: what is missing.
        to_do: stages that have not been run yet, in words.
        warnings: what a detector of these settings will not learn well, in words.
        sheet: some images of each class, and without boxes, of the training role where there is a
            split, with their boxes drawn.
    """

    classes: tuple[str, ...]
    total: RoleCount
    roles: tuple[RoleCount, ...]
    sizes: tuple[BoxSizes, ...]
    widths_px: tuple[int, int]
    heights_px: tuple[int, int]
    settings: DetectionConfig
    gaps: tuple[Gap, ...]
    to_do: tuple[str, ...]
    warnings: tuple[str, ...]
    sheet: tuple[SheetTile, ...]

    @property
    def square(self) -> str:
        """How images are resized, in words."""
        how = "the longer side filling it" if self.settings.keep_aspect else "each axis by itself"
        return f"resized to a square of {self.settings.image_px} px, {how}"


@dataclass(frozen=True)
class WordTable:
    """A table to be shown: its title, the names of its columns, and its cells, row by row."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def summary_tables(summary: BoxedSummary) -> tuple[WordTable, WordTable]:
    """Counts by role, and sizes of boxes by class."""
    least_px = summary.settings.strides[0]
    return (
        WordTable(
            "By role",
            (
                "role", "images", "without boxes", *(f"{name} boxes" for name in summary.classes),
                "most in an image", "patients", "sequences",
            ),
            tuple(_role_words(row) for row in (*summary.roles, summary.total)),
        ),
        WordTable(
            f"Boxes: longer side, px of the square of {summary.settings.image_px} px",
            (
                "class", "boxes", *(_quantile_words(share) for share in QUANTILES),
                f"narrower than {least_px} px",
            ),
            tuple(
                (
                    of.name,
                    f"{of.boxes:,}",
                    *(f"{px:.0f}" if px >= 10 else f"{px:.1f}" for px in of.longer_px),
                    *("" for _ in QUANTILES[len(of.longer_px) :]),
                    f"{of.narrow:,}",
                )
                for of in summary.sizes
            ),
        ),
    )  # fmt: skip


def _role_words(row: RoleCount) -> tuple[str, ...]:
    figures = (row.images, row.without_boxes, *row.boxes_of_class, row.most_boxes)
    named = (row.patients, row.sequences)
    return (
        row.name,
        *(f"{figure:,}" for figure in figures),
        *("not known" if figure is None else f"{figure:,}" for figure in named),
    )


def _quantile_words(share: float) -> str:
    return {0.0: "least", 0.5: "median", 1.0: "largest"}.get(share, f"{share:.0%}")


def range_words(ends: tuple[int, int]) -> str:
    """Such as ``332 to 1,920``; one figure where both are the same."""
    return " to ".join(f"{end:,}" for end in sorted(set(ends)))


def summarise_boxes(config: Config, *, images_of_class: int = 8) -> BoxedSummary:
    """Count images and boxes, whether or not they have been split.

    Args:
        config: of the experiment.
        images_of_class: images of each class on the sheet, and as many without boxes.

    Raises:
        StageError: there is no table of boxes; a box or its label cannot be; a split that is there,
            or an image of the sheet, cannot be read.
    """
    settings = config.detection
    table = read_boxes(settings.boxes)
    items = box_items(table, classes=settings.classes)
    images = table.images.assign(
        member=members(table.images),
        boxes=items.counts,
        there=[(table.root / name).exists() for name in table.images["image"]],
        **{f"boxes {number}": counts for number, counts in enumerate(_of_class(items))},
    )
    to_do, roles = [], {}
    if config.splits_file.exists():
        split = read_split(config.splits_file, config.split.fold)
        roles = dict(zip(split["patient_id"], split["role"], strict=True))
    else:
        to_do.append("The images have no roles yet: run 'medkd split'.")
    images["role"] = images["member"].map(roles).fillna(NO_ROLE)
    total = _count("all", images, images, settings.classes)
    sizes = _sizes(items, settings)
    return BoxedSummary(
        settings.classes,
        total,
        tuple(
            _count(role, images[images["role"] == role], images, settings.classes)
            for role in (*ROLES, NO_ROLE)
            if (images["role"] == role).any()
        ),
        sizes if len(settings.classes) > 1 else sizes[:1],
        _ends(items.sizes_px[:, 0]),
        _ends(items.sizes_px[:, 1]),
        settings,
        tuple(_gaps(images, settings.classes, split=bool(roles))),
        tuple(to_do),
        tuple(_warnings(sizes[-1], settings)),
        tuple(_sheet(config, images, items, images_of_class)),
    )


def _ends(sides_px: np.ndarray) -> tuple[int, int]:
    return int(sides_px.min()), int(sides_px.max())


def _of_class(items: BoxItems) -> np.ndarray:
    """Boxes of each class in each image: int64 classes x images."""
    image = np.repeat(np.arange(len(items)), items.counts)
    counts = np.zeros((len(items.classes), len(items)), np.int64)
    np.add.at(counts, (items.labels, image), 1)
    return counts


def _count(
    name: str, images: pd.DataFrame, everything: pd.DataFrame, classes: Sequence[str]
) -> RoleCount:
    def named(column: str) -> int | None:
        return int(images[column].nunique()) if everything[column].notna().any() else None

    return RoleCount(
        name,
        len(images),
        int((images["boxes"] == 0).sum()),
        tuple(int(images[f"boxes {number}"].sum()) for number in range(len(classes))),
        int(images["boxes"].max()),
        named("patient_id"),
        named("sequence_id"),
    )


def _sizes(items: BoxItems, settings: DetectionConfig) -> tuple[BoxSizes, ...]:
    """Of each class, and of all."""
    inside = [
        resized_px((width, height), settings.image_px, keep_aspect=settings.keep_aspect)
        for width, height in items.sizes_px.tolist()
    ]
    scale = np.repeat(np.array(inside) / items.sizes_px, items.counts, axis=0)
    sides = (items.boxes[:, 2:] - items.boxes[:, :2]) * scale

    def of(name: str, chosen: np.ndarray) -> BoxSizes:
        longer, shorter = sides[chosen].max(axis=1), sides[chosen].min(axis=1)
        return BoxSizes(
            name,
            len(longer),
            tuple(np.quantile(longer, QUANTILES).tolist()) if len(longer) else (),
            int((shorter < settings.strides[0]).sum()),
            int((longer > _FAR_LARGER * largest_anchor_px(settings)).sum()),
        )

    every = of("all", np.ones(len(sides), bool))
    return *(of(name, items.labels == n) for n, name in enumerate(items.classes)), every


def largest_anchor_px(settings: DetectionConfig) -> float:
    """The longer side of the largest anchor, pixels of the square."""
    elongation = max(math.sqrt(max(ratio, 1 / ratio)) for ratio in settings.anchor_ratios)
    return settings.strides[-1] * max(settings.anchor_sizes) * elongation


def _gaps(images: pd.DataFrame, classes: Sequence[str], *, split: bool) -> list[Gap]:
    counts = {name: images[f"boxes {number}"] for number, name in enumerate(classes)}
    without = [name for name, count in counts.items() if not count.sum()]
    gaps = gap_of("classes without a box", without)
    if split:
        training = images["role"] == "train"
        untrained = [name for name, count in counts.items() if not count[training].sum()]
        gaps += gap_of(
            "classes without a training box", [name for name in untrained if name not in without]
        )
    gaps += gap_of("images whose file is not there", images.loc[~images["there"], "image"])
    if split:
        gaps += gap_of("images without a role", images.loc[images["role"] == NO_ROLE, "image"])
    for column, what in (("patient_id", "patient"), ("sequence_id", "sequence")):
        unknown = images[column].isna()
        if not unknown.all():
            gaps += gap_of(f"images without a {what}", images.loc[unknown, "image"])
    return gaps


def _warnings(every: BoxSizes, settings: DetectionConfig) -> list[str]:
    warnings = []
    if every.narrow:
        warnings.append(
            f"Narrower than {settings.strides[0]} px, the finest of detection.strides: "
            f"{every.narrow:,} of {every.boxes:,} boxes. Where no anchor's centre lies in such a "
            "box, it is background in training. A finer stride or a larger detection.image_px "
            "helps."
        )
    if every.far_larger:
        warnings.append(
            f"More than {_FAR_LARGER} times as long as the largest anchor of "
            f"{largest_anchor_px(settings):.0f} px: {every.far_larger:,} of {every.boxes:,} boxes. "
            "A coarser stride or larger detection.anchor_sizes help."
        )
    return warnings


def _sheet(config: Config, images: pd.DataFrame, items: BoxItems, count: int) -> list[SheetTile]:
    settings = config.detection
    shown = images.reset_index(drop=True)
    shown = shown[shown["there"]]
    if config.splits_file.exists():
        shown = shown[shown["role"] == "train"]
    load = LoadBoxedImaged()
    resize = ResizeBoxedImaged("image", _SHEET_PX, keep_aspect=settings.keep_aspect)
    kinds = {name: shown[f"boxes {n}"] > 0 for n, name in enumerate(settings.classes)}
    sheet = []
    for name, of_kind in (kinds | {NO_BOX: shown["boxes"] == 0}).items():
        # A member's frames are alike: of each in turn.
        for index in tiles_in_turn(shown[of_kind], "member", count, seed=config.seed).index:
            item = resize(load(items[int(index)]))
            pixels = draw_boxes(
                item["image"].transpose(1, 2, 0), item["boxes"], item["labels"], line_px=3
            )
            sheet.append(SheetTile(name, str(item["name"]), encode_tile(pixels, quality=85)))
    return sheet
