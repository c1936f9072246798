"""When a slide has arrived: nobody wrote to any of its files for a while."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from medkd.inference.watch_folder import Look, WatchedFolder
from medkd.slides.openslide_reader import fingerprint
from tests.inference.folder_slides import touch, write_dicom


class Clock:
    """Looks at a folder, and remembers what arrived as the watch would."""

    def __init__(self, folder: Path, settle_s: float = 10.0) -> None:
        self.folder = WatchedFolder(folder, settle_s)
        self.known: dict[str, str] = {}
        self.last = Look()

    def at(self, now: float, *, busy: str = "") -> list[str]:
        """What arrives at ``now`` seconds."""
        self.last = self.folder.look(self.known, now, busy=busy)
        for arrival in self.last.arrivals:
            self.known[arrival.key] = arrival.signature
        return [arrival.key for arrival in self.last.arrivals]


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def test_a_slide_arrives_once_nobody_wrote_to_it_for_a_while(tmp_path):
    clock = Clock(tmp_path)
    touch(tmp_path, "a.svs")
    assert clock.at(0) == []
    assert clock.last.settling == ("a.svs",)
    assert clock.at(9) == []
    grow(tmp_path / "a.svs")
    assert clock.at(12) == []  # it grew: from here on another 10 s
    assert clock.at(21.9) == []
    assert clock.at(22) == ["a.svs"]
    assert (clock.at(23), clock.last.settling) == ([], ())


def test_a_file_of_full_size_that_is_still_being_filled_is_not_there_yet(tmp_path):
    """Some scanners and copying programs reserve the whole file first."""
    clock = Clock(tmp_path)
    touch(tmp_path, "a.svs")
    clock.at(0)
    os.utime(tmp_path / "a.svs", ns=(1, 1))
    assert clock.at(10) == []
    assert clock.at(20) == ["a.svs"]


def test_a_slide_that_was_changed_arrives_again(tmp_path):
    clock = Clock(tmp_path)
    touch(tmp_path, "a.svs")
    clock.at(0)
    assert clock.at(10) == ["a.svs"]
    first = clock.last.arrivals[0]
    assert first.fingerprint == fingerprint(tmp_path / "a.svs")
    grow(tmp_path / "a.svs")
    assert clock.at(20) == []
    assert clock.at(30, busy="a.svs") == []  # not while it is being called
    assert clock.at(31) == ["a.svs"]
    assert clock.last.arrivals[0].fingerprint not in ("", first.fingerprint)


def test_a_slide_of_several_files_waits_for_all_of_them(tmp_path):
    clock = Clock(tmp_path)
    touch(tmp_path, "m.mrxs", "m/Slidedat.ini")
    clock.at(0)
    touch(tmp_path, "m/Data0000.dat")
    assert clock.at(10) == []
    grow(tmp_path / "m" / "Data0000.dat")
    assert clock.at(19) == []
    assert clock.at(29) == ["m.mrxs"]
    mark = clock.last.arrivals[0].fingerprint
    grow(tmp_path / "m" / "Data0000.dat")  # the .mrxs is as it was
    clock.at(30)
    assert clock.at(40) == ["m.mrxs"]
    assert clock.last.arrivals[0].fingerprint != mark


def test_a_dicom_series_is_the_same_slide_whichever_file_comes_first(tmp_path, flat_image):
    clock = Clock(tmp_path)
    small = flat_image[::2, ::2]
    write_dicom(tmp_path / "case" / "5.dcm", flat_image, series="1.2.5")
    clock.at(0)
    assert clock.at(10) == ["case/1.2.5"]
    write_dicom(tmp_path / "case" / "1.dcm", small, series="1.2.5", number=2)
    clock.at(11)
    assert clock.at(21) == ["case/1.2.5"]
    assert clock.last.present["case/1.2.5"].path.name == "1.dcm"


def test_a_slide_that_went_away_begins_anew(tmp_path):
    clock = Clock(tmp_path)
    touch(tmp_path, "a.svs")
    clock.at(0)
    (tmp_path / "a.svs").unlink()
    assert (clock.at(5), clock.last.settling) == ([], ())
    touch(tmp_path, "a.svs")
    assert clock.at(12) == []
    assert clock.at(22) == ["a.svs"]


def test_a_folder_that_is_gone_is_told_and_nothing_is_forgotten(tmp_path):
    clock = Clock(tmp_path / "in")
    touch(tmp_path, "in/a.svs")
    clock.at(0)
    clock.at(10)
    shutil.move(tmp_path / "in", tmp_path / "elsewhere")
    assert clock.at(20) == []
    assert clock.last.problem == (f"{tmp_path / 'in'}: no such folder. Mount it, or make it again.")
    shutil.move(tmp_path / "elsewhere", tmp_path / "in")
    assert clock.at(30) == []
    assert list(clock.last.present) == ["a.svs"]


def test_a_drive_that_fails_while_it_is_looked_at_is_told(tmp_path, monkeypatch):
    def stale(folder):
        raise OSError(116, "Stale file handle", str(folder))

    clock = Clock(tmp_path)
    monkeypatch.setattr("medkd.inference.watch_folder.slides_in", stale)
    assert clock.at(0) == []
    assert clock.last.problem == f"{tmp_path}: cannot be read: Stale file handle."


@pytest.mark.skipif(os.name == "nt", reason="names are UTF-16 there")
def test_a_name_that_is_no_utf8_has_a_key_that_is(tmp_path):
    clock = Clock(tmp_path, settle_s=0)
    raw = os.fsencode(tmp_path) + b"/F\xe4lle.svs"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    assert clock.at(0) == ["F\\xe4lle.svs"]
    assert os.fsencode(clock.last.present["F\\xe4lle.svs"].path) == raw
