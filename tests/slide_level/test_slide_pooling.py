"""Poolings through aggregation: every kind, several slides, what is compared, what is fitted."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medkd.config import Config, InferConfig, SlideLevelConfig
from medkd.errors import StageError
from medkd.slide_level.aggregate import Aggregation, aggregate
from medkd.slide_level.embedding_file import EmbeddingFile
from medkd.slide_level.pooling_kinds import HistogramLogistic, TopK
from medkd.slide_level.slide_quality import SlideQuality

STUDENTS = ("student_0", "student_1")
CLASSES = {True: "MSI", False: "MSS"}
ROLES = ["train"] * 8 + ["validation"] * 8 + ["test"] * 8
LABELS = {f"p{n:02d}": CLASSES[n % 2 == 0] for n in range(24)}


def cohort(seed: int = 0) -> pd.DataFrame:
    """24 patients of one to three slides of 6 to 30 tiles; positives' tiles are likelier."""
    random = np.random.default_rng(seed)
    parts = []
    for number, (patient, label) in enumerate(LABELS.items()):
        for slide in range(1 + number % 3):
            tiles = int(random.integers(6, 30))
            for network in ("teacher", *STUDENTS):
                parts.append(
                    pd.DataFrame(
                        {
                            "slide_id": f"{patient}_{slide}",
                            "patient_id": patient,
                            "role": ROLES[number],
                            "x": np.arange(tiles, dtype=np.int32) * 448,
                            "y": np.int32(0),
                            "network": network,
                            "probability": random.beta(3 if label == "MSI" else 2, 3, tiles).astype(
                                np.float32
                            ),
                        }
                    )
                )
    return pd.concat(parts, ignore_index=True)


def write_embeddings(folder: Path, table: pd.DataFrame, seed: int = 1) -> None:
    """Eight channels for each tile; two of them shift with the label."""
    random = np.random.default_rng(seed)
    tiles = table[table["network"] == "teacher"].reset_index(drop=True)
    # Slides of a patient need not lie together.
    tiles = tiles.sort_values("slide_id", key=lambda ids: ids.str[::-1], kind="stable")
    folder.mkdir(parents=True)
    tiles[["slide_id", "patient_id", "role", "x", "y"]].to_parquet(
        folder / "tiles.parquet", index=False
    )
    positive = (tiles["patient_id"].map(LABELS) == "MSI").to_numpy()
    for student in STUDENTS:
        rows = random.normal(size=(len(tiles), 8))
        rows[:, :2] += positive[:, None]
        np.save(folder / f"{student}.npy", rows.astype(np.float16))


def aggregated(
    settings: SlideLevelConfig,
    labels: dict[str, str] | None = None,
    *,
    with_embeddings: bool = False,
) -> Aggregation:
    table = cohort()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table.to_parquet(folder / "predictions.parquet", index=False)
        if with_embeddings:
            write_embeddings(folder / "embeddings", table)
        return aggregate(
            folder / "predictions.parquet",
            labels or LABELS,
            dict.fromkeys(table["slide_id"].unique(), SlideQuality(2.0, 10)),
            STUDENTS,
            Config(
                slide_level=settings.model_copy(update={"bootstrap_resamples": 200}),
                infer=InferConfig(min_tiles=1, min_tissue_mm2=0.1),
            ),
            embeddings=folder / "embeddings",
            date="2030-01-02",
            synthetic=False,
        )


