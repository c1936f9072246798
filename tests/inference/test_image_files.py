"""Which files a detector looks at, and how they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medkd.errors import ConfigError, StageError
from medkd.inference.image_files import find_images, read_upright


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_folders_are_searched_and_files_taken_as_they_are(tmp_path) -> None:
    folder = tmp_path / "frames"
    touch(
        *(folder / name for name in ("b.PNG", "a.jpg", "sub/a.jpg", "sub/clip.mp4", "notes.txt")),
        folder / ".hidden.png",
        folder / ".thumbs" / "a.png",
        tmp_path / "named.dat",
    )
    found = find_images([tmp_path / "named.dat", folder, folder / "a.jpg"])
    assert [file.name for file in found.files] == [
        "named.dat", "a.jpg", "b.PNG", "sub/a.jpg", "sub/clip.mp4",
    ]  # fmt: skip
    assert [file.is_video for file in found.files] == [False, False, False, False, True]
    assert found.left_aside == 1


def test_pictures_of_an_earlier_result_are_not_looked_at(tmp_path) -> None:
    touch(tmp_path / "a.png", tmp_path / "found" / "drawn" / "a.png")
    (file,) = find_images([tmp_path], out=tmp_path / "b" / ".." / "found").files
    assert file.name == "a.png"
    assert len(find_images([tmp_path]).files) == 2


def test_two_files_of_one_name(tmp_path) -> None:
    touch(tmp_path / "one" / "a.png", tmp_path / "two" / "a.png")
    with pytest.raises(ConfigError) as caught:
        find_images([tmp_path / "one", tmp_path / "two"])
    assert str(caught.value) == (
        f"{tmp_path / 'two' / 'a.png'}: has the same name in the results as "
        f"{tmp_path / 'one' / 'a.png'}. Name the folder that both lie in, or give each an --out of "
        "its own."
    )


def test_nothing_to_look_at(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"medkd infer: there is no image to look at\. Name"):
        find_images([])
    with pytest.raises(ConfigError, match="there is no image to look at"):
        find_images([tmp_path])


def test_an_image_is_turned_as_viewers_turn_it(tmp_path) -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:5, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    seen = read_upright(tmp_path / "a.png")
    assert seen.shape == (30, 20, 3)
    # What was at the upper left is at the upper right.
    assert np.argwhere(seen[..., 0] == 255).min(0).tolist() == [0, 15]
    assert np.argwhere(seen[..., 0] == 255).max(0).tolist() == [9, 19]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_other_colours_become_rgb(tmp_path, mode) -> None:
    Image.new("RGB", (5, 4), (255, 255, 255)).convert(mode).save(tmp_path / "a.tif")
    assert read_upright(tmp_path / "a.tif").tolist() == np.full((4, 5, 3), 255).tolist()


def test_more_than_8_bits_are_refused_not_cut_off(tmp_path) -> None:
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(StageError, match=r"a\.png: has more than 8 bits a pixel .*I;16"):
        read_upright(tmp_path / "a.png")


def test_what_cannot_be_read_is_told_in_one_line(tmp_path) -> None:
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:1500])
    (tmp_path / "text.png").write_text("no image")
    for name, what in (
        ("cut.png", "cannot be decoded: "),
        ("text.png", "cannot be decoded: it is no image"),
        ("absent.png", "no such file"),
    ):
        with pytest.raises(StageError) as caught:
            read_upright(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {what}")
        assert "\n" not in str(caught.value)
