"""Pooled scores against pandas in memory, intervals against tiles drawn with replacement."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medkd.errors import StageError
from medkd.slide_level import prediction_file
from medkd.slide_level.pooling import pool_slide
from medkd.slide_level.score_interval import Interval
from medkd.slide_level.streaming import PooledPredictions, pool_predictions


@pytest.fixture(scope="module", autouse=True)
def _small_parts() -> Iterator[None]:
    """Every row group is a part of its own, as in a file of many millions of rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction_file, "_PART_ROWS", 1)
        yield


NETWORKS = ("student_0", "student_1", "teacher")
STUDENTS = NETWORKS[:2]
OPTIONS = {"resamples": 400, "interval": Interval(0.95)}


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """12 slides of 8 patients, 30 to 250 tiles, three networks that partly agree."""
    random = np.random.default_rng(0)
    parts = []
    for number in range(12):
        tiles = int(random.integers(30, 250))
        shared = random.normal(number / 6 - 1, 1, tiles)
        for network in NETWORKS:
            logits = shared + random.normal(0, 0.5, tiles)
            parts.append(
                pd.DataFrame(
                    {
                        "slide_id": f"s{number:02d}",
                        "patient_id": f"p{number % 8}",
                        "role": ("test", "validation")[number % 8 % 2],
                        "x": np.arange(tiles, dtype="int32") % 20 * 224,
                        "y": np.arange(tiles, dtype="int32") // 20 * 224,
                        "network": network,
                        "probability": (1 / (1 + np.exp(-logits))).astype("float32"),
                    }
                )
            )
    return pd.concat(parts, ignore_index=True).sort_values(
        "network", kind="stable", ignore_index=True
    )


