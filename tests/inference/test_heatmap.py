from __future__ import annotations

import io
import struct
import tracemalloc
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from medkd.inference.engine import ScoredTile, Students, infer_slide
from medkd.inference.heatmap import heatmap_png, heatmap_values, tile_rectangle
from medkd.inference.package import load_package


@pytest.fixture(scope="module")
def flat(package_folder, flat_slide):
    package = load_package(package_folder)
    return infer_slide(flat_slide, package, Students(package))


def test_a_tile_lies_where_it_was_scored():
    tile = ScoredTile(x=640, y=1280, probability=0.75)
    values = heatmap_values([tile], tile_extent_px=256, scale=1 / 16, shape=(120, 90))
    rows, columns = np.nonzero(~np.isnan(values))
    assert (rows.min(), rows.max() + 1) == (80, 96)
    assert (columns.min(), columns.max() + 1) == (40, 56)
    assert (values[80:96, 40:56] == 0.75).all()
    assert np.isnan(values).sum() == 120 * 90 - 16 * 16


def test_overlapping_tiles_are_averaged():
    tiles = [ScoredTile(0, 0, 0.2), ScoredTile(8, 0, 0.6)]
    values = heatmap_values(tiles, tile_extent_px=16, scale=1, shape=(16, 30))
    np.testing.assert_allclose(values[:, :8], 0.2)
    np.testing.assert_allclose(values[:, 8:16], 0.4)
    np.testing.assert_allclose(values[:, 16:24], 0.6)
    assert np.isnan(values[:, 24:]).all()


@pytest.mark.parametrize("scale", [0.0624, 0.03, 1 / 16])
def test_neighbours_leave_no_gap_and_share_no_pixel(scale):
    extent = 448.9
    starts = [index * extent for index in range(12)]
    edges = [tile_rectangle(x, 0, extent, scale)[1] for x in starts]
    for before, after in pairwise(edges):
        assert before.stop == after.start


def test_a_tile_smaller_than_a_pixel_is_still_shown():
    values = heatmap_values([ScoredTile(100, 40, 0.9)], 8, 1 / 32, (4, 6))
    assert np.argwhere(~np.isnan(values)).tolist() == [[1, 3]]


def test_no_tile_is_an_empty_heatmap():
    values = heatmap_values([], 64, 1, (3, 5))
    assert values.shape == (3, 5)
    assert np.isnan(values).all()


def test_a_slide_on_its_thumbnail(flat):
    """5 x 4 tiles of 64 px from column 3 and row 2, on a thumbnail of 8 um/px: 8 px a tile."""
    scale = flat.properties.mpp / flat.thumbnail_mpp
    values = heatmap_values(flat.tiles, flat.tile_extent_px, scale, flat.thumbnail.shape[:2])
    expected = np.full((64, 80), np.nan)
    expected[16:48, 24:48] = 0.6
    expected[16:48, 48:64] = 0.75
    np.testing.assert_allclose(values, expected, atol=0.01)
    # The tiles cover the pixels of the thumbnail that have their colour.
    red = flat.thumbnail[..., 0].astype(int)
    assert (abs(red[17:47, 25:47] - 153) <= 2).all()
    assert (abs(red[17:47, 49:63] - 204) <= 2).all()
    assert (red[np.isnan(values)] > 204).mean() > 0.98


def panels(image: np.ndarray) -> list[np.ndarray]:
    """What is drawn inside of the frames, found by the glass at their edges."""
    glass = (image == 243).all(axis=-1)
    rows = np.flatnonzero(glass.sum(axis=1) > image.shape[1] / 2)
    columns = np.flatnonzero(glass[rows[0]])
    frames = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    size = min(len(frame) for frame in frames)
    inside = image[rows[0] : rows[-1] + 1]
    return [inside[:, frame[0] : frame[0] + size] for frame in frames]


def test_the_picture(flat):
    data = heatmap_png(flat, 0.5, "MSI")
    assert data == heatmap_png(flat, 0.5, "MSI")
    left, right, spread = panels(
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    )
    height, width = left.shape[:2]
    assert width / height == pytest.approx(80 / 64, rel=0.01)
    for tissue, probability, columns in (
        ((153, 90, 130), 0.6, slice(int(width * 0.33), int(width * 0.58))),
        ((204, 120, 170), 0.75, slice(int(width * 0.62), int(width * 0.77))),
    ):
        rows = slice(int(height * 0.3), int(height * 0.7))
        colour = 255 * np.array(colormaps["viridis"](probability)[:3])
        assert abs(left[rows, columns] - tissue).max() <= 2
        assert abs(right[rows, columns] - (0.6 * colour + 0.4 * np.mean(tissue))).max() <= 4
        # student2 says 0.3 + red / 2, student1 red itself.
        differing = 255 * np.array(colormaps["cividis"](abs(0.3 - tissue[0] / 255 / 2))[:3])
        assert abs(spread[rows, columns] - (0.6 * differing + 0.4 * np.mean(tissue))).max() <= 4
    # Where no tile lies the heatmap is transparent.
    outside = np.ones((height, width), bool)
    outside[int(height * 0.22) : int(height * 0.78), int(width * 0.27) : int(width * 0.83)] = False
    assert (abs(right[outside] - 243) <= 1).all()


def test_a_large_thumbnail_takes_little_memory_and_gives_the_same_picture(flat):
    """Every pixel of the thumbnail, 64 x 80, as 40 x 40 of them: 8 million pixels."""
    large = replace(
        flat,
        thumbnail=flat.thumbnail.repeat(40, axis=0).repeat(40, axis=1),
        tissue_mask=flat.tissue_mask.repeat(40, axis=0).repeat(40, axis=1),
        thumbnail_mpp=flat.thumbnail_mpp / 40,
    )
    tracemalloc.start()
    found = np.asarray(Image.open(io.BytesIO(heatmap_png(large, 0.5, "MSI"))).convert("RGB"))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Drawn as it is, a float64 for each of three colours of 8 million pixels is 200 MB by itself.
    assert peak_bytes < 150e6
    expected = np.asarray(Image.open(io.BytesIO(heatmap_png(flat, 0.5, "MSI"))).convert("RGB"))
    assert found.shape == expected.shape
    # What is enlarged 40-fold has sharper edges.
    assert np.abs(found.astype(int) - expected).mean() < 4


def test_the_picture_without_tissue(package_folder, write_flat, tmp_path):
    path = write_flat(tmp_path / "blank.svs", np.full((256, 256, 3), 243, np.uint8))
    package = load_package(package_folder)
    data = heatmap_png(infer_slide(path, package, Students(package)), 0.5, "MSI")
    assert Image.open(io.BytesIO(data)).size[0] == 1560


def test_the_file_says_nothing_beside_its_pixels(flat):
    data = heatmap_png(flat, 0.5, "MSI")
    kinds, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kinds.append(data[at + 4 : at + 8])
        at += 12 + length
    assert set(kinds) == {b"IHDR", b"pHYs", b"IDAT", b"IEND"}
