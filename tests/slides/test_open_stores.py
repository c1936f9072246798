"""Tiles read by the places that the index gives: what is checked, and how many files are open."""

from __future__ import annotations

import multiprocessing
import pickle
import zipfile
from pathlib import Path

import pytest

from medkd.errors import StageError
from medkd.slides.open_stores import OpenStores, TileRange
from medkd.slides.store import StoredTile, TileStore, writing_store

JPEGS = {0: b"first", 64: b"the second"}
# The head of an entry takes 30 bytes, the name of the first 8.
FIRST, SECOND = TileRange(0, 5), TileRange(30 + 8 + 5, 10)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A store of two tiles whose "JPEGs" are short texts."""
    return write(tmp_path / "s.zip")


def write(path: Path) -> str:
    with writing_store(path) as store:
        for x, jpeg in JPEGS.items():
            store.add(StoredTile(x, 10, 1.0, 1.0), jpeg)
    return str(path)


def test_tiles_are_read_from_their_places(path: str) -> None:
    stores = OpenStores()
    assert stores.read_bytes(path, 64, 10, SECOND) == b"the second"
    assert stores.read_bytes(path, 0, 10, FIRST) == b"first"
    assert len(stores) == 1
    stores.close()
    assert len(stores) == 0
    assert stores.read_bytes(path, 0, 10, FIRST) == b"first"


def test_few_files_stay_open(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{number}.zip") for number in range(5)]
    stores = OpenStores(2)
    open_files = Path("/proc/self/fd")
    before = len(list(open_files.iterdir())) if open_files.is_dir() else None
    for path in paths * 2:
        assert stores.read_bytes(path, 0, 10, FIRST) == b"first"
    assert len(stores) == 2
    if before is not None:
        assert len(list(open_files.iterdir())) == before + 2
    with pytest.raises(ValueError, match="at least 1, not 0"):
        OpenStores(0)


@pytest.mark.parametrize(
    ("x", "place"),
    [
        (1, FIRST),  # a tile of another name
        (0, TileRange(0, 6)),  # of another length
        (0, TileRange(3, 5)),  # not where an entry begins
    ],
)
def test_another_file_than_the_index_was_written_for_is_told(
    path: str, x: int, place: TileRange
) -> None:
    with pytest.raises(StageError) as caught:
        OpenStores().read_bytes(path, x, 10, place)
    assert str(caught.value) == (
        f"{path}: is not the store that the index was written for: the tile at ({x}, 10) is "
        "elsewhere. Run 'medkd tile' again: it renews the index and cuts no finished slide again."
    )


def test_damage_inside_a_tile_is_found(path: str) -> None:
    content = bytearray(Path(path).read_bytes())
    content[40] ^= 1
    Path(path).write_bytes(content)
    with pytest.raises(StageError) as caught:
        OpenStores().read_bytes(path, 0, 10, FIRST)
    assert str(caught.value) == (
        f"{path}: is damaged at (0, 10): its checksum does not fit. "
        "Delete the file and run 'medkd tile' again."
    )


@pytest.mark.parametrize("kept_bytes", [0, 30, 42])
def test_a_store_that_was_cut_short_is_told(path: str, kept_bytes: int) -> None:
    """The first tile's JPEG ends at byte 30 + 8 + 5."""
    Path(path).write_bytes(Path(path).read_bytes()[:kept_bytes])
    with pytest.raises(StageError) as caught:
        OpenStores().read_bytes(path, 0, 10, FIRST)
    assert str(caught.value) == (
        f"{path}: ends before the tile at (0, 10) does. Delete the file and run 'medkd tile' again."
    )


def test_no_store_is_told(tmp_path: Path) -> None:
    path = str(tmp_path / "gone.zip")
    with pytest.raises(StageError) as caught:
        OpenStores().read_bytes(path, 0, 10, FIRST)
    assert str(caught.value) == f"{path}: no such tile store. Run 'medkd tile' again."


def test_stores_that_other_tools_wrote(tmp_path: Path) -> None:
    """Further fields before the JPEG are skipped; a compressed store is refused."""
    path = tmp_path / "s.zip"
    entry = zipfile.ZipInfo("0_10.jpg")
    entry.extra = b"\x99\x99\x02\x00ab"
    entry.comment = b"tissue_fraction=1 focus=1"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry, b"first")
    assert OpenStores().read_bytes(str(path), 0, 10, FIRST) == b"first"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0_10.jpg", b"first")
    with pytest.raises(StageError) as caught:
        TileStore(path).table()
    assert str(caught.value) == (
        f"{path}: was written by another tool: its tiles are compressed. "
        "Delete the file and run 'medkd tile' again."
    )
    with pytest.raises(StageError, match="is elsewhere"):
        OpenStores().read_bytes(str(path), 0, 10, FIRST)


def _read_in_child(stores: OpenStores, path: str, answer) -> None:
    open_before = len(stores)
    answer.send((open_before, stores.read_bytes(path, 0, 10, FIRST), len(stores)))


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_each_process_opens_files_of_its_own(path: str, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    stores = OpenStores()
    stores.read_bytes(path, 0, 10, FIRST)
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    process = context.Process(target=_read_in_child, args=(stores, path, there))
    process.start()
    assert here.poll(60)
    assert here.recv() == (0, b"first", 1)
    process.join()
    assert stores.read_bytes(path, 0, 10, FIRST) == b"first"


def test_pickled_stores_open_nothing() -> None:
    stores = pickle.loads(pickle.dumps(OpenStores(3)))
    assert len(stores) == 0
