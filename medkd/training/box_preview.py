"""What augmentation makes of training images and their boxes, as a sheet to look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from medkd.config import Config
from medkd.datasets.box_drawing import class_colour, draw_boxes
from medkd.datasets.box_members import members
from medkd.datasets.box_summary import NO_BOX
from medkd.datasets.preview import SheetRow, write_sheet
from medkd.datasets.stain_reference import tiles_in_turn
from medkd.distill.graph import expand
from medkd.distill.method import load_method
from medkd.training.box_set import BoxSet, load_box_set
from medkd.training.data import loader_of
from medkd.training.images import device_images
from medkd.training.preview_stage import as_levels, augmentation_words

# On a sheet, which enlarges images below 96 px and makes those above 256 px smaller, lines have
# about 2 px.
_ENLARGED_BELOW_PX, _PX_OF_A_LINE = 96, 128


@dataclass(frozen=True)
class BoxedDraws:
    """Training images with boxes, and what training sees of them.

    Attributes:
        places: of each image among those of the training role, int64 N.
        names: paths below the root.
        labels: the classes that each shows, in words.
        columns: ``stored``, and the epoch of each draw, such as ``epoch 1``.
        images: uint8 columns x N x 3 x S x S, rounded; stored ones are resized alone.
        boxes: float32 columns x N x M x 5, as :class:`medkd.training.box_set.PaddedBoxes` has them.
    """

    places: np.ndarray
    names: tuple[str, ...]
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    images: np.ndarray
    boxes: np.ndarray


def write_box_preview(config: Config, path: Path, *, images: int, draws: int) -> BoxedDraws:
    """Write a sheet of training images as stored and as training sees them in its first epochs.

    Args:
        config: of the experiment.
        path: of the PNG.
        images: how many at most, of each class in turn, and one without boxes where there is one.
        draws: how many of each.

    Raises:
        StageError: no boxes or no split yet, or one that does not fit.
        MethodError: the method gives each network a view of its own.
        TrainingError: an image cannot be read.
        OutputError: the picture cannot be written.
    """
    seen = draw_boxed_images(config, images=images, draws=draws)
    settings = config.detection
    sheet = [
        SheetRow(
            label,
            name,
            [
                _drawn(image, boxes)
                for image, boxes in zip(seen.images[:, n], seen.boxes[:, n], strict=True)
            ],
        )
        for n, (label, name) in enumerate(zip(seen.labels, seen.names, strict=True))
    ]
    colours = {name: class_colour(number) for number, name in enumerate(settings.classes)}
    write_sheet(
        path,
        sheet,
        seen.columns,
        title="Training images, and what training sees of them",
        note=f"detection.image_px: {settings.image_px}. "
        f"train.augment: {augmentation_words(config.train.augment)}",
        colours=colours if len(colours) > 1 else None,
    )
    return seen


def draw_boxed_images(config: Config, *, images: int, draws: int) -> BoxedDraws:
    """Training images with boxes, and the very augmentations that training gives them.

    Some may not be drawn in these epochs (``train.balance``).

    Raises:
        As :func:`write_box_preview`.
    """
    # Some images of many: none is cached, and no process is started for them.
    train = config.train.model_copy(update={"cache_mb": 0, "loader_workers": 0, "device": "cpu"})
    data = load_box_set(config.model_copy(update={"train": train}))
    graph = expand(load_method(train.method), len(train.students))
    loader, _ = data.training_loader(graph.views)
    chosen = _chosen(data, images)
    places = chosen.index.tolist()
    stored = loader_of(data.dataset("train"), data.config).load([places])
    augmented = loader.load([[(epoch, place) for place in places] for epoch in range(draws)])
    batches = [*stored, *augmented]
    cpu = torch.device("cpu")
    return BoxedDraws(
        np.array(places),
        tuple(data.items["train"][place]["name"] for place in places),
        tuple(chosen["label"]),
        ("stored", *(f"epoch {epoch + 1}" for epoch in range(draws))),
        as_levels(torch.stack([device_images(batch, cpu) for batch in batches])),
        torch.stack([batch["label"] for batch in batches]).numpy(),
    )


def _chosen(data: BoxSet, count: int) -> pd.DataFrame:
    """Images of each class in turn, of each member of a class in turn, and one without boxes.

    More are without where there are too few with boxes.

    Returns:
        By the place of the image among those of the training role, sorted by class and name:
        ``label``, the classes that it shows.
    """
    items, seed = data.items["train"], data.config.seed
    of_image = members(data.table.images)
    shown = pd.DataFrame(
        {
            "member": of_image[of_image.map(dict(data.roles)) == "train"].to_numpy(),
            "name": items.names.to_pylist(),
            "classes": [tuple(sorted(set(item["labels"].tolist()))) for item in items],
        }
    )
    of_class = [
        tiles_in_turn(showing, "member", count, seed=seed)
        for number in range(len(items.classes))
        if len(showing := shown[[number in its for its in shown["classes"]]])
    ]
    turn = pd.concat([part.assign(turn=range(len(part))) for part in of_class])
    with_boxes = turn.sort_values("turn", kind="stable").drop(columns="turn")
    with_boxes = with_boxes[~with_boxes.index.duplicated()]
    without = shown[shown["classes"].map(len) == 0]
    room = max(1, count - min(1, len(without)))
    with_boxes = with_boxes.head(room)
    without = tiles_in_turn(without, "member", count - len(with_boxes), seed=seed)
    picked = pd.concat([part.sort_values(["classes", "name"]) for part in (with_boxes, without)])
    words = [", ".join(items.classes[n] for n in its) or NO_BOX for its in picked["classes"]]
    return picked.assign(label=words)[["label"]]


def _drawn(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The image, 3 x S x S, with its boxes."""
    real = boxes[boxes[:, 0] >= 0]
    pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
    side = len(pixels)
    line_px = 1 if side < _ENLARGED_BELOW_PX else max(2, round(side / _PX_OF_A_LINE))
    drawn = draw_boxes(pixels, real[:, 1:], real[:, 0].astype(int), line_px=line_px)
    return drawn.transpose(2, 0, 1)
