"""A new version beside the old: whole or absent, never over anything."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medkd.errors import ModelPackageError, OutputError
from medkd.inference import new_version
from medkd.inference.new_version import check_new_folder, version_name, write_new_version
from medkd.inference.package import load_package


@pytest.fixture
def old(package_folder, tmp_path):
    return load_package(shutil.copytree(package_folder, tmp_path / "old"))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_every_file_is_kept_and_the_old_package_left(old, tmp_path):
    before = contents(old.folder)
    new = write_new_version(old, tmp_path / "deep" / "new", {"version": "2"})
    assert contents(old.folder) == before
    assert new.folder == tmp_path / "deep" / "new"
    assert new == load_package(new.folder)
    assert new.manifest.version == "2"
    assert new.sha256 != old.sha256
    assert new.manifest.operating_point == old.manifest.operating_point
    after = contents(new.folder)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {
        "model.json",
        "model_card.md",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "old"]
    assert [path.name for path in new.folder.parent.iterdir()] == ["new"]


def test_nothing_is_written_over(old, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for name in ("old", "empty", "file", "dangling"):
        with pytest.raises(OutputError) as caught:
            write_new_version(old, tmp_path / name, {"version": "2"})
        assert str(caught.value) == (
            f"{tmp_path / name}: is there already, and no version of a model is written over. "
            "Name a folder that does not exist yet."
        )
    assert list((tmp_path / "empty").iterdir()) == []
    assert load_package(old.folder) == old


def test_another_process_that_was_faster_is_not_written_over(old, tmp_path, monkeypatch):
    out = tmp_path / "new"
    original = new_version.load_package

    def slow(folder):
        out.mkdir(exist_ok=True)
        (out / "model.json").write_text("of the other process")
        return original(folder)

    monkeypatch.setattr(new_version, "load_package", slow)
    with pytest.raises(OutputError, match="is there already"):
        write_new_version(old, out, {"version": "2"})
    assert contents(out) == {"model.json": b"of the other process"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


def test_not_into_the_old_package(old):
    with pytest.raises(OutputError) as caught:
        check_new_folder(old.folder / "v2", old.folder)
    assert str(caught.value) == (
        f"{old.folder / 'v2'}: lies in the model package {old.folder}, which is left as it is. "
        "Name a folder outside of it."
    )


def test_a_place_that_cannot_be_written(old, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="a file stands where a folder is needed"):
        write_new_version(old, tmp_path / "file" / "new", {"version": "2"})


def test_a_file_that_changes_while_it_is_read(old, tmp_path):
    (old.folder / "students" / "student1.onnx").write_bytes(b"other")
    with pytest.raises(ModelPackageError) as caught:
        write_new_version(old, tmp_path / "new", {"version": "2"})
    assert str(caught.value) == (
        f"{old.folder}: 'students/student1.onnx' changed while it was read. Get the package anew "
        "from where it was made."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


_KILLED = """
import os, signal, sys
from pathlib import Path
from medkd.inference import new_version
from medkd.inference.package import load_package
old, out = map(Path, sys.argv[1:])
package = load_package(old)
new_version.load_package = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
new_version.write_new_version(package, out, {"version": "2"})
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_killed_in_the_middle_there_is_no_half_package(old, tmp_path):
    """Killed when all is written but not in place: the next try clears up and succeeds."""
    out = tmp_path / "new"
    done = subprocess.run([sys.executable, "-c", _KILLED, str(old.folder), str(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    (left,) = (path.name for path in tmp_path.iterdir() if path.name != "old")
    assert left.startswith(".new.")
    assert load_package(old.folder) == old
    write_new_version(old, out, {"version": "2"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


def test_what_a_living_process_is_writing_is_left(old, tmp_path):
    theirs = tmp_path / f".new.{os.getppid()}.unfinished"
    theirs.mkdir()
    write_new_version(old, tmp_path / "new", {"version": "2"})
    assert theirs.is_dir()


@pytest.mark.parametrize(
    ("version", "words", "begins"),
    [
        ("1", "St Mary, scanner GT450", "1+st-mary-scanner-gt450."),
        ("1+st-mary.3f2a91c0", "Süd", "1+st-mary.3f2a91c0.sud."),
        ("2", "東京", "2+"),
        ("2", "x" * 60, f"2+{'x' * 40}."),
    ],
)
def test_the_version_says_what_it_is_made_from_and_for(version, words, begins):
    name = version_name(version, words, {"threshold": 0.5})
    # The digits are those of printf '{"threshold":0.5}' | sha256sum.
    assert name == f"{begins}78223d46"
    assert version_name(version, words, {"threshold": 0.51}) != name
