from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from medkd.config import TileConfig
from medkd.errors import SlideError
from medkd.slides import tiling
from medkd.slides.judging import REJECTIONS
from medkd.slides.store import TileStore, encode_tile
from medkd.slides.tile_slide import SlideTask, tile_slide
from medkd.slides.tiling import ScannedSlide, TileCounts, open_slide_for_tiling
from tests.slides.fake_reader import FakeReader

# 64 px of 0.5 um: a tile is 32 um, four thumbnail pixels.
SMALL = TileConfig(size_px=64, mpp=0.5)


def scan(path, parameters=SMALL, **options):
    with open_slide_for_tiling(path, parameters, **options) as slide:
        return slide, list(slide.tiles())


def fates(tiles) -> dict[tuple[int, int], str]:
    return {(tile.x, tile.y): tile.fate for tile in tiles}


def test_every_fully_inside_tile_is_a_candidate_once_row_by_row(write_slide, glass):
    slide, tiles = scan(write_slide("a.svs", glass(200, 330)))
    assert slide.candidates == 15  # 330 / 64 = 5.2 and 200 / 64 = 3.1
    expected = [(x, y) for y in (0, 64, 128) for x in (0, 64, 128, 192, 256)]
    assert [(tile.x, tile.y) for tile in tiles] == expected
    assert slide.tile_extent_px == 64


def test_random_order_brings_the_same_tiles(write_slide, glass, tissue):
    """What the thumbnail settles first, row by row; then what is read, in an order of the seed."""
    image = glass(640, 640)
    image[64:576, 64:576] = tissue(512, 512)
    path = write_slide("a.svs", image)
    _, in_rows = scan(path)
    with open_slide_for_tiling(path, SMALL) as slide:
        drawn, again, other = (list(slide.tiles(seed=seed)) for seed in (0, 0, 1))
        to_read = slide.to_read
    places = [(tile.x, tile.y) for tile in drawn]
    assert places == [(tile.x, tile.y) for tile in again] != [(t.x, t.y) for t in other]
    expected = {(tile.x, tile.y): tile for tile in in_rows}
    assert set(places) == set(expected)
    assert len(places) == 100
    for tile in drawn:
        same = expected[tile.x, tile.y]
        assert (tile.fate, tile.tissue_fraction) == (same.fate, same.tissue_fraction)
        np.testing.assert_array_equal(tile.pixels, same.pixels)
    # 8 x 8 tiles of 32 um of tissue; each is read.
    assert to_read == 64
    assert [tile.fate for tile in drawn[:36]] == ["background"] * 36
    rows_first = sorted(places[:36], key=lambda place: (place[1], place[0]))
    assert places[:36] == rows_first
    assert places[36:] != sorted(places[36:], key=lambda place: (place[1], place[0]))


def test_the_grid_does_not_drift(write_slide, glass):
    """At 0.499 a tile of 112 um is 224.4489 px; tile 8 begins at 1795.59, not at 8 * 224."""
    path = write_slide("a.svs", glass(256, 2100), mpp=0.499)
    slide, tiles = scan(path, TileConfig())
    assert slide.tile_extent_px == pytest.approx(224 * 0.5 / 0.499)
    assert [tile.x for tile in tiles] == [round(i * 112 / 0.499) for i in range(9)]
    assert all(tile.x + slide.tile_extent_px <= 2100 for tile in tiles)


def test_overlap_and_gaps(write_slide, glass):
    path = write_slide("a.svs", glass(64, 256))
    _, tiles = scan(path, TileConfig(size_px=64, step_px=32))
    assert [tile.x for tile in tiles] == [0, 32, 64, 96, 128, 160, 192]
    _, tiles = scan(path, TileConfig(size_px=64, step_px=100))
    assert [tile.x for tile in tiles] == [0, 100]


def test_tissue_share_is_exact(write_slide, glass, tissue):
    """Tissue fills x from 160 on: tiles of 64 px at 128 are half covered, to an 8 um pixel."""
    image = glass(512, 512)
    image[:, 160:] = tissue(512, 352)
    slide, tiles = scan(write_slide("a.svs", image))
    shares = {tile.x: tile.tissue_fraction for tile in tiles if tile.y == 256}
    assert shares[0] == 0
    assert shares[64] == pytest.approx(0, abs=0.26)
    assert shares[128] == pytest.approx(0.5, abs=0.26)
    assert shares[192] == pytest.approx(1)
    assert shares[448] == pytest.approx(1)
    assert slide.tissue_area_mm2 == pytest.approx(512 * 352 * 0.25e-6, rel=0.08)
    assert slide.tissue_mask.shape == slide.thumbnail.shape[:2] == (32, 32)
    assert slide.thumbnail_mpp == 8


