"""What the aggregate stage says of cohorts that little or nothing can be learnt from."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medkd.config import Config
from medkd.errors import StageError
from medkd.inference.package import load_package
from medkd.slide_level.aggregate_stage import run_aggregate_stage
from tests.slide_level.hand_made import aggregated, predictions, slide_tiles
from tests.slide_level.test_aggregate_stage import finished_run, track


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A finished run of the hand-made cohort."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return finished_run(tmp_path / "run")


def put(run: Config, table: pd.DataFrame | pa.Table) -> Path:
    path = run.run_folder / "predictions.parquet"
    table = table if isinstance(table, pa.Table) else pa.Table.from_pandas(table)
    pq.write_table(table, path)
    return path


def refusal(run: Config) -> str:
    with pytest.raises(StageError) as caught:
        run_aggregate_stage(run)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2
    # Nothing is frozen, and no table is left that looks finished.
    package = load_package(run.model_folder, needs_operating_point=False)
    assert package.manifest.operating_point is None
    assert not (run.run_folder / "evaluation.json").exists()
    assert not list(run.run_folder.glob("*_calls.*"))
    return str(caught.value)


def without(*patients: str) -> pd.DataFrame:
    table = predictions()
    return table[~table["patient_id"].isin(patients)]


@pytest.mark.parametrize(
    ("gone", "lacking"),
    [(("v1", "v2"), "positive"), (("v3", "v4"), "negative"), (("v2", "v3", "v4"), "negative")],
)
def test_validation_patients_of_one_class(run: Config, gone, lacking: str) -> None:
    put(run, without(*gone))
    assert refusal(run) == (
        f"validation patients: there is no {lacking} patient to choose the operating point on. "
        "Give validation a larger share, or add patients."
    )


def test_two_validation_patients_freeze_a_threshold_and_warn(
    run: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    put(run, without("v2", "v4"))
    track(run)
    result = run_aggregate_stage(run)
    assert result.aggregation.operating_point.threshold == 0.75
    warnings = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")
    ]
    lone = "what the threshold does to others of the class is anybody's guess."
    assert warnings == [
        "warning: 2 validation patients are too few to calibrate: scores are as they are",
        f"warning: There is a single positive patient: {lone}",
        f"warning: There is a single negative patient: {lone}",
        "warning: 2 of 11 slides have no predictions and are in no figure, 2 patients have none at "
        "all (the first slide is v2_s); tiles/report.csv says why slides were not tiled",
        "warning: calls will not tell slides whose stain and embedding is out of distribution: the "
        "predictions do not have what it takes, as an earlier medkd made them; predict and "
        "aggregate again",
    ]


def test_two_patients_in_all_lack_a_role(run: Config) -> None:
    path = put(run, without(*(set(predictions()["patient_id"]) - {"v1", "v3"})))
    assert refusal(run) == f"{path}: has no train patient. Run 'medkd predict' again."


def test_equal_scores_spare_nobody_and_miss_nobody() -> None:
    """One score for all is on the threshold, so all are called positive; AUROC is a half."""
    table = predictions()
    table["probability"] = table["probability"] * 0 + 0.5
    result = aggregated(table)
    point = result.operating_point
    assert (point.threshold, point.sensitivity, point.specificity) == (0.5, 1.0, 0.0)
    assert result.evaluation["networks"]["ensemble"]["patient_auroc"]["value"] == 0.5
    at_point = result.evaluation["at_operating_point"]
    assert at_point["specificity"]["value"] == 0.0
    calls = result.patients["call"].dropna()
    assert set(calls) == {"MSI suspected"}
    assert result.decisions.warnings[0] == (
        "All 4 validation patients have the score 0.5000: no threshold tells them apart, and calls "
        "mean nothing"
    )


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "has rows without a value in 'probability'"),
        (float("nan"), "holds a probability that is not a number between 0 and 1"),
    ],
    ids=["missing", "not-a-number"],
)
def test_predictions_that_are_no_numbers(run: Config, value: float | None, told: str) -> None:
    """A cell without a value and a NaN are two things in the file."""
    table = pa.Table.from_pandas(predictions(), preserve_index=False)
    values = table["probability"].to_pylist()
    network = table["network"].to_pylist()
    values[network.index("student_0")] = value
    at = table.column_names.index("probability")
    path = put(run, table.set_column(at, "probability", pa.array(values, pa.float32())))
    assert refusal(run) == f"{path}: {told}. Run 'medkd predict' again."


def test_a_slide_with_one_tile_gets_no_result() -> None:
    """Four tiles are needed; the score of the one is in the table all the same."""
    table = predictions()
    result = aggregated(table[(table["patient_id"] != "t1") | (table["x"] == 0)])
    for calls in (result.slides, result.patients):
        row = calls[(calls["patient_id"] == "t1") & (calls["network"] == "ensemble")].iloc[0]
        assert (row["call"], row["tiles"], row["score"]) == ("no result", 1, 0.875)
        # A single tile can be drawn in one way only.
        assert row["lower"] == row["upper"] == 0.875


def test_a_patient_without_predictions_is_in_no_figure(
    run: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    put(run, without("t4"))
    track(run)
    result = run_aggregate_stage(run)
    assert result.aggregation.evaluation["test"]["patients"] == 4
    assert "t4" not in set(result.aggregation.patients["patient_id"])
    assert (
        "warning: 1 of 11 slides have no predictions and are in no figure, 1 patients have none at "
        "all (the first slide is t4_s); tiles/report.csv says why slides were not tiled\n"
    ) in capsys.readouterr().err


def test_predictions_of_a_patient_without_a_label(run: Config) -> None:
    slides = pd.read_csv(run.data.slides)
    slides[slides["patient_id"] != "t4"].to_csv(run.data.slides, index=False)
    path = run.run_folder / "predictions.parquet"
    assert refusal(run) == f"{path}: patient 't4' has no label. Add it to slides.csv."


def test_predictions_of_a_slide_that_was_not_tiled(run: Config) -> None:
    put(run, pd.concat([predictions(), slide_tiles("t6", "test", 0.5)], ignore_index=True))
    assert refusal(run) == (
        f"{run.tiles_folder / 't6_s.json'}: no such record of a slide. Run 'medkd tile' first."
    )
