"""Files are whole or absent."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from medkd.errors import OutputError, SlideError
from medkd.files import (
    atomic_path,
    make_folder,
    remove_stale_temporaries,
    sha256_of_file,
    sha256_of_json,
    write_json,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_text(path, "old")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_not_a_number_never_gets_into_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"score": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_full_disk(tmp_path: Path) -> None:
    # A real refusal of the system: /dev/full answers every write with "no space left".
    with pytest.raises(OutputError) as error, atomic_path(tmp_path / "a.bin"):
        Path("/dev/full").write_bytes(b"x")
    assert str(error.value).startswith(f"{tmp_path}/a.bin: no space left on the disk. Free some")
    assert list(tmp_path.iterdir()) == []


def test_no_permission(tmp_path: Path) -> None:
    # A file where a folder is needed, and a folder that a plain user may not write to.
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a file stands where a folder is needed"):
        make_folder(tmp_path / "file" / "deeper")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from medkd.errors import OutputError\n"
        "from medkd.files import make_folder, write_text\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "for act in (lambda: make_folder(Path(sys.argv[1])),\n"
        "            lambda: write_text(Path(sys.argv[1]) / 'a', 'b')):\n"
        "    try: act()\n"
        "    except OutputError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(closed)], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done
    assert all("no permission to write. Choose another output folder" in line for line in lines)


def test_stale_temporaries_of_a_dead_process_go(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = tmp_path / f".a.json.{dead.pid}.medkd-tmp"
    stale.write_text("half")
    living = tmp_path / f".b.json.{os.getpid()}.medkd-tmp"
    living.write_text("being written")
    remove_stale_temporaries(tmp_path)
    assert list(tmp_path.iterdir()) == [living]


def test_checksums(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of_file(path) == known
    assert sha256_of_json({"a": 1, "b": 2}) == sha256_of_json({"b": 2, "a": 1})


def test_errors_survive_a_process() -> None:
    error = pickle.loads(
        pickle.dumps(SlideError("missing_mpp", "has no mpp", where="a.svs", remedy="Give --mpp."))
    )
    assert (str(error), error.reason) == ("a.svs: has no mpp. Give --mpp.", "missing_mpp")
