from __future__ import annotations

import multiprocessing
import pickle
import zipfile

import numpy as np
import pytest

from medkd.errors import StageError
from medkd.slides.store import (
    INDEX_COLUMNS,
    RANGE_COLUMNS,
    StoredTile,
    TileStore,
    decode_tile,
    encode_tile,
    read_index,
    write_index,
    writing_store,
)


def write_store(path, tiles):
    with writing_store(path) as store:
        for x, y, pixels in tiles:
            store.add(StoredTile(x, y, 0.75, 0.125), encode_tile(pixels, 90))


def grey(level: int) -> np.ndarray:
    return np.full((32, 32, 3), level, np.uint8)


def test_round_trip(tmp_path):
    path = tmp_path / "s.zip"
    write_store(path, [(0, 0, grey(10)), (448, 224, grey(200))])
    with TileStore(path) as store:
        assert store.tiles() == [StoredTile(0, 0, 0.75, 0.125), StoredTile(448, 224, 0.75, 0.125)]
        tile = store.read(448, 224)
        assert tile.dtype == np.uint8
        assert tile.shape == (32, 32, 3)
        assert (tile == 200).all()
        assert store.read_bytes(0, 0) == encode_tile(grey(10), 90)


def test_colour_order_and_resolution_survive():
    """Single-pixel columns of two stains: 4:2:0 would average their colours away."""
    pixels = np.empty((64, 64, 3), np.uint8)
    pixels[:, ::2] = (120, 70, 150)
    pixels[:, 1::2] = (215, 140, 180)
    decoded = decode_tile(encode_tile(pixels, 95)).astype(int)
    assert np.abs(decoded - pixels).max() <= 12
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    assert decode_tile(encode_tile(red, 95))[8, 8, 0] > 240


def test_same_tiles_give_the_same_bytes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("a.zip", "b.zip"):
        write_store(tmp_path / name, [(0, 0, noise), (64, 0, grey(1))])
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_any_zip_tool_reads_it(tmp_path):
    write_store(tmp_path / "s.zip", [(7, 9, grey(50))])
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        assert archive.namelist() == ["7_9.jpg"]
        assert archive.getinfo("7_9.jpg").compress_type == zipfile.ZIP_STORED
        assert archive.read("7_9.jpg")[:2] == b"\xff\xd8"
        assert archive.testzip() is None


def _read_in_child(store, answer):
    answer.send(int(store.read(0, 0)[0, 0, 0]))


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_an_open_store_goes_to_other_processes(tmp_path, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    write_store(tmp_path / "s.zip", [(0, 0, grey(77)), (1, 0, grey(99))])
    store = TileStore(str(tmp_path / "s.zip"))
    assert store.read(1, 0)[0, 0, 0] == 99
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    process = context.Process(target=_read_in_child, args=(store, there))
    process.start()
    assert here.poll(30)
    assert here.recv() == 77
    process.join()
    assert store.read(0, 0)[0, 0, 0] == 77


def test_pickling_does_not_open(tmp_path):
    store = pickle.loads(pickle.dumps(TileStore(tmp_path / "later.zip")))
    write_store(tmp_path / "later.zip", [(0, 0, grey(5))])
    assert store.read(0, 0)[0, 0, 0] == 5


def test_a_failure_leaves_nothing_behind(tmp_path):
    path = tmp_path / "s.zip"
    write_store(path, [(0, 0, grey(5))])
    before = path.read_bytes()

    def fail():
        with writing_store(path) as store:
            store.add(StoredTile(0, 0, 1, 1), b"x")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["s.zip"]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("prepare", "what"),
    [
        (lambda path: None, "no such tile store"),
        (lambda path: path.write_text("text"), "is not a tile store"),
        (lambda path: path.mkdir(), "is not a tile store"),
        (lambda path: write_store(path, [(5, 5, grey(1))]), "has no tile at (0, 0)"),
    ],
)
def test_messages(tmp_path, prepare, what):
    path = tmp_path / "s.zip"
    prepare(path)
    with pytest.raises(StageError) as caught:
        TileStore(path).read(0, 0)
    text = str(caught.value)
    assert text.startswith(f"{path}: {what}")
    assert text.endswith("Delete the file and run 'medkd tile' again.")


def test_damage_inside_a_tile_is_found(tmp_path):
    path = tmp_path / "s.zip"
    write_store(path, [(0, 0, grey(1))])
    content = bytearray(path.read_bytes())
    content[100] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(StageError, match=r"is damaged at \(0, 0\)"):
        TileStore(path).read(0, 0)


def record(slide_id: str) -> dict:
    return {
        "slide_id": slide_id,
        "patient_id": f"P-{slide_id}",
        "parameters": {"mpp": 0.5, "size_px": 32},
    }


def test_index(tmp_path):
    write_store(tmp_path / "A.zip", [(0, 0, grey(1)), (32, 0, grey(1))])
    write_store(tmp_path / "B.zip", [(64, 96, grey(1))])
    write_store(tmp_path / "stale.zip", [(0, 0, grey(1))])
    written = write_index(tmp_path, [record("A"), record("B")])
    index = read_index(tmp_path)
    assert index.equals(written)
    assert {name: str(kind) for name, kind in index.dtypes.items()} == (
        INDEX_COLUMNS | RANGE_COLUMNS
    )
    assert list(index["slide_id"]) == ["A", "A", "B"]
    assert index.iloc[2].to_dict() == {
        "slide_id": "B",
        "patient_id": "P-B",
        "x": 64,
        "y": 96,
        "mpp": 0.5,
        "size_px": 32,
        "tissue_fraction": 0.75,
        "focus": 0.125,
        "offset_bytes": 0,
        "length_bytes": len(encode_tile(grey(1), 90)),
    }


def test_index_of_nothing_and_no_index(tmp_path):
    with pytest.raises(StageError) as caught:
        read_index(tmp_path)
    path = tmp_path / "index.parquet"
    assert str(caught.value) == f"{path}: no tiles are there yet. Run 'medkd tile' first."
    write_index(tmp_path, [])
    assert read_index(tmp_path).empty
    path.write_text("text")
    with pytest.raises(StageError, match="cannot be read"):
        read_index(tmp_path)