def test_used_pixels_are_the_slide_s(write_slide, glass, tissue):
    image = glass(512, 512)
    image[128:448, 128:448] = tissue(320, 320)
    _, tiles = scan(write_slide("a.svs", image))
    used = [tile for tile in tiles if tile.fate == "used"]
    assert {(tile.x, tile.y) for tile in used} >= {
        (x, y) for x in range(192, 384, 64) for y in range(192, 384, 64)
    }
    for tile in used:
        np.testing.assert_array_equal(
            tile.pixels, image[tile.y : tile.y + 64, tile.x : tile.x + 64]
        )
        assert tile.focus >= SMALL.min_focus
    for tile in tiles:
        assert (tile.pixels is not None) == (tile.fate == "used")


def test_one_physical_scale_over_two_scans(write_slide, tissue):
    """The same tissue scanned at 20x and 40x gives the same tiles."""
    coarse = tissue(512, 512)
    fine = coarse.repeat(2, axis=0).repeat(2, axis=1)
    _, of_coarse = scan(write_slide("a.svs", coarse, mpp=0.5))
    _, of_fine = scan(write_slide("b.svs", fine, mpp=0.25))
    assert [(2 * t.x, 2 * t.y, t.fate) for t in of_coarse] == [(t.x, t.y, t.fate) for t in of_fine]
    for one, other in zip(of_coarse, of_fine, strict=True):
        difference = np.abs(one.pixels.astype(int) - other.pixels)
        assert difference.mean() < 2


def test_each_reason_for_rejection(write_slide, glass, tissue):
    image = glass(512, 1024)
    image[:, 256:] = tissue(512, 768)
    image[:, 576:704] = (30, 150, 120)  # green ink; its rim is 80 px wide
    image[:, 768:832] = (5, 5, 5)
    image[:256, 384:512] = ndimage.gaussian_filter(image[:256, 384:512], (10, 10, 0))
    _, tiles = scan(write_slide("a.svs", image))
    row = {tile.x: tile.fate for tile in tiles if tile.y == 128}
    assert row[0] == "background"
    assert row[320] == "used"
    assert row[576] == row[640] == "pen"
    assert row[768] == "black"
    assert row[384] == "out_of_focus"
    below = {tile.x: tile.fate for tile in tiles if tile.y == 448}
    assert below[384] == below[960] == "used"
    counts = TileCounts.of(tile.fate for tile in tiles)
    assert counts.candidate == 8 * 16
    assert counts.candidate == counts.used + counts.unreadable + sum(counts.rejected.values())
    assert set(counts.rejected) == set(REJECTIONS)


def test_thresholds_are_obeyed(write_slide, tissue):
    image = ndimage.gaussian_filter(tissue(256, 256), (10, 10, 0))
    path = write_slide("a.svs", image)
    _, tiles = scan(path)
    assert {tile.fate for tile in tiles} == {"out_of_focus"}
    _, tiles = scan(path, TileConfig(size_px=64, min_focus=0))
    assert {tile.fate for tile in tiles} == {"used"}


def test_unreadable_tiles_are_counted_and_never_white(write_slide, damage, tissue):
    path = write_slide("a.svs", tissue(640, 640))
    damage(path, [0, 55])  # of 10 x 10 file tiles of 64 px: (0, 0) and (320, 320)
    slide, tiles = scan(path)
    bad = {at for at, fate in fates(tiles).items() if fate == "unreadable"}
    assert bad == {(0, 0), (320, 320)}
    counts = TileCounts.of(tile.fate for tile in tiles)
    assert (counts.candidate, counts.used, counts.unreadable) == (100, 98, 2)
    assert any("could not be read at low resolution" in text for text in slide.warnings)


def test_too_many_unreadable_tiles_fail_the_slide_at_the_end(write_slide, damage, tissue):
    path = write_slide("a.svs", tissue(640, 640))
    damage(path, range(11))
    with open_slide_for_tiling(path, SMALL) as slide:
        tiles = slide.tiles()
        seen = [next(tiles) for _ in range(100)]
        with pytest.raises(SlideError) as caught:
            next(tiles)
    assert len(fates(seen)) == 100
    assert caught.value.reason == "too_unreadable"
    assert str(caught.value) == (
        f"{path}: 11 of 100 tiles that had to be read are unreadable (11%, tile.max_unreadable "
        "is 10%). Copy or export the slide again; to use the rest of it, raise "
        "tile.max_unreadable."
    )
    scan(path, TileConfig(size_px=64, max_unreadable=0.11))


