"""A small detection experiment that trains in seconds: red ellipses on noise, with their boxes.

Every fourth image shows nothing, every fifth shows two ellipses, the others show one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from medkd.config import Config, load_config
from medkd.datasets.split import run_split_stage
from medkd.importers.box_table import Box, BoxedImage, BoxOptions, write_boxes

CLASSES = ("polyp",)
SIZES_PX = ((64, 64), (80, 60))
"""Width and height of the files, in turn."""

EXPERIMENT = """\
task: detection
output: .
detection:
  boxes: FOLDER/boxes.parquet
  classes: [polyp]
  image_px: 64
  strides: [8, 16, 32]
  anchor_sizes: [2.0, 2.8]
  channels: 16
  least_score: 0.005
split: {train: 0.5, validation: 0.25, test: 0.25}
train:
  name: small
  teacher: {network: resnet10, width: 0.5}
  students: [{network: resnet10, width: 0.25}, {network: resnet10, width: 0.25}]
  epochs: 2
  batch_size: 8
  learning_rate: 0.002
  device: cpu
  rho_steps: 0
  augment: {where: loader, affine_p: 0}
mlflow: {experiment: small, registered_model: small}
"""


def box_cohort(folder: Path, *, images: int = 40, seed: int = 0, split: bool = True) -> Config:
    """Draw images, write ``boxes.parquet`` and ``medkd.yaml`` beside them, and split them.

    Args:
        folder: of the experiment; made where it is not there.
        images: how many.
        seed: of what is drawn.
        split: give the images their roles.

    Returns:
        The experiment. ``load_config(folder / "medkd.yaml", assignments)`` gives variants of it.
    """
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(seed)
    drawn = [_write_image(folder, number, random) for number in range(images)]
    write_boxes(drawn, (), folder, folder, CLASSES, BoxOptions())
    path = folder / "medkd.yaml"
    path.write_text(EXPERIMENT.replace("FOLDER", str(folder.resolve())))
    config = load_config(path)
    if split:
        run_split_stage((), config)
    return config


def _write_image(folder: Path, number: int, random: np.random.Generator) -> BoxedImage:
    width, height = SIZES_PX[number % len(SIZES_PX)]
    # Coarse spots beneath the noise: images without an ellipse must not look alike.
    spots = Image.fromarray(random.integers(40, 120, (6, 6, 3), np.uint8))
    pixels = np.asarray(spots.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    pixels = pixels + random.normal(0, 8, pixels.shape)
    boxes = [_ellipse(pixels, columns, random) for columns in _columns(number, width)]
    name = f"images/{number:03d}.png"
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
    return BoxedImage(name, boxes, CLASSES * len(boxes), (width, height), exact=True)


def _columns(number: int, width: int) -> list[tuple[int, int]]:
    """Columns, from and behind, that each ellipse of an image keeps to."""
    if number % 4 == 0:
        return []
    return [(0, width // 2), (width // 2, width)] if number % 5 == 0 else [(0, width)]


def _ellipse(pixels: np.ndarray, columns: tuple[int, int], random: np.random.Generator) -> Box:
    """Draw a red ellipse into ``pixels`` and return its box, x1, y1, x2, y2."""
    wide, high = random.integers(16, 29, 2).tolist()
    x1 = int(random.integers(columns[0], columns[1] - wide + 1))
    y1 = int(random.integers(0, len(pixels) - high + 1))
    rows, across = np.mgrid[: pixels.shape[0], : pixels.shape[1]] + 0.5
    inside = ((across - x1 - wide / 2) / (wide / 2)) ** 2 + (
        (rows - y1 - high / 2) / (high / 2)
    ) ** 2 <= 1
    pixels[inside] = pixels[inside] * 0.3 + np.array([160.0, 30.0, 40.0])
    return float(x1), float(y1), float(x1 + wide), float(y1 + high)
