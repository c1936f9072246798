"""Frames of a small drawn video: which, when, and what of a damaged one."""

from __future__ import annotations

import sys
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from medkd.errors import ConfigError, StageError
from medkd.inference.video import Frames, expected_frames, frames, turned

av = pytest.importorskip("av")


def write_video(path: Path, pictures: list[np.ndarray], rate: int = 10) -> Path:
    """As lossless as the format allows: each picture RGB, uint8 height x width x 3."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "bgr0"
        stream.time_base = Fraction(1, rate)
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="bgr0")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """25 frames at 10 a second; the number of each is its grey."""
    return write_video(
        tmp_path / "clip.mkv", [np.full((16, 24, 3), n, np.uint8) for n in range(25)]
    )


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (Frames(), list(range(25))),
        (Frames(every=10), [0, 10, 20]),
        (Frames(fps=2), [0, 5, 10, 15, 20]),
        (Frames(fps=4), [0, 3, 5, 8, 10, 13, 15, 18, 20, 23]),  # the first at or after 0.25 s x n
        (Frames(fps=100), list(range(25))),
    ],
)
def test_which_frames(video: Path, wanted: Frames, numbers: list[int]) -> None:
    found = list(frames(video, wanted))
    assert [frame.number for frame in found] == numbers
    assert [frame.time_s for frame in found] == pytest.approx([n / 10 for n in numbers])
    assert all((frame.pixels == frame.number).all() for frame in found)
    assert found[0].pixels.shape == (16, 24, 3)
    assert expected_frames(video, wanted) == len(numbers)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"every": 0}, "--every: '0' is no number of frames. Use 1 or more."),
        ({"fps": 0.0}, "--fps: '0' is no rate. Use a number above 0."),
        (
            {"every": 2, "fps": 1.0},
            "medkd infer: --every and --fps both say which frames. Give one of them.",
        ),
    ],
)
def test_frames_that_cannot_be_asked_for(settings, told) -> None:
    with pytest.raises(ConfigError) as caught:
        Frames(**settings)
    assert str(caught.value) == told


def test_a_file_that_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"no video" * 100)
    assert expected_frames(path, Frames()) == 1
    with pytest.raises(StageError, match=r"clip\.mp4: cannot be decoded: .*Save the video again"):
        list(frames(path, Frames()))
    with pytest.raises(StageError, match=r"absent\.mp4: cannot be decoded: No such file"):
        list(frames(tmp_path / "absent.mp4", Frames()))


@pytest.mark.parametrize("ending", ["mkv", "avi"])
def test_a_video_that_was_cut_off_is_told_and_its_frames_are_given(tmp_path, ending) -> None:
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (24, 32, 3), np.uint8) for _ in range(40)]
    path = write_video(tmp_path / f"clip.{ending}", noise)
    assert len(list(frames(path, Frames()))) == 40
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    given: list[int] = []
    with pytest.raises(StageError) as caught:
        given.extend(frame.number for frame in frames(path, Frames()))
    assert given == list(range(len(given)))
    assert 15 <= len(given) <= 20
    told = f"{path}: ends at {given[-1] / 10:.1f} s of 4.0 s. Save the video again; what was found"
    assert str(caught.value) == f"{told} up to frame {given[-1]} is kept."


def test_a_sound_has_no_picture(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "sound.avi"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    with pytest.raises(StageError, match=r"sound\.avi: has no picture"):
        list(frames(tmp_path / "sound.avi", Frames()))


def test_pictures_are_turned_anticlockwise() -> None:
    picture = np.arange(6).reshape(2, 3, 1)
    assert turned(picture, 90.0)[..., 0].tolist() == [[2, 5], [1, 4], [0, 3]]
    assert turned(picture, -90)[..., 0].tolist() == [[3, 0], [4, 1], [5, 2]]
    assert turned(picture, 0)[..., 0].tolist() == picture[..., 0].tolist()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, video: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError) as caught:
        next(frames(video, Frames()))
    assert str(caught.value) == (
        "medkd infer: videos are read by PyAV, which is not installed. Install it: pip install "
        "'medkd[video]'."
    )
