"""The sheet of tiles: its pixels, and the picture that is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medkd.datasets.preview import SheetRow, sheet_pixels, write_sheet
from medkd.errors import OutputError


def flat(level: int, side: int = 100) -> np.ndarray:
    return np.full((3, side, side), level, np.uint8)


def noise(seed: int, side: int = 100) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (3, side, side)).astype(np.uint8)


def test_images_stand_in_rows_on_white() -> None:
    rows = [
        SheetRow("MSI", "a", [noise(1), noise(2), noise(3)]),
        SheetRow("MSS", "b", [flat(7)] * 3),
    ]
    pixels = sheet_pixels(rows)
    # Three of 100 and gaps of 24 and 6; two of 100 and a gap of 6.
    assert pixels.shape == (206, 330, 3)
    for image, left in zip(rows[0].images, (0, 124, 230), strict=True):
        np.testing.assert_array_equal(pixels[:100, left : left + 100], image.transpose(1, 2, 0))
    assert (pixels[106:, :100] == 7).all()
    for gap in (pixels[:, 100:124], pixels[:, 224:230], pixels[100:106]):
        assert (gap == 255).all()


def test_small_tiles_are_enlarged_whole_and_large_ones_are_averaged() -> None:
    small = noise(1, 40)
    pixels = sheet_pixels([SheetRow("A", "a", [small, small])])
    assert pixels.shape == (120, 120 + 24 + 120, 3)
    np.testing.assert_array_equal(
        pixels[:, :120], np.kron(small.transpose(1, 2, 0), np.ones((3, 3, 1)))
    )
    large = np.zeros((3, 512, 512), np.uint8)
    large[:, :, ::2] = 200
    pixels = sheet_pixels([SheetRow("A", "a", [large, large])])
    assert pixels.shape == (256, 256 + 24 + 256, 3)
    assert (pixels[:, :256] == 100).all()


def test_the_picture_holds_the_pixels_between_its_words(tmp_path: Path) -> None:
    path = tmp_path / "new" / "sheet.png"
    rows = [SheetRow("MSI", "TCGA-AA-3949-01Z-00-DX1.23748e80", [noise(1), noise(2)])]
    write_sheet(path, rows, ("stored", "epoch 1"), title="Tiles", note="flip 0.5")
    written = np.asarray(Image.open(path).convert("RGB"))
    wanted = sheet_pixels(rows)
    windows = np.lib.stride_tricks.sliding_window_view(written[:, :, 0], (8, 8))
    at = np.argwhere((windows == wanted[:8, :8, 0]).all((2, 3)))
    assert len(at) == 1
    top, left = at[0]
    np.testing.assert_array_equal(written[top : top + 100, left : left + 224], wanted)
    # Words to the left, above and below.
    assert (written[top : top + 100, :left] < 128).any()
    assert (written[:top] < 128).any()
    assert (written[top + 100 :] < 128).any()


def test_a_folder_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "sheet.png").mkdir()
    rows = [SheetRow("MSI", "a", [flat(1), flat(2)])]
    with pytest.raises(OutputError, match=r"sheet\.png: a folder stands where a file is needed"):
        write_sheet(tmp_path / "sheet.png", rows, ("stored", "epoch 1"), title="", note="")