def test_unreadable_background_does_not_fail_a_slide(write_slide, damage, tissue, glass):
    """Tiles that need not be read are no part of the share."""
    image = glass(640, 640)
    image[320:] = tissue(320, 640)
    path = write_slide("a.svs", image)
    damage(path, [0])
    _, tiles = scan(path)
    # Where nothing at all can be seen of a tile, it has to be read: it counts.
    assert fates(tiles)[0, 0] == "unreadable"
    assert TileCounts.of(tile.fate for tile in tiles).unreadable == 1


def test_tissue_that_full_resolution_lost_is_unreadable(write_slide, tissue):
    image = tissue(1024, 1024)
    level1 = image.reshape(256, 4, 256, 4, 3).mean((1, 3)).astype(np.uint8)
    image[:128, :128] = 255
    _, tiles = scan(write_slide("a.svs", image, level1))
    bad = {at for at, fate in fates(tiles).items() if fate == "unreadable"}
    assert bad == {(0, 0), (64, 0), (0, 64), (64, 64)}


def test_slide_without_tissue_opens(write_slide, glass):
    slide, tiles = scan(write_slide("a.svs", glass(256, 256)))
    assert slide.tissue_area_mm2 == 0
    assert {tile.fate for tile in tiles} == {"background"}


def test_smaller_than_one_tile(write_slide, tissue):
    path = write_slide("a.svs", tissue(223, 400))
    with pytest.raises(SlideError) as caught:
        open_slide_for_tiling(path, TileConfig())
    assert caught.value.reason == "smaller_than_one_tile"
    assert str(caught.value) == (
        f"{path}: the slide (400 x 223 px, 200 x 112 um) is smaller than one tile of 112 um. "
        "Check the slide's mpp, or choose a smaller tile.size_px or tile.mpp."
    )
    slide, _ = scan(write_slide("b.svs", tissue(224, 400)), TileConfig())
    assert slide.candidates == 1


def test_mpp_of_the_table_and_the_override(write_slide, tissue):
    path = write_slide("a.svs", tissue(256, 256), mpp=None)
    with pytest.raises(SlideError) as caught:
        open_slide_for_tiling(path, SMALL)
    assert caught.value.reason == "missing_mpp"
    slide, _ = scan(path, table_mpp=0.25)
    assert (slide.properties.mpp_source, slide.tile_extent_px) == ("slides.csv", 128)
    slide, _ = scan(path, table_mpp=0.25, override_mpp=0.5, slide_id="S7")
    assert (slide.properties.mpp_source, slide.tile_extent_px) == ("--mpp", 64)
    assert slide.properties.slide_id == "S7"


def test_slightly_coarser_slides_are_upsampled(write_slide, tissue):
    slide, tiles = scan(write_slide("a.svs", tissue(256, 256), mpp=0.55))
    assert slide.tile_extent_px == pytest.approx(64 * 0.5 / 0.55)
    assert slide.candidates == 16
    assert all(t.pixels is None or t.pixels.shape == (64, 64, 3) for t in tiles)


def test_counts():
    counts = TileCounts.of(["used", "pen", "used", "unreadable", "background"])
    assert (counts.candidate, counts.used, counts.unreadable) == (5, 2, 1)
    assert counts.rejected == dict.fromkeys(REJECTIONS, 0) | {"background": 1, "pen": 1}


def test_focus_is_nan_where_it_was_not_measured(write_slide, glass):
    _, tiles = scan(write_slide("a.svs", glass(128, 128)))
    assert all(math.isnan(tile.focus) for tile in tiles)


# A slide in memory: every pixel that cannot be read is known.


def scan_fake(reader: FakeReader, parameters=SMALL):
    slide = ScannedSlide(reader, parameters)
    return slide, list(slide.tiles())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("mpp", "step_px"), [(0.5, None), (0.5, 40), (0.25, None), (0.25, 72)])
def test_just_the_tiles_with_an_unreadable_pixel_are_unreadable(tissue, seed, mpp, step_px):
    """Tissue everywhere, damage anywhere: also across tiles, and beside them in the thumbnail."""
    height, width = 600, 700
    random = np.random.default_rng(seed)
    rectangles = [
        (int(random.integers(0, width - 90)), int(random.integers(0, height - 90)), *size)
        for size in random.integers(1, 90, (5, 2)).tolist()
    ]
    damaged = np.zeros((height, width), bool)
    for x, y, w, h in rectangles:
        damaged[y : y + h, x : x + w] = True
    reader = FakeReader(tissue(height, width), mpp, unreadable=rectangles)
    slide, tiles = scan_fake(
        reader, TileConfig(size_px=64, step_px=step_px, min_focus=0, max_unreadable=1)
    )
    side = round(64 * 0.5 / mpp)
    expected = {
        (tile.x, tile.y)
        for tile in tiles
        if damaged[tile.y : tile.y + side, tile.x : tile.x + side].any()
    }
    assert 0 < len(expected) < len(tiles)
    assert {at for at, fate in fates(tiles).items() if fate == "unreadable"} == expected
    counts = TileCounts.of(tile.fate for tile in tiles)
    assert counts.candidate == slide.candidates == len(tiles)
    assert (counts.unreadable, counts.used) == (len(expected), len(tiles) - len(expected))


