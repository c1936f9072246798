"""A learned pooling from the embeddings of a run to the call of one slide."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from medkd.inference.engine import Students, infer_slide
from medkd.inference.package import load_package
from medkd.slide_level import out_of_distribution_fit
from medkd.slide_level.aggregate_stage import run_aggregate_stage
from medkd.training.predict_stage import run_predict_stage
from medkd.training.train_stage import run_train_stage
from tests.conftest import Cohort


def test_one_slide_gets_the_score_of_aggregation(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(out_of_distribution_fit, "FEWEST_TRAINING_SLIDES", 5)
    monkeypatch.setattr(out_of_distribution_fit, "FEWEST_PATIENTS", 3)
    config = cohort.variant(
        "train.epochs=1",
        "slide_level.pooling=gated_attention",
        "slide_level.compare_poolings=[mean_probability]",
        "slide_level.head={epochs: 5, hidden: 8}",
        "slide_level.bootstrap_resamples=100",
    )
    run_train_stage(config, cohort.rows)
    run_predict_stage(config, cohort.rows, embeddings=True)
    run_aggregate_stage(config)
    package = load_package(config.model_folder)
    assert package.manifest.slide_head.pooling.kind == "gated_attention"
    assert (
        "what the students' gated attention heads say of its tiles' embeddings"
        in (config.model_folder / "model_card.md").read_text()
    )
    calls = pd.read_parquet(config.run_folder / "slide_calls.parquet")
    calls = calls[calls["network"] == "ensemble"].set_index("slide_id")
    slide = cohort.rows[0]
    found = infer_slide(slide.path, package, Students(package))
    assert found.raw_score == pytest.approx(calls.at[slide.slide_id, "score"], abs=1e-4)
    assert found.score.lower <= found.score.score <= found.score.upper
    # And lies as far from the training slides, which were seen by torch.
    gates = {gate.name: gate for gate in found.call.gates}
    evaluation = json.loads((config.run_folder / "evaluation.json").read_text())
    of_all = evaluation["out_of_distribution"]
    for what in ("stain", "embedding"):
        gate = gates[f"out of distribution: {what}"]
        distance = calls.at[slide.slide_id, f"distance_{what}"]
        assert gate.value == pytest.approx(distance, rel=1e-3)
        assert gate.passed == (distance <= gate.limit)
        (limit,) = (c["limit"]["distance"] for c in of_all["checks"] if c["what"] == what)
        assert limit == gate.limit
    beyond = (calls["distance_stain"] > gates["out of distribution: stain"].limit) | (
        calls["distance_embedding"] > gates["out of distribution: embedding"].limit
    )
    counted = calls.assign(beyond=beyond).groupby("role")["beyond"].agg(["size", "sum"])
    assert of_all["slides"] == {
        role: {"slides": row["size"], "beyond": row["sum"]} for role, row in counted.iterrows()
    }
    # It is another score than the mean of the tiles.
    mean = sum(tile.probability for tile in found.tiles) / len(found.tiles)
    assert abs(found.raw_score - mean) > 1e-3

    poolings = pd.read_parquet(config.run_folder / "patient_poolings.parquet")
    assert list(dict.fromkeys(poolings["pooling"])) == ["gated_attention", "mean_probability"]

    # Another pooling of the same run replaces the head in the package.
    run_aggregate_stage(cohort.variant("train.epochs=1", "slide_level.bootstrap_resamples=100"))
    again = load_package(config.model_folder)
    assert again.manifest.slide_head.pooling.kind == "mean_probability"
    assert infer_slide(slide.path, again, Students(again)).raw_score == pytest.approx(
        mean, abs=1e-6
    )
