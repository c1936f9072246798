from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import openslide
import pytest
import tifffile

from medkd.inference.engine import ScoredTile
from medkd.inference.maps.tiff import tiff_map


@pytest.fixture(scope="module")
def large(marked):
    """A slide of 12.0 x 5.6 mm in white, with one tile of 1.6 mm in its lower right quarter."""
    return replace(
        marked.inference,
        properties=replace(marked.inference.properties, width_px=24000, height_px=11200, mpp=0.5),
        thumbnail=np.full((700, 1500, 3), 255, np.uint8),
        thumbnail_mpp=8.0,
        tiles=(ScoredTile(16000, 6400, 1.0),),
        tile_extent_px=3200.0,
    )


def test_a_pyramid_that_every_level_of_lies_in_the_same_place(large, tmp_path):
    path = tmp_path / "map.tif"
    path.write_bytes(tiff_map(large, "about it"))
    with openslide.OpenSlide(path) as slide:
        assert slide.level_dimensions == ((1500, 700), (750, 350), (375, 175), (188, 88))
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(8)
        assert slide.properties["tiff.ImageDescription"] == "about it"
        for level in range(3):
            region = slide.read_region((0, 0), level, slide.level_dimensions[level])
            coloured = np.asarray(region)[..., 2] < 200  # yellow has no blue
            rows, columns = np.nonzero(coloured)
            # 16000 and 6400 px of 0.5 um are 1000 and 400 px of 8 um; the side is 200 of them.
            assert (columns.min() * 2**level, (columns.max() + 1) * 2**level) == (1000, 1200)
            assert (rows.min() * 2**level, (rows.max() + 1) * 2**level) == (400, 600)


def test_tags(large):
    with tifffile.TiffFile(io.BytesIO(tiff_map(large, "about it, µ"))) as tiff:
        assert [page.subfiletype for page in tiff.pages] == [0, 1, 1, 1]
        assert [page.tags["XResolution"].value for page in tiff.pages[:2]] == [(1250, 1), (625, 1)]
        assert tiff.pages[0].description == "about it, ?"
        names = {tag.name for page in tiff.pages for tag in page.tags}
    assert not names & {"DateTime", "Artist", "HostComputer", "Software"}


def test_without_a_tile_it_is_the_slide_in_grey(large):
    colourful = np.broadcast_to(np.array([30, 90, 150], np.uint8), (700, 1500, 3))
    data = tiff_map(replace(large, tiles=(), thumbnail=colourful), "")
    assert (tifffile.imread(io.BytesIO(data)) == 90).all()