def test_a_tile_that_the_thumbnail_cannot_show_is_read_and_judged_by_its_own_pixels(tissue, glass):
    image = tissue(512, 640)
    image[:, :192] = glass(512, 192)
    image[:, 512:] = glass(512, 128)
    image[:, 256:320] = ndimage.gaussian_filter(image[:, 256:320], (10, 10, 0))
    # The left half, but for its last row of tiles.
    reader = FakeReader(image, unseen=[(0, 0, 320, 448)], unreadable=[(70, 10, 1, 1)])
    slide, tiles = scan_fake(reader)
    found = {(tile.x, tile.y): tile for tile in tiles}
    for y in range(0, 448, 64):
        row = [found[x, y].fate for x in range(0, 320, 64)]
        assert row[0] == row[2] == "background"
        assert row[1] == ("unreadable" if y == 0 else "background")
        assert row[3:] == ["used", "out_of_focus"]
        assert found[0, y].tissue_fraction == 0
        assert found[192, y].tissue_fraction == 1
    assert math.isnan(found[64, 0].tissue_fraction)
    # Glass is read where the thumbnail does not show that it is glass, and nowhere else.
    assert {at for at in reader.read if at[0] < 192} == {
        (x, y) for x in (0, 64, 128) for y in range(0, 448, 64)
    }
    assert not {at for at in reader.read if at[0] >= 512}
    # 20 x 28 of 40 x 32 thumbnail pixels.
    assert slide.warnings == ("43.8% of the slide could not be read at low resolution",)


def test_every_candidate_has_one_fate_whatever_is_on_the_slide(tissue, glass):
    image = tissue(704, 1000)
    image[:, :192] = glass(704, 192)
    image[:, 320:448] = (30, 150, 120)  # green ink
    image[:, 640:704] = (5, 5, 5)
    image[:, 832:896] = ndimage.gaussian_filter(image[:, 832:896], (10, 10, 0))
    reader = FakeReader(image, unreadable=[(900, 100, 30, 20), (100, 500, 3, 3)])
    slide, tiles = scan_fake(reader)
    counts = TileCounts.of(tile.fate for tile in tiles)
    assert slide.candidates == counts.candidate == 15 * 11
    assert counts.used + counts.unreadable + sum(counts.rejected.values()) == 15 * 11
    # Columns of 11 tiles. Ink's rim of 80 px reaches a quarter into the next tile but one; black
    # has a rim too, as it may be ink: 192 to 528, and 560 to 784 but for the black itself.
    assert counts.rejected == dict.fromkeys(REJECTIONS, 0) | {
        "background": 3 * 11 - 1,
        "pen": (6 + 3) * 11,
        "black": 11,
        "out_of_focus": 11,
    }
    assert {at for at, fate in fates(tiles).items() if fate == "unreadable"} == {
        (896, 64),
        (64, 448),
    }
    assert counts.used == 10  # of the last column, in which one is unreadable
    assert len(reader.read) == 10 + 2 + 11


def test_the_store_holds_the_slide_s_own_jpeg_where_there_is_one(tissue, tmp_path, monkeypatch):
    image = tissue(256, 256)
    own = encode_tile(image[64:128, 128:192], 31)  # of a quality that the stage does not use
    reader = FakeReader(image, native={(128, 64): own, (999, 999): b"of no tile"})
    monkeypatch.setattr(tiling, "open_reader", lambda *_, **__: reader)
    task = SlideTask("s", "p", tmp_path / "fake.svs", None, SMALL, tmp_path)
    assert tile_slide(task).status == "ok"
    with TileStore(tmp_path / "s.zip") as store:
        assert len(store.tiles()) == 16
        for tile in store.tiles():
            x, y = tile.x, tile.y
            encoded = encode_tile(image[y : y + 64, x : x + 64], SMALL.jpeg_quality)
            assert store.read_bytes(x, y) == (own if (x, y) == (128, 64) else encoded)