@pytest.fixture(scope="module")
def path(rows: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "predictions.parquet"
    rows.to_parquet(path, index=False, row_group_size=500)
    return path


@pytest.fixture(scope="module")
def pooled(path: Path) -> PooledPredictions:
    return pool_predictions(path, STUDENTS, **OPTIONS)


@pytest.mark.parametrize("key", ["slide_id", "patient_id"])
def test_means_are_those_of_float64_in_memory(
    rows: pd.DataFrame, pooled: PooledPredictions, key: str
) -> None:
    found = (pooled.slides if key == "slide_id" else pooled.patients).set_index([key, "network"])
    values = rows.assign(probability=rows["probability"].astype("float64"))
    for (name, network), mean in values.groupby([key, "network"])["probability"].mean().items():
        assert found.loc[(name, network), "score"] == pytest.approx(mean, abs=1e-14)
    shipped = values[values["network"].isin(STUDENTS)].groupby(key)["probability"].mean()
    tiles = values[values["network"] == "teacher"].groupby(key).size()
    means = values.groupby([key, "network"])["probability"].mean().unstack()
    for name in shipped.index:
        row = found.loc[(name, "ensemble")]
        assert row["score"] == pytest.approx(shipped[name], abs=1e-14)
        assert row["tiles"] == tiles[name]
        spread = abs(means.loc[name, "student_0"] - means.loc[name, "student_1"])
        assert row["disagreement"] == pytest.approx(spread, abs=1e-14)


def test_tables_have_the_columns_and_order_of_the_calls(pooled: PooledPredictions) -> None:
    keys = ["slide_id", "patient_id", "role"]
    values = ["network", "tiles", "score", "lower", "upper", "disagreement", "mutual_information"]
    assert list(pooled.slides) == keys + values
    assert list(pooled.patients) == keys[1:] + values
    assert pooled.slides["network"].tolist() == [*NETWORKS, "ensemble"] * 12
    assert pooled.slides["slide_id"].is_monotonic_increasing
    assert pooled.patients["patient_id"].is_monotonic_increasing
    assert pooled.slides["tiles"].dtype == "int32"
    alone = pooled.slides[pooled.slides["network"] != "ensemble"]
    assert alone["disagreement"].isna().all()


@pytest.mark.parametrize("key", ["slide_id", "patient_id"])
def test_intervals_are_those_of_tiles_drawn_with_replacement(
    path: Path, rows: pd.DataFrame, key: str
) -> None:
    """A patient's too: its slides must not share weights. In units of the standard error."""
    pooled = pool_predictions(path, STUDENTS, resamples=3000, interval=Interval(0.95))
    found = (pooled.slides if key == "slide_id" else pooled.patients).set_index([key, "network"])
    for name, group in rows.groupby(key):
        values = {
            network: part.sort_values(["slide_id", "y", "x"])["probability"].to_numpy()
            for network, part in group.groupby("network")
        }
        for network in (*NETWORKS, "ensemble"):
            names = STUDENTS if network == "ensemble" else (network,)
            expected = pool_slide(
                {name: values[name] for name in names}, resamples=3000, interval=Interval(0.95)
            )
            error = (expected.upper - expected.lower) / (2 * 1.96)
            row = found.loc[(name, network)]
            assert abs(row["lower"] - expected.lower) < 0.25 * error
            assert abs(row["upper"] - expected.upper) < 0.25 * error


def test_the_order_of_the_file_changes_no_slide(
    rows: pd.DataFrame, pooled: PooledPredictions, tmp_path: Path
) -> None:
    other = rows.sort_values(["slide_id", "y", "x", "network"], ignore_index=True)
    other.to_parquet(tmp_path / "predictions.parquet", index=False, row_group_size=170)
    found = pool_predictions(tmp_path / "predictions.parquet", STUDENTS, **OPTIONS)
    pd.testing.assert_frame_equal(found.slides, pooled.slides, rtol=1e-12)
    pd.testing.assert_frame_equal(found.patients, pooled.patients, rtol=1e-12)


def test_equal_tiles_leave_no_uncertainty(rows: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    rows.assign(probability=np.float32(0.3)).to_parquet(path, index=False)
    table = pool_predictions(path, STUDENTS, **OPTIONS).patients
    for column in ("score", "lower", "upper"):
        np.testing.assert_allclose(table[column], np.float32(0.3), rtol=1e-7)


def test_one_tile_is_its_own_interval(rows: pd.DataFrame, tmp_path: Path) -> None:
    """Resamples in which the tile does not come are left out."""
    path = tmp_path / "predictions.parquet"
    one = rows[(rows["x"] == 0) & (rows["y"] == 0) & (rows["slide_id"] == "s03")]
    one.to_parquet(path, index=False)
    table = pool_predictions(path, STUDENTS, **OPTIONS).slides
    np.testing.assert_allclose(table["lower"], table["score"], rtol=1e-7)
    np.testing.assert_allclose(table["upper"], table["score"], rtol=1e-7)
    assert (table["tiles"] == 1).all()


def test_progress_is_told_of_every_slide(path: Path) -> None:
    steps: list[int] = []
    pool_predictions(path, STUDENTS, advance=lambda: steps.append(1), **OPTIONS)
    assert len(steps) == 12


def test_a_student_that_is_absent_is_told(path: Path) -> None:
    with pytest.raises(StageError) as caught:
        pool_predictions(path, ["student_7"], **OPTIONS)
    assert str(caught.value) == (
        f"{path}: has no predictions of 'student_7'. Run 'medkd predict' again."
    )


def test_the_ensemble_may_have_an_interval_for_tiles_and_students(
    rows: pd.DataFrame, path: Path
) -> None:
    """As one slide alone has it; a network alone has that of its tiles."""
    interval = Interval(0.95, "tiles_and_students")
    found = pool_predictions(path, STUDENTS, resamples=3000, interval=interval).slides
    plain = pool_predictions(path, STUDENTS, resamples=3000, interval=Interval(0.95)).slides
    ensemble = found["network"] == "ensemble"
    pd.testing.assert_frame_equal(found[~ensemble], plain[~ensemble])
    for row in found[ensemble].itertuples():
        own = rows[rows["slide_id"] == row.slide_id].sort_values(["y", "x"])
        tiles = {name: own.loc[own["network"] == name, "probability"] for name in STUDENTS}
        expected = pool_slide(tiles, resamples=3000, interval=interval)
        assert [row.lower, row.upper] == pytest.approx([expected.lower, expected.upper], abs=0.02)
        assert row.mutual_information == pytest.approx(expected.mutual_information, abs=1e-9)
