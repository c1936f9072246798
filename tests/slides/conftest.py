"""Small slides drawn for one test each, whose every pixel is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile

GLASS = (243, 243, 243)

WriteSlide = Callable[..., Path]


@pytest.fixture
def write_slide(tmp_path: Path) -> WriteSlide:
    """Write levels of pixels as a tiled TIFF that OpenSlide takes for an Aperio slide.

    ``write_slide(name, level0, level1, ..., mpp=0.5, power=20, more={"Synthetic": "medkd"})``
    """

    def write(
        name: str,
        *levels: np.ndarray,
        mpp: float | None = 0.5,
        power: float | None = None,
        more: dict[str, str] | None = None,
    ) -> Path:
        path = tmp_path / name
        described = {"MPP": mpp, "AppMag": power, **(more or {})}
        text = "Aperio Image Library v10.0.0\r\ntest" + "".join(
            f"|{key} = {value}" for key, value in described.items() if value is not None
        )
        with tifffile.TiffWriter(path) as tiff:
            for level in levels:
                tiff.write(
                    level,
                    photometric="rgb",
                    tile=(64, 64),
                    compression="zlib",
                    description=text,
                    metadata=None,
                )
        return path

    return write


@pytest.fixture
def damage() -> Callable[[Path, Sequence[int]], None]:
    """``damage(path, tiles)`` overwrites the data of these 64 px tiles of level 0 (row-major)."""

    def overwrite(path: Path, tiles: Sequence[int]) -> None:
        with tifffile.TiffFile(path) as tiff:
            offsets = tiff.pages[0].dataoffsets
            lengths = tiff.pages[0].databytecounts
        with path.open("r+b") as file:
            for tile in tiles:
                file.seek(offsets[tile])
                file.write(b"\xff" * lengths[tile])

    return overwrite


@pytest.fixture
def tissue() -> Callable[[int, int], np.ndarray]:
    """``tissue(height, width)`` draws sharp pink tissue with violet nuclei of 8 px."""

    def draw(height: int, width: int) -> np.ndarray:
        random = np.random.default_rng(0)
        image = np.full((height, width, 3), (215, 140, 180), np.uint8)
        for _ in range(height * width // 400):
            y, x = random.integers(0, height - 8), random.integers(0, width - 8)
            image[y : y + 8, x : x + 8] = (100, 60, 140)
        return image

    return draw


@pytest.fixture
def glass() -> Callable[[int, int], np.ndarray]:
    """``glass(height, width)`` draws empty glass."""

    def draw(height: int, width: int) -> np.ndarray:
        return np.full((height, width, 3), GLASS, np.uint8)

    return draw
