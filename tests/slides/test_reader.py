from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from medkd.config import TileConfig
from medkd.errors import SlideError
from medkd.slides.openslide_reader import fingerprint, open_openslide
from medkd.slides.reader import RegionUnreadableError


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def refused(path: Path) -> SlideError:
    with pytest.raises(SlideError) as caught:
        open_openslide(path, TileConfig())
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    return caught.value


def test_at_level_0_resolution_pixels_are_exact(write_slide):
    image = noise(200, 300)
    reader = open_openslide(write_slide("a.svs", image), TileConfig())
    region = reader.read_region(37, 11, 130, 90, 0.5)
    assert region.dtype == np.uint8
    np.testing.assert_array_equal(region, image[11:101, 37:167])


def test_properties_say_what_the_slide_is(write_slide):
    path = write_slide("a.svs", noise(128, 192), mpp=0.25, power=40)
    reader = open_openslide(path, TileConfig(), slide_id="S1")
    properties = reader.properties
    assert (properties.slide_id, properties.path) == ("S1", path)
    assert (properties.width_px, properties.height_px) == (192, 128)
    assert (properties.mpp, properties.mpp_source) == (0.25, "metadata")
    assert (properties.vendor, properties.objective_power) == ("aperio", 40)
    assert properties.level_downsamples == (1.0,)
    assert properties.reader.startswith("openslide ")
    assert not properties.synthetic
    drawn = write_slide("b.svs", noise(128, 192), more={"Synthetic": "medkd"})
    assert open_openslide(drawn, TileConfig()).properties.synthetic


