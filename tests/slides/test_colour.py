"""ICC profiles: made here byte by byte, with their effect on sRGB worked out by hand."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile

from medkd.config import TileConfig
from medkd.datasets.tables import SlideRow
from medkd.errors import SlideError
from medkd.slides.openslide_reader import open_openslide
from medkd.slides.readers import open_reader
from medkd.slides.tile_stage import run_tile_stage

# What sRGB's red, green and blue are under the ICC's D50 light.
PRIMARIES = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))

IGNORE, APPLY = TileConfig(size_px=64), TileConfig(size_px=64, icc="apply")


def scanner_profile(gamma: float = 1.8, order: tuple[int, int, int] = (2, 1, 0)) -> bytes:
    """An ICC version 2 profile: channels with the primaries ``order`` and one gamma."""

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(values) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(number(value) for value in values)

    name = b"test scanner\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + b"\0" * 78
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = [(b"desc", text), (b"cprt", b"text\0\0\0\0none\0"), (b"wtpt", xyz((0.9642, 1, 0.8249)))]
    tags += [
        (b"%cXYZ" % channel, xyz(PRIMARIES[at])) for channel, at in zip(b"rgb", order, strict=True)
    ]
    tags += [(b"%cTRC" % channel, curve) for channel in b"rgb"]
    offset = 128 + 4 + 12 * len(tags)
    table, data = struct.pack(">I", len(tags)), b""
    for tag, content in tags:
        table += tag + struct.pack(">II", offset + len(data), len(content))
        data += content + b"\0" * (-len(content) % 4)
    header = struct.pack(">I4sI4s4s4s", offset + len(data), b"\0" * 4, 0x02100000, b"mntr",
                         b"RGB ", b"XYZ ")  # fmt: skip
    header += b"\0" * 12 + b"acsp" + b"\0" * 28 + number(0.9642) + number(1) + number(0.8249)
    return header.ljust(128, b"\0") + table + data


def to_srgb(pixels: np.ndarray) -> np.ndarray:
    """What such a profile means: blue and red exchanged, light by the power of 1.8."""
    light = (pixels[..., ::-1] / 255.0) ** 1.8
    return 255 * np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)


@pytest.fixture
def write_profiled(tmp_path):
    def write(name: str, image: np.ndarray, profile: bytes | None, compression="zlib") -> Path:
        path = tmp_path / name
        tifffile.imwrite(
            path,
            image,
            photometric="rgb",
            tile=(64, 64),
            compression=compression,
            description="Aperio Image Library v10.0.0\r\ntest|MPP = 0.5",
            metadata=None,
            iccprofile=profile,
        )
        return path

    return write


@pytest.fixture
def blocks() -> np.ndarray:
    """64 colours of H&E and others, blocks of 32 px."""
    colours = np.random.default_rng(0).integers(20, 250, (8, 8, 3)).astype(np.uint8)
    return colours.repeat(32, axis=0).repeat(32, axis=1)


def test_an_applied_profile_gives_srgb(write_profiled, blocks):
    path = write_profiled("a.svs", blocks, scanner_profile())
    reader = open_openslide(path, APPLY)
    region = reader.read_region(0, 0, 256, 256, 0.5)
    expected = to_srgb(blocks.astype(float))
    np.testing.assert_allclose(region, expected, atol=2)
    assert np.abs(region - blocks.astype(float)).max() > 50
    assert (reader.properties.icc, reader.properties.icc_description) == (
        "applied",
        "test scanner",
    )
    thumbnail, _ = reader.thumbnail(4.0)
    np.testing.assert_allclose(thumbnail[1::4, 1::4], expected[12::32, 12::32], atol=2)


def test_an_ignored_profile_leaves_pixels_and_is_named(write_profiled, blocks):
    reader = open_openslide(write_profiled("a.svs", blocks, scanner_profile()), IGNORE)
    np.testing.assert_array_equal(reader.read_region(0, 0, 256, 256, 0.5), blocks)
    assert (reader.properties.icc, reader.properties.icc_description) == (
        "ignored",
        "test scanner",
    )


def test_without_a_profile_apply_changes_nothing_and_says_so(write_profiled, blocks):
    path = write_profiled("a.svs", blocks, None)
    reader = open_openslide(path, APPLY)
    np.testing.assert_array_equal(reader.read_region(0, 0, 256, 256, 0.5), blocks)
    assert (reader.properties.icc, reader.properties.icc_description) == ("none", "")
    assert reader.warnings == ("it has no ICC profile: its colours are used as they are",)
    assert open_openslide(path, IGNORE).warnings == ()


def test_a_broken_profile_is_ignored_or_refused(write_profiled, blocks):
    path = write_profiled("a.svs", blocks, b"no profile at all, but of some length" * 8)
    reader = open_openslide(path, IGNORE)
    np.testing.assert_array_equal(reader.read_region(0, 0, 256, 256, 0.5), blocks)
    assert (reader.properties.icc, reader.properties.icc_description) == ("ignored", "unreadable")
    with pytest.raises(SlideError) as caught:
        open_openslide(path, APPLY)
    assert caught.value.reason == "unusable_icc_profile"
    assert str(caught.value).startswith(f"{path}: its ICC profile cannot be applied: ")
    assert "\n" not in str(caught.value)


def test_native_jpeg_tiles_are_left_to_openslide_where_a_profile_is_applied(write_profiled, blocks):
    path = write_profiled("a.svs", blocks, scanner_profile(), compression="jpeg")
    assert open_reader(path, IGNORE).properties.reader.startswith("native JPEG")
    applied = open_reader(path, APPLY)
    assert applied.properties.reader.startswith("openslide")
    assert applied.properties.reader_reason == "its ICC profile is applied"
    asked = APPLY.model_copy(update={"reader": "jpeg"})
    with pytest.raises(SlideError, match="its ICC profile is applied") as caught:
        open_reader(path, asked)
    assert caught.value.reason == "not_native_jpeg"


def test_the_stage_records_what_was_done_about_the_profile(write_profiled, tissue, tmp_path):
    """Primaries in their own order, and a gamma that leaves the tissue pink."""
    profile = scanner_profile(2.0, order=(0, 1, 2))
    path = write_profiled("S.svs", tissue(256, 256), profile)
    rows = [SlideRow(slide_id="S", path=path, patient_id="P", label="MSS")]
    folder = tmp_path / "tiles"
    for parameters, icc in ((IGNORE, "ignored"), (APPLY, "applied")):
        summary = run_tile_stage(rows, parameters, folder)
        assert summary.done == 1
        slide = json.loads((folder / "S.json").read_text())["slide"]
        assert (slide["icc"], slide["icc_description"]) == (icc, "test scanner")
    assert summary.redone == (("S", "tile.icc was ignore, is apply"),)


@pytest.mark.real_data
def test_real_profiles_are_found(real_slides):
    """A slide that is sRGB already stays as it is, to a rounding."""
    path = real_slides / "TCGA-CR-7395-01A-01-TS1.svs"
    plain = open_openslide(path, IGNORE, override_mpp=0.25)
    assert plain.properties.icc_description == "sRGB IEC61966-2.1"
    applied = open_openslide(path, APPLY, override_mpp=0.25)
    before = plain.read_region(2000, 1500, 200, 200, 0.25).astype(int)
    after = applied.read_region(2000, 1500, 200, 200, 0.25)
    assert np.abs(after - before).max() <= 3
    cmu = open_openslide(real_slides / "CMU-1-Small-Region.svs", IGNORE)
    assert cmu.properties.icc == "none"