def top_three(values: np.ndarray) -> float:
    return float(np.sort(values)[::-1][: max(3, -(-len(values) // 10))].mean())


def by_hand(ensembling: str, patient_pooling: str) -> dict[str, float]:
    """Top tenth of the tiles, three at least, of every patient, in plain loops."""
    expected = {}
    wide = cohort().pivot_table(
        index=["patient_id", "slide_id", "x"], columns="network", values="probability"
    )
    for patient, of_patient in wide.groupby("patient_id"):
        groups = (
            [of_patient]
            if patient_pooling == "tiles"
            else [group for _, group in of_patient.groupby("slide_id")]
        )
        scores = []
        for group in groups:
            students = group[list(STUDENTS)].to_numpy(np.float64)
            if ensembling == "tiles_first":
                scores.append(top_three(students.mean(1)))
            else:
                scores.append(np.mean([top_three(column) for column in students.T]))
        expected[patient] = max(scores) if patient_pooling == "max_of_slides" else np.mean(scores)
    return expected


@pytest.mark.parametrize(
    ("ensembling", "patient_pooling"),
    [
        ("tiles_first", "tiles"),
        ("slides_first", "tiles"),
        ("tiles_first", "mean_of_slides"),
        ("slides_first", "max_of_slides"),
    ],
)
def test_patients_by_another_pooling_equal_plain_loops(
    ensembling: str, patient_pooling: str
) -> None:
    settings = SlideLevelConfig(
        pooling="top_k",
        pooling_parameters={"top_share": 0.1, "top_min_tiles": 3},
        ensembling=ensembling,
        patient_pooling=patient_pooling,
    )
    found = aggregated(settings)
    own = found.patients[found.patients["network"] == "ensemble"].set_index("patient_id")
    expected = by_hand(ensembling, patient_pooling)
    assert own["score"].to_dict() == pytest.approx(expected, abs=1e-6)
    assert (own["lower"] < own["score"]).all()
    assert (own["upper"] >= own["score"]).any()
    packaged = found.slide_head
    assert packaged.pooling == TopK(share=0.1, min_tiles=3)
    assert (packaged.ensembling, packaged.patient) == (ensembling, patient_pooling)
    # Single networks have a score of their own, without an interval.
    others = found.patients[found.patients["network"] != "ensemble"]
    assert set(others["network"]) == {"teacher", *STUDENTS}
    assert others["score"].between(0, 1).all()
    assert others["lower"].isna().all()


def test_the_mean_of_slides_is_not_the_mean_of_tiles() -> None:
    wide = cohort().query("network != 'teacher'")
    by_slide = wide.groupby(["patient_id", "slide_id"])["probability"].mean()
    found = aggregated(SlideLevelConfig(patient_pooling="mean_of_slides"))
    own = found.patients[found.patients["network"] == "ensemble"].set_index("patient_id")
    expected = by_slide.groupby("patient_id").mean().to_dict()
    assert own["score"].to_dict() == pytest.approx(expected, abs=1e-6)


COMPARED = ("mean_logit", "histogram_logistic", "gated_attention")


@pytest.fixture(scope="module")
def compared() -> Aggregation:
    return aggregated(SETTINGS, with_embeddings=True)


SETTINGS = SlideLevelConfig(
    compare_poolings=COMPARED, head={"epochs": 10, "hidden": 8, "learning_rate": 0.01}
)


def test_what_is_compared_has_scores_and_a_threshold_of_its_own(compared: Aggregation) -> None:
    table = compared.poolings
    assert list(dict.fromkeys(table["pooling"])) == ["mean_probability", *COMPARED]
    assert (table["shipped"] == (table["pooling"] == "mean_probability")).all()
    own = compared.patients[compared.patients["network"] == "ensemble"]
    shipped = table[table["shipped"]]
    pd.testing.assert_series_equal(
        shipped.set_index("patient_id")["probability"], own.set_index("patient_id")["probability"]
    )
    for _, part in table.groupby("pooling"):
        assert sorted(part["patient_id"]) == sorted(LABELS)
        assert part["threshold"].nunique() == 1
        validation = part[part["role"] == "validation"]
        positives = validation[validation["label"] == "MSI"]
        # 95% of 4 positives are all of them; the point is the lowest.
        assert positives["probability"].min() == pytest.approx(part["threshold"].iloc[0])

    wide = cohort().query("network != 'teacher'")
    tiles = wide.groupby(["patient_id", "slide_id", "x"])["probability"].mean()
    logits = np.log(tiles / (1 - tiles)).groupby("patient_id").mean()
    of_logit = table[table["pooling"] == "mean_logit"].set_index("patient_id")["score"]
    assert of_logit.to_dict() == pytest.approx((1 / (1 + np.exp(-logits))).to_dict(), abs=1e-5)
    # The head sees channels that tell the classes apart.
    learned = table[(table["pooling"] == "gated_attention") & (table["role"] == "test")]
    by_label = learned.groupby("label")["score"]
    assert by_label.min()["MSI"] > by_label.max()["MSS"]


def test_labels_of_test_patients_change_nothing_that_is_fitted(compared: Aggregation) -> None:
    """Exactly: weights of heads and histograms, calibrations, thresholds, scores."""
    turned = {
        patient: label if ROLES[number] != "test" else CLASSES[label == "MSS"]
        for number, (patient, label) in enumerate(LABELS.items())
    }
    other = aggregated(SETTINGS, turned, with_embeddings=True)
    columns = ["pooling", "patient_id", "score", "probability", "threshold"]
    pd.testing.assert_frame_equal(
        other.poolings[columns], compared.poolings[columns], check_exact=True
    )
    assert (other.poolings["label"] != compared.poolings["label"]).sum() == 4 * 8


def test_labels_of_training_patients_change_what_is_learned(compared: Aggregation) -> None:
    turned = {
        patient: label if ROLES[number] != "train" else CLASSES[label == "MSS"]
        for number, (patient, label) in enumerate(LABELS.items())
    }
    other = aggregated(SETTINGS, turned, with_embeddings=True)
    changed = (other.poolings["score"] != compared.poolings["score"]).groupby(
        compared.poolings["pooling"]
    )
    assert changed.any().to_dict() == {
        "mean_probability": False,
        "mean_logit": False,
        "histogram_logistic": True,
        "gated_attention": True,
    }


def test_a_pooling_that_ships_is_packaged_with_what_was_fitted() -> None:
    found = aggregated(SlideLevelConfig(pooling="histogram_logistic"))
    assert isinstance(found.slide_head.pooling, HistogramLogistic)
    assert len(found.slide_head.pooling.weights) == 10
    learned = aggregated(SETTINGS.model_copy(update={"pooling": "attention"}), with_embeddings=True)
    assert learned.slide_head.learned is not None
    assert set(learned.head_files) == set(learned.slide_head.learned.onnx.values())
    # What does not ship has no embeddings, and so no rows.
    assert set(learned.patients["network"]) == {*STUDENTS, "ensemble"}


def test_a_learned_pooling_without_embeddings_is_told() -> None:
    with pytest.raises(StageError) as caught:
        aggregated(SlideLevelConfig(pooling="transformer"))
    assert str(caught.value).endswith(
        "embeddings: there are no embeddings, which a learned pooling works on. Run 'medkd predict "
        "--embeddings', or set slide_level.pooling and slide_level.compare_poolings to poolings of "
        "probabilities."
    )


def test_what_cannot_be_fitted_is_not_compared_and_told() -> None:
    """Of the training patients one is positive: the head cannot ship, and is not compared."""
    one = {p: "MSS" if ROLES[n] == "train" and n > 0 else label for n, (p, label) in
           enumerate(LABELS.items())}  # fmt: skip
    settings = SlideLevelConfig(compare_poolings=("attention", "mean_logit"))
    found = aggregated(settings, one, with_embeddings=True)
    assert set(found.poolings["pooling"]) == {"mean_probability", "mean_logit"}
    assert found.decisions.warnings[-1] == (
        "attention is not compared: training patients: 1 positive patients are too few to train a "
        "slide head: it takes 2 of each class at the least, and tens to mean anything"
    )
    with pytest.raises(StageError, match="too few to train a slide head"):
        aggregated(SlideLevelConfig(pooling="attention"), one, with_embeddings=True)


def test_embeddings_that_do_not_belong_are_told(tmp_path: Path) -> None:
    table = cohort()
    folder = tmp_path / "embeddings"
    write_embeddings(folder, table)
    file = EmbeddingFile(folder, STUDENTS)
    with pytest.raises(StageError) as caught:
        file.of_slide("p00_0", 3)
    tiles = (table["slide_id"] == "p00_0").sum() // 3
    assert str(caught.value) == (
        f"{folder}: has embeddings of {tiles} tiles of slide 'p00_0', and predictions of 3. Run "
        "'medkd predict --embeddings' again."
    )
    np.save(folder / "student_1.npy", np.zeros((5, 8), np.float16))
    with pytest.raises(StageError, match=r"student_1.npy: has the shape 5 x 8 for \d+ tiles\."):
        EmbeddingFile(folder, STUDENTS)
    (folder / "student_1.npy").unlink()
    with pytest.raises(StageError, match="cannot be read: "):
        EmbeddingFile(folder, STUDENTS)


def test_a_pooling_is_named_once() -> None:
    with pytest.raises(ValueError, match="holds 'top_k', which is there already"):
        SlideLevelConfig(pooling="top_k", compare_poolings=("top_k",))