def test_the_next_finer_level_is_read(write_slide):
    red, green, blue = (
        np.full((512 // k, 512 // k, 3), colour, np.uint8)
        for k, colour in ((1, (255, 0, 0)), (2, (0, 255, 0)), (4, (0, 0, 255)))
    )
    reader = open_openslide(write_slide("a.svs", red, green, blue), TileConfig())
    for mpp, channel in ((0.5, 0), (0.95, 0), (1.0, 1), (1.9, 1), (2.0, 2), (8.0, 2)):
        pixel = reader.read_region(0, 0, 8, 8, mpp)[4, 4]
        assert pixel.argmax() == channel, mpp


@pytest.mark.parametrize("mpp", [0.6, 1.0, 1.3, 2.0])
@pytest.mark.parametrize("x", [0, 3, 64])
def test_geometry_is_right_to_a_fraction_of_a_pixel(write_slide, mpp, x):
    """On a ramp, an area average is the ramp's value at the output pixel's centre."""
    ramp = np.arange(512) / 2.01
    level0 = np.broadcast_to(np.round(ramp)[None, :, None], (512, 512, 3)).astype(np.uint8)
    level1 = np.broadcast_to(
        np.round(ramp.reshape(-1, 2).mean(1))[None, :, None], (256, 256, 3)
    ).astype(np.uint8)
    reader = open_openslide(write_slide("a.svs", level0, level1), TileConfig())
    region = reader.read_region(x, 0, 64, 64, mpp).astype(float)
    scale = mpp / 0.5
    expected = (x + (np.arange(64) + 0.5) * scale - 0.5) / 2.01
    # The filter is cut off at the region's edge, so the outermost pixels lean inwards.
    np.testing.assert_allclose(region[32, 2:-2, 0], expected[2:-2], atol=1.0)


def test_reduction_averages_areas(write_slide):
    """A chequerboard of single pixels becomes its mean grey: nothing is dropped or aliased."""
    board = np.indices((256, 256)).sum(0) % 2 * 200
    image = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    reader = open_openslide(write_slide("a.svs", image), TileConfig())
    for mpp in (1.0, 1.7, 4.0):
        region = reader.read_region(0, 0, 16, 16, mpp)
        np.testing.assert_allclose(region[2:-2, 2:-2], 100, atol=8)


def test_beyond_the_bounds_nothing_is_invented(write_slide):
    reader = open_openslide(write_slide("a.svs", noise(128, 128)), TileConfig())
    assert reader.read_region(64, 64, 64, 64, 0.5).shape == (64, 64, 3)
    for x, y in ((65, 64), (64, 65), (-1, 0)):
        with pytest.raises(ValueError, match="outside the slide's 128 x 128 px"):
            reader.read_region(x, y, 64, 64, 0.5)


def test_what_was_not_scanned_is_white(write_slide, monkeypatch):
    reader = open_openslide(write_slide("a.svs", noise(128, 128)), TileConfig())
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    half.paste((10, 20, 30, 255), (0, 0, 4, 8))
    monkeypatch.setattr(reader._handle, "read_region", lambda *_: half)
    region = reader.read_region(0, 0, 8, 8, 0.5)
    assert region[0, 0].tolist() == [10, 20, 30]
    assert region[0, 7].tolist() == [255, 255, 255]


def test_reading_goes_on_after_an_unreadable_region(write_slide, damage):
    image = noise(256, 256)
    path = write_slide("a.svs", image)
    damage(path, [5])  # of 4 x 4 tiles: x and y from 64 to 128
    reader = open_openslide(path, TileConfig())
    for _ in range(2):
        np.testing.assert_array_equal(reader.read_region(0, 0, 64, 64, 0.5), image[:64, :64])
        with pytest.raises(RegionUnreadableError):
            reader.read_region(70, 70, 32, 32, 0.5)
        np.testing.assert_array_equal(
            reader.read_region(128, 64, 64, 64, 0.5), image[64:128, 128:192]
        )


def test_thumbnail_is_the_whole_slide_in_blocks(write_slide, monkeypatch):
    image = np.zeros((512, 700, 3), np.uint8)
    image[:, :320] = 200
    path = write_slide("a.svs", image)
    reader = open_openslide(path, TileConfig())
    whole, readable = reader.thumbnail(8.0)
    assert whole.shape == (32, 43, 3)  # 512 / 16 and 700 / 16 = 43.75
    assert readable.all()
    assert (whole[:, :19] == 200).all()
    assert (whole[:, 21:] == 0).all()
    monkeypatch.setattr("medkd.slides.regions._BLOCK_PX", 256)
    blocks, _ = reader.thumbnail(8.0)
    assert np.abs(blocks.astype(int) - whole).max() <= 40  # only where a filter was cut off
    assert (blocks != whole).mean() < 0.1


def test_thumbnail_says_what_it_could_not_read(write_slide, damage, monkeypatch):
    monkeypatch.setattr("medkd.slides.regions._SMALLEST_BLOCK_PX", 64)
    path = write_slide("a.svs", np.full((512, 512, 3), 90, np.uint8))
    damage(path, [0])
    image, readable = open_openslide(path, TileConfig()).thumbnail(8.0)
    assert image.shape == (32, 32, 3)
    assert not readable[:4, :4].any()  # the 64 px of the damaged tile
    assert readable.sum() == 32 * 32 - 4 * 4
    assert (image[~readable] == 255).all()
    assert (image[readable] == 90).all()


def test_fingerprint_is_of_the_content(write_slide):
    image = noise(256, 256)
    first = write_slide("a.svs", image)
    copy = write_slide("b.svs", image)
    assert fingerprint(first) == fingerprint(copy)
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    assert fingerprint(first) != fingerprint(copy)
    first.write_bytes(first.read_bytes()[:-1])
    assert fingerprint(first) != fingerprint(copy)


def test_missing_file(tmp_path):
    error = refused(tmp_path / "nowhere.svs")
    assert error.reason == "no_such_file"
    assert str(error).endswith("no such file. Correct the slide's path.")


def test_folder(tmp_path):
    error = refused(tmp_path)
    assert error.reason == "is_a_folder"
    assert "is a folder, not a slide. Name the slide's file" in str(error)


def test_text_and_empty_file(tmp_path):
    (tmp_path / "text.svs").write_text("not a slide")
    error = refused(tmp_path / "text.svs")
    assert error.reason == "unknown_format"
    assert "is not a slide in a format that OpenSlide knows" in str(error)
    assert "copied whole" in str(error)
    (tmp_path / "empty.svs").touch()
    error = refused(tmp_path / "empty.svs")
    assert error.reason == "empty_file"
    assert str(error).endswith("is an empty file. Copy the slide again.")


def test_untiled_tiff(tmp_path):
    tifffile.imwrite(tmp_path / "plain.tif", noise(100, 100), photometric="rgb")
    error = refused(tmp_path / "plain.tif")
    assert error.reason == "untiled_tiff"
    assert "is an untiled TIFF" in str(error)
    assert "Convert it to a pyramidal tiled TIFF" in str(error)


def test_truncated_slide_is_refused_or_unreadable(write_slide):
    path = write_slide("a.svs", noise(256, 256))
    path.write_bytes(path.read_bytes()[:5000])
    assert refused(path).reason in ("unknown_format", "openslide_refused")


_OPEN = """
import os, sys
from pathlib import Path
from medkd.config import TileConfig
from medkd.errors import SlideError
from medkd.slides.openslide_reader import open_openslide
path = Path(sys.argv[1])
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)  # root may read everything
try:
    open_openslide(path, TileConfig())
except SlideError as error:
    print(error.reason, error)
"""


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="permissions of POSIX")
@pytest.mark.parametrize("closed", ["file", "folder"])
def test_no_permission_to_read(write_slide, tmp_path, closed):
    path = write_slide("a.svs", noise(64, 64))
    for folder in tmp_path.parents[:2]:
        folder.chmod(0o755)  # so that nothing else refuses
    tmp_path.chmod(0o755 if closed == "file" else 0o700)
    path.chmod(0 if closed == "file" else 0o644)
    if closed == "folder" and os.getuid() != 0:
        tmp_path.chmod(0o600)
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, path], capture_output=True, text=True, check=False
    )
    tmp_path.chmod(0o755)
    assert done.stdout.startswith(f"no_permission {path}: no permission to read it. Give the user")


def test_slides_import_no_training_library():
    modules = ("tile_stage", "tiling", "store", "openslide_reader", "tile_report")
    code = "import sys\n" + "".join(f"import medkd.slides.{name}\n" for name in modules)
    code += "print([m for m in ('torch', 'monai', 'mlflow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
