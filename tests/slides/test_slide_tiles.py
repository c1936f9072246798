"""Stores of places only: training reads the slide, and sees what the tile stage saw."""

from __future__ import annotations

import json
import multiprocessing
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile

from medkd.config import TileConfig
from medkd.errors import SlideError, StageError
from medkd.slides.slide_tiles import SlideTiles
from medkd.slides.store import TileStore, read_index, write_index
from medkd.slides.synthetic import SlideSpec, write_slide
from medkd.slides.tile_slide import SlideTask, outdated, skipped, tile_slide
from medkd.slides.tiling import open_slide_for_tiling

PLACES_ONLY = TileConfig(mpp=0.5, size_px=96, min_focus=0, store="coordinates")


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "slide.svs"
    write_slide(SlideSpec("MSI", seed=4, width_px=1100, height_px=1100, mpp=0.25), path)
    return path


@pytest.fixture
def tiled(slide, tmp_path) -> SlideTask:
    copy = tmp_path / "slide.svs"
    copy.write_bytes(slide.read_bytes())
    task = SlideTask("slide", "patient", copy, None, PLACES_ONLY, tmp_path)
    assert tile_slide(task).status == "ok"
    return task


def pixels_of_tile_stage(task: SlideTask) -> dict[tuple[int, int], np.ndarray]:
    with open_slide_for_tiling(task.path, task.parameters) as scanned:
        return {(t.x, t.y): t.pixels for t in scanned.tiles() if t.pixels is not None}


def test_pixels_are_those_of_the_tile_stage_whatever_the_order(tiled):
    expected = pixels_of_tile_stage(tiled)
    assert len(expected) > 4
    tiles = SlideTiles()
    for place in sorted(expected, reverse=True):
        np.testing.assert_array_equal(tiles.read(tiled.record_path, *place), expected[place])


def test_the_store_holds_places_and_figures_and_no_image(tiled):
    with zipfile.ZipFile(tiled.store_path) as archive:
        assert all(entry.file_size == 0 for entry in archive.infolist())
    with TileStore(tiled.store_path) as store:
        places = [(tile.x, tile.y) for tile in store.tiles()]
    assert places == list(pixels_of_tile_stage(tiled))
    index = write_index(tiled.folder, [skipped(tiled).record])
    assert list(zip(index["x"], index["y"], strict=True)) == places
    assert (read_index(tiled.folder)["tissue_fraction"] >= PLACES_ONLY.min_tissue).all()


def test_what_training_sees_infer_sees(slide):
    """With JPEGs both see what the JPEG left; with places both see the slide's own pixels."""
    for parameters, lossless in ((PLACES_ONLY, True), (TileConfig(mpp=0.5, size_px=96), False)):
        with open_slide_for_tiling(slide, parameters) as scanned:
            tile = next(tile for tile in scanned.tiles() if tile.pixels is not None)
            same = np.array_equal(scanned.learnt_pixels(tile), tile.pixels)
        assert same is lossless


def read_one(tiles: SlideTiles, record: Path, x: int, y: int) -> int:
    return int(tiles.read(record, x, y).sum())


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_processes_open_slides_of_their_own(tiled, start):
    place = next(iter(pixels_of_tile_stage(tiled)))
    tiles = SlideTiles()
    here = read_one(tiles, tiled.record_path, *place)
    with multiprocessing.get_context(start).Pool(2) as pool:
        there = pool.starmap(read_one, [(tiles, tiled.record_path, *place)] * 4)
    assert there == [here] * 4
    assert read_one(tiles, tiled.record_path, *place) == here


def test_another_slide_in_its_place_is_refused(tiled):
    write_slide(SlideSpec("MSS", seed=9, width_px=1100, height_px=1100, mpp=0.25), tiled.path)
    with pytest.raises(StageError, match="is not as it was tiled: its fingerprint was") as caught:
        SlideTiles().read(tiled.record_path, 0, 0)
    assert str(caught.value).startswith(f"{tiled.path}: ")
    assert caught.value.remedy == "Run 'medkd tile' again."


def test_another_version_of_the_reader_is_refused(tiled):
    record = json.loads(tiled.record_path.read_text())
    record["slide"]["reader"] = "native JPEG, simplejpeg 0.1"
    tiled.record_path.write_text(json.dumps(record))
    with pytest.raises(StageError, match=r"its reader was native JPEG, simplejpeg 0\.1, is"):
        SlideTiles().read(tiled.record_path, 0, 0)


def test_a_slide_that_is_gone_or_has_moved(tiled, tmp_path):
    moved = tmp_path / "elsewhere.svs"
    tiled.path.rename(moved)
    with pytest.raises(SlideError, match=r"slide\.svs"):
        SlideTiles().read(tiled.record_path, 0, 0)
    now = SlideTask("slide", "patient", moved, None, PLACES_ONLY, tmp_path)
    assert outdated(now) == f"slide path was {tiled.path}, is {moved}"
    with pytest.raises(StageError, match="no such record of a slide"):
        SlideTiles().read(tmp_path / "other.json", 0, 0)


def test_a_tile_that_was_damaged_since_is_an_error(tiled, monkeypatch):
    """The fingerprint samples a large file; damage in between is met when the tile is read."""
    place = next(iter(pixels_of_tile_stage(tiled)))
    record = json.loads(tiled.record_path.read_text())
    monkeypatch.setattr(
        "medkd.slides.openslide_reader.fingerprint", lambda path: record["slide"]["fingerprint"]
    )
    with tifffile.TiffFile(tiled.path) as tiff:
        level = tiff.pages[0]
        number = place[1] // level.tilelength * -(-level.imagewidth // level.tilewidth)
        number += place[0] // level.tilewidth
        offset, length = level.dataoffsets[number], level.databytecounts[number]
    with tiled.path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(length))
    with pytest.raises(StageError, match=r"read before, can no longer be read: a native tile"):
        SlideTiles().read(tiled.record_path, *place)
