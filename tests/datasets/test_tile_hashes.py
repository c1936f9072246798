"""Hashes of a store are kept beside it, and made anew for what changed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medkd.datasets.perceptual_hash import hash_distance, hash_tile
from medkd.datasets.tile_hashes import HASHES_NAME, GreyTiles, TilePlace, tile_hashes
from medkd.errors import StageError
from medkd.slides.store import StoredTile, encode_tile, writing_store
from tests.datasets.drawn_tiles import textured


def write_slide(folder: Path, name: str, seeds: list[int]) -> list[TilePlace]:
    path = folder / f"{name}.zip"
    with writing_store(path) as store:
        for number, seed in enumerate(seeds):
            store.add(StoredTile(number * 96, 0, 1, 1), encode_tile(textured(seed), 90))
    return [(str(path), number * 96, 0) for number in range(len(seeds))]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[TilePlace]:
    """The tiles that were read, not taken from what is kept."""
    seen: list[TilePlace] = []
    plain = GreyTiles.read

    def noted(self: GreyTiles, place: TilePlace, *, least_px: int = 0) -> tuple[np.ndarray, bytes]:
        seen.append(place)
        return plain(self, place, least_px=least_px)

    monkeypatch.setattr(GreyTiles, "read", noted)
    return seen


def test_only_what_is_new_is_read(tmp_path: Path, read: list[TilePlace]) -> None:
    first, second = write_slide(tmp_path, "a", [1, 2, 3]), write_slide(tmp_path, "b", [4, 2])
    table = tile_hashes(first + second, tmp_path)
    assert sorted(read) == first + second
    for row, seed in enumerate([1, 2, 3, 4, 2]):
        expected = np.array([hash_tile(textured(seed)[..., 0])[0]])
        assert hash_distance(table["hash"].to_numpy()[[row]], expected)[0] <= 4
    assert table["digest"].nunique() == 4
    assert table["digest"][1] == table["digest"][4]
    read.clear()
    pd.testing.assert_frame_equal(tile_hashes(first + second, tmp_path), table)
    assert read == []
    turned = tile_hashes([*second, *first][::-1], tmp_path)
    assert turned["hash"].tolist() == [*table["hash"][3:], *table["hash"][:3]][::-1]
    assert read == []

    write_slide(tmp_path, "a", [1, 5, 3])
    os.utime(tmp_path / "a.zip", ns=(1, 1))
    changed = tile_hashes(first + second, tmp_path)
    assert sorted(read) == first
    assert changed["hash"][1] != table["hash"][1]
    assert changed["hash"][[0, 2, 3, 4]].tolist() == table["hash"][[0, 2, 3, 4]].tolist()
    third = write_slide(tmp_path, "c", [6])
    tile_hashes(third, tmp_path)
    assert len(pd.read_parquet(tmp_path / HASHES_NAME)) == 6


def test_a_damaged_table_is_made_again(tmp_path: Path, read: list[TilePlace]) -> None:
    places = write_slide(tmp_path, "a", [1, 2])
    table = tile_hashes(places, tmp_path)
    for spoilt in (b"no parquet", b""):
        (tmp_path / HASHES_NAME).write_bytes(spoilt)
        read.clear()
        pd.testing.assert_frame_equal(tile_hashes(places, tmp_path), table)
        assert sorted(read) == places


def test_a_store_that_cannot_be_written_to_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = write_slide(tmp_path, "a", [1, 2])
    (tmp_path / HASHES_NAME).mkdir()
    assert len(tile_hashes(places, tmp_path)) == 2
    told = capsys.readouterr().err
    assert f"warning: {tmp_path / HASHES_NAME}: a folder stands where a file is needed." in told
    assert "Hashes of tiles are not kept, and are made again next time." in told


def test_images_of_any_kind(tmp_path: Path) -> None:
    places = []
    for ending in ("png", "jpg", "tif"):
        path = tmp_path / f"tile.{ending}"
        Image.fromarray(textured(1)).save(path)
        places.append((str(path), 0, -1))
    table = tile_hashes(places, tmp_path)
    png, jpg, tif = table["hash"]
    assert png == tif
    assert hash_distance(np.array([png]), np.array([jpg]))[0] <= 4
    assert table["digest"][0] == table["digest"][2] != table["digest"][1]


def test_a_tile_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 no image")
    with pytest.raises(StageError, match=r"bad\.jpg: the tile at \(0, -1\) cannot be read: "):
        tile_hashes([(str(tmp_path / "bad.jpg"), 0, -1)], tmp_path)
    with pytest.raises(StageError, match=r"gone\.zip: cannot be read: No such file"):
        tile_hashes([(str(tmp_path / "gone.zip"), 0, 0)], tmp_path)
