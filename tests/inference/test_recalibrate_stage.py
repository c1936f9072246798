"""A model moved to a simulated scanner: what is restored, recorded, kept, and refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binomtest, norm

from medkd.errors import ConfigError, MedkdError, ModelPackageError, OutputError, StageError
from medkd.inference.infer_stage import infer_slides
from medkd.inference.package import ModelPackage, load_package
from medkd.inference.recalibrate_stage import RecalibrateOptions, run_recalibrate_stage
from medkd.slide_level.calibration import Platt, Recalibrated, Uncalibrated
from medkd.slide_level.recalibration import recalibrate
from tests.inference.compared import compared
from tests.inference.site_results import new_site, write_labels, write_result, write_site

OLD_THRESHOLD = float(expit(2 * (1 + norm.ppf(0.05))))
"""At the old site scores have the logits 2 N(+-1, 1): 95% of the positives reach this."""

SETS = {
    "error_rate": 0.2,
    "negative_up_to": 0.6,
    "positive_from": 0.4,
    "negatives": 20,
    "positives": 20,
    "cohort": "validation patients",
    "date": "2026-01-02",
}
PERFORMANCE = {"patients": 9, "positives": 4, "patient_auroc": {"value": 0.875}}

# By hand: of 4 positives 2 reach the old threshold of 0.7, and 3 reach 0.6; no negative does.
LABELS = (1, 1, 1, 1, 0, 0, 0, 0)
SCORES = (0.9, 0.8, 0.6, 0.4, 0.1, 0.2, 0.3, 0.5)


def moved(
    folder: Path,
    package: ModelPackage,
    labels=LABELS,
    scores=SCORES,
    *,
    distances=None,
    out="new",
    **options,
) -> ModelPackage:
    results, table = write_site(folder, package, labels, scores, distances)
    options = {"site": "St Mary", **options}
    return run_recalibrate_stage(
        package.folder, results, table, folder / out, RecalibrateOptions(**options)
    )


def refusal(kind: type[MedkdError], folder: Path, package: ModelPackage, *site, **options) -> str:
    with pytest.raises(kind) as caught:
        moved(folder, package, *site, **options)
    assert "\n" not in str(caught.value)
    assert not (folder / "new").exists()
    return str(caught.value)


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def model(make_package, tmp_path):
    return load_package(make_package(tmp_path / "model", threshold=0.7))


# A scanner that scales the logit of scores by 0.6 and shifts it by -1.2.


def test_a_shifted_scanner_from_30_positives_and_60_negatives(make_package, tmp_path):
    """The interval that is stated holds the target and the true sensitivity of the new threshold.

    At the new site a positive has the logit 1.2 z, z standard normal, so 86% reach the old
    threshold. The true sensitivity of the new one is that of 20,000 other positives.
    """
    package = load_package(make_package(tmp_path / "model", threshold=OLD_THRESHOLD))
    before = norm.sf(2 * (1 + norm.ppf(0.05)) / 1.2)
    assert before == pytest.approx(0.859, abs=1e-3)
    after = []
    for seed in range(6):
        labels, scores = new_site(seed, 30, 60)
        new = moved(tmp_path / str(seed), package, labels, scores, prevalence=0.15).manifest
        _, others = new_site(1000 + seed, 20_000, 0)
        assert np.mean(others >= OLD_THRESHOLD) == pytest.approx(before, abs=0.01)
        after.append(np.mean(new.calibration(others) >= new.operating_point.threshold))
        low, high = new.recalibration.new.sensitivity_interval
        assert low <= 0.95 <= high
        assert low <= after[-1] <= high
        assert new.recalibration.new.sensitivity == 29 / 30
    # 29/31 on average by theory, with a deviation of 0.018 for the mean of six.
    assert np.mean(after) == pytest.approx(29 / 31, abs=0.05)


def test_what_is_fitted_is_what_the_functions_fit(make_package, tmp_path):
    """On the model's own map, prevalence and target as given; 90% intervals as in the model."""
    content = {"kind": "platt", "slope": 0.9, "intercept": 0.1}
    folder = make_package(
        tmp_path / "model",
        threshold=0.3,
        calibration=content,
        slide_level={"confidence": 0.9},
    )
    labels, scores = new_site(3, 25, 40)
    options = {"prevalence": 0.15, "target_sensitivity": 0.9}
    new = moved(tmp_path, load_package(folder), labels, scores, **options).manifest
    direct = recalibrate(
        labels, scores, Platt(slope=0.9, intercept=0.1), 0.3,
        date=new.operating_point.date, cohort="patients of St Mary", confidence=0.9, **options,
    )  # fmt: skip
    assert new.calibration == direct.map
    frozen = new.operating_point.model_dump(mode="json", exclude={"fitted_to_sha256"})
    assert frozen == direct.new_point.to_json()
    assert new.recalibration.prevalence == 0.15
    assert new.recalibration.prevalence_is_stated
    assert new.recalibration.map_shrinkage == direct.shrinkage
    for figures, calibration in (
        (new.recalibration.old, direct.old_calibration),
        (new.recalibration.new, direct.new_calibration),
    ):
        assert figures.calibration_slope.value == calibration.slope.value
        assert figures.calibration_intercept.upper == calibration.intercept.upper
        assert figures.brier_score.value == calibration.brier_score.value
        assert figures.log_loss.lower == calibration.log_loss.lower


# By hand.


def test_the_figures_of_eight_patients(model, tmp_path):
    record = moved(tmp_path, model, target_sensitivity=0.75).manifest.recalibration
    assert (record.old.threshold, record.new.threshold) == (0.7, 0.6)
    assert (record.old.sensitivity, record.new.sensitivity) == (0.5, 0.75)
    assert (record.old.specificity, record.new.specificity) == (1.0, 1.0)
    exact = binomtest(3, 4).proportion_ci(0.95, "exact")
    assert record.new.sensitivity_interval == pytest.approx((exact.low, exact.high))
    squares = [0.1, 0.2, 0.4, 0.6, 0.1, 0.2, 0.3, 0.5]
    assert record.old.brier_score.value == pytest.approx(np.mean(np.square(squares)))
    assert (record.patients, record.positives, record.slides) == (8, 4, 8)
    assert (record.prevalence, record.prevalence_is_stated) == (0.5, False)


def test_the_record_says_where_it_comes_from(make_package, tmp_path):
    model = load_package(make_package(tmp_path / "model", test_performance=PERFORMANCE))
    new = moved(tmp_path, model).manifest
    record = new.recalibration
    assert (record.from_version, record.from_sha256) == ("1", model.sha256)
    assert new.version.startswith("1+st-mary.")
    assert record.cohort == new.operating_point.cohort == "patients of St Mary"
    assert record.date == new.operating_point.date == new.created[:10]
    assert new.created != model.manifest.created
    assert (new.test_performance, record.old_test_performance) == (None, PERFORMANCE)
    assert record.earlier is None
    assert record.warnings == (
        "The old calibration map is kept: 4 positive patients are too few to calibrate on, each "
        "parameter takes 10 (Peduzzi et al. 1996).",
        "With 4 positive patients the threshold rests on the lowest of their scores alone; 95% of "
        "20 would let one be wrong.",
    )


def test_the_old_package_is_left_and_the_students_are_the_same(model, tmp_path):
    before = hashes(model.folder)
    new = moved(tmp_path, model)
    assert hashes(model.folder) == before
    after = hashes(new.folder)
    assert {name for name in after if before[name] != after[name]} == {
        "model.json",
        "model_card.md",
    }
    assert load_package(new.folder).sha256 == new.sha256


def test_no_slide_or_patient_is_named_in_the_package(model, tmp_path):
    new = moved(tmp_path, model)
    for name in ("model.json", "model_card.md"):
        assert "s000" not in (new.folder / name).read_text(encoding="utf-8")


def test_the_new_version_calls_by_its_own_threshold(make_package, flat_slide, tmp_path):
    """The slide's score is 0.66: above the old threshold, below the lowest positive of the site."""
    model = load_package(make_package(tmp_path / "model", threshold=0.5))
    scores = (0.97, 0.95, 0.92, 0.9, 0.1, 0.2, 0.3, 0.4)
    new = moved(tmp_path, model, LABELS, scores)
    called = {}
    for package in (model, new):
        out = tmp_path / f"calls-{package.folder.name}"
        assert infer_slides([flat_slide], package, out).failed == ()
        called[package.folder.name] = json.loads((out / "flat" / "result.json").read_text())
    assert [called[name]["call"] for name in ("model", "new")] == ["MSI suspected", "MSS"]
    assert called["new"]["operating_point"]["threshold"] == 0.9
    assert called["new"]["operating_point"]["cohort"] == "patients of St Mary"
    assert called["new"]["model"]["version"] == new.manifest.version
    assert called["new"]["score"] == called["model"]["score"]


def test_on_what_infer_wrote(make_package, write_flat, tmp_path):
    """Flat slides: a red of r scores 0.75 r / 255 + 0.15 by the mean of the two students."""
    model = load_package(make_package(tmp_path / "model", threshold=0.9))
    rows, paths = [], []
    for red, label in ((102, "MSS"), (128, "MSS"), (153, "MSI"), (204, "MSI")):
        image = np.full((8 * 64, 8 * 64, 3), 243, np.uint8)
        image[2 * 64 : 6 * 64, 2 * 64 : 6 * 64] = (red, 90, 130)
        paths.append(write_flat(tmp_path / f"red{red}.svs", image))
        rows.append((f"red{red}", label))
    assert infer_slides(paths, model, tmp_path / "results").failed == ()
    labels = write_labels(tmp_path / "labels.csv", rows)
    new = run_recalibrate_stage(
        model.folder, tmp_path / "results", labels, tmp_path / "new", RecalibrateOptions()
    ).manifest
    assert new.operating_point.threshold == pytest.approx(0.75 * 0.6 + 0.15, abs=0.008)
    assert (new.recalibration.old.sensitivity, new.recalibration.new.sensitivity) == (0, 1)
    assert new.recalibration.new.specificity == 1


def test_several_slides_of_a_patient_come_together_as_in_the_model(make_package, tmp_path):
    """The first patient's slides score 0.4 and 0.9: 0.5 over tiles (40 and 10), 0.9 at most."""
    for pooling, threshold in (("tiles", 0.5), ("max_of_slides", 0.8)):
        folder = tmp_path / pooling
        head = {"pooling": {"kind": "mean_probability"}, "patient": pooling}
        model = load_package(make_package(folder / "model", slide_head=head))
        rows = []
        for slide, patient, label, score, tiles in (
            ("a1", "a", "MSI", 0.4, 40),
            ("a2", "a", "MSI", 0.9, 10),
            ("b1", "b", "MSI", 0.8, 50),
            ("c1", "c", "MSS", 0.3, 50),
            ("d1", "d", "MSS", 0.2, 50),
        ):
            write_result(folder / "results", model, slide, score, tiles=tiles)
            rows.append((slide, label, patient))
        labels = write_labels(folder / "labels.csv", rows, patients=True)
        new = run_recalibrate_stage(
            model.folder, folder / "results", labels, folder / "new", RecalibrateOptions()
        )
        assert new.manifest.operating_point.threshold == pytest.approx(threshold)
        assert (new.manifest.recalibration.patients, new.manifest.recalibration.slides) == (4, 5)


def test_a_model_that_was_recalibrated_before(model, tmp_path):
    labels, scores = new_site(0, 30, 60)
    first = moved(tmp_path / "a", model, labels, scores)
    second = moved(tmp_path / "b", first, labels[::2], scores[::2], site="GT450")
    record = second.manifest.recalibration
    assert second.manifest.version.startswith(f"{first.manifest.version}.gt450.")
    assert (record.from_version, record.from_sha256) == (first.manifest.version, first.sha256)
    assert record.earlier == first.manifest.recalibration
    assert isinstance(first.manifest.calibration, Recalibrated)
    assert load_package(second.folder).manifest == second.manifest


def test_the_same_patients_give_the_same_version_and_others_another(model, tmp_path):
    first = moved(tmp_path / "a", model)
    assert moved(tmp_path / "b", model).manifest.version == first.manifest.version
    other = moved(tmp_path / "c", model, LABELS, (0.91, *SCORES[1:]))
    assert other.manifest.version != first.manifest.version
    assert moved(tmp_path / "d", model, prevalence=0.2).manifest.version not in (
        first.manifest.version,
        other.manifest.version,
    )


# The model card.


def test_the_card_tells_old_and_new(make_package, tmp_path):
    model = load_package(make_package(tmp_path / "model", threshold=0.7))
    new = moved(tmp_path, model, target_sensitivity=0.75)
    card = (new.folder / "model_card.md").read_text(encoding="utf-8")
    exact = binomtest(2, 4).proportion_ci(0.95, "exact")
    assert "## Recalibrated for patients of St Mary\n" in card
    assert f"from version 1 (`{model.sha256[:12]}`), on 8 patients of St Mary (4 MSI, 8" in card
    assert "| of these patients | version 1 | this version |\n" in card
    assert "| threshold | 0.7000 | 0.6000 |\n" in card
    assert f"| sensitivity | 0.500 ({exact.low:.3f} to {exact.high:.3f}) | 0.750 (0.194 " in card
    assert "The calibration map is the old one." in card
    assert "- The old calibration map is kept: 4 positive patients" in card
    assert "not tried on any but the 8 that it was fitted to" in card
    assert "- Scores are not calibrated probabilities." in card
    assert "Recalibrated" not in (model.folder / "model_card.md").read_text(encoding="utf-8")


def test_the_card_of_a_map_that_was_refitted_and_of_one_that_was_kept_after(model, tmp_path):
    labels, scores = new_site(0, 30, 60)
    first = moved(tmp_path / "a", model, labels, scores, prevalence=0.15)
    card = (first.folder / "model_card.md").read_text(encoding="utf-8")
    assert "Slope and intercept of the calibration map were refitted and taken" in card
    assert "for a share of MSI of 15%, as was stated." in card
    assert "- Scores were recalibrated on 90 patients of St Mary; elsewhere" in card
    second = moved(tmp_path / "b", first, labels[24:36], scores[24:36], site="GT450")
    assert second.manifest.recalibration.map_parameters == 0
    card = (second.folder / "model_card.md").read_text(encoding="utf-8")
    assert "- Scores were recalibrated on 90 patients of St Mary; elsewhere" in card
    assert "- Made for patients of GT450; another scanner" in card


# Prediction sets.


def test_prediction_sets_are_refitted(make_package, tmp_path):
    """Of 4 patients of a class one in five may lie outside: floor(5 * 0.2) - 1 = 0 do."""
    model = load_package(make_package(tmp_path / "model", conformal=SETS))
    sets = moved(tmp_path, model).manifest.conformal
    assert (sets.error_rate, sets.positives, sets.negatives) == (0.2, 4, 4)
    assert (sets.positive_from, sets.negative_up_to) == (0.4, 0.5)
    assert sets.cohort == "patients of St Mary"


def test_too_few_patients_for_the_prediction_sets(make_package, tmp_path):
    model = load_package(make_package(tmp_path / "model", conformal=SETS))
    few = LABELS[1:7], SCORES[1:7]
    assert refusal(StageError, tmp_path, model, *few) == (
        "patients of St Mary: the prediction sets cannot be fitted: 3 negative patients are too "
        "few for an error rate of 0.2: it takes 4. Ask for an error rate of 0.25 or more, or add "
        "patients. The options are --conformal-error RATE; or --no-conformal, and the operating "
        "point calls."
    )
    assert moved(tmp_path, model, *few, out="b", conformal_error=0.25).manifest.conformal
    assert moved(tmp_path, model, *few, out="c", no_conformal=True).manifest.conformal is None


def test_prediction_sets_for_a_model_that_had_none(model, tmp_path):
    assert moved(tmp_path, model).manifest.conformal is None
    sets = moved(tmp_path, model, out="sets", conformal_error=0.4).manifest.conformal
    # floor(5 * 0.4) = 2 of the 4 count as outside, the last one inside being the third.
    assert (sets.error_rate, sets.positive_from, sets.negative_up_to) == (0.4, 0.6, 0.3)


# What is out of distribution.

FAR = tuple({"stain": 3.0 + number, "embedding": 10.0} for number in range(len(LABELS)))


def compares(make_package, folder: Path, **changes) -> ModelPackage:
    """A model with limits of 6 and 20, of which its patients may pass a fifth."""
    held = compared({"stain": 6.0, "embedding": 20.0}, {"stain": [0] * 6, "embedding": [0] * 6})
    gates = {"out_of_distribution_share": 0.4, **changes}
    return load_package(make_package(folder, threshold=0.7, gates=gates, **held))


def test_limits_of_distance_are_refitted_to_the_site(make_package, tmp_path, capsys):
    """Of 8 patients a fifth may lie beyond: the ceil(9 * 0.8) = 8th distance is the limit."""
    model = compares(make_package, tmp_path / "model")
    new = moved(tmp_path, model, distances=FAR)
    stain, embedding = new.manifest.out_of_distribution.checks
    assert (stain.limit.distance, stain.limit.rule, stain.limit.share) == (10, "conformal", 1 / 9)
    assert (stain.limit.cohort, stain.limit.patients) == ("patients of St Mary", 8)
    assert embedding.limit.distance == 10
    # The training slides are those of the old version, byte for byte.
    name = new.manifest.out_of_distribution.file
    assert (new.folder / name).read_bytes() == (model.folder / name).read_bytes()
    record = new.manifest.recalibration
    changes = [(d.what, d.old_limit, d.new_limit, d.beyond_old) for d in record.distances]
    assert changes == [("stain", 6, 10, 4), ("embedding", 20, 10, 0)]
    told = (
        "4 of the 8 patients have a slide whose stain was out of distribution; the new limit of "
        "10.00 takes such slides for normal. Look whether they are."
    )
    assert record.warnings[-1] == told
    assert f"warning: {told}" in capsys.readouterr().err.splitlines()
    card = (new.folder / "model_card.md").read_text(encoding="utf-8")
    assert "- Limit of the distance of the stain from the training slides: 6.00 before" in card
    assert "by a quantile of the distances of 8 patients of St Mary: at most 11%" in card


def test_too_few_patients_for_a_limit_keep_the_old_one_and_that_is_told(make_package, tmp_path):
    model = compares(make_package, tmp_path / "model")
    new = moved(tmp_path, model, LABELS[2:6], SCORES[2:6], distances=FAR[:4])
    assert new.manifest.out_of_distribution == model.manifest.out_of_distribution
    record = new.manifest.recalibration
    assert [(d.old_limit, d.new_limit) for d in record.distances] == [(6, 6), (20, 20)]
    assert record.warnings[-1] == (
        "The old limits of what is out of distribution are kept, which the site's slides may lie "
        "beyond: 4 patients of St Mary are too few to set a limit on: it takes 5."
    )


def test_the_farthest_slide_of_a_patient_counts(make_package, tmp_path):
    model = compares(make_package, tmp_path / "model")
    results, table = tmp_path / "results", []
    for number, label in enumerate(LABELS):
        for slide in (1, 2):
            name = f"s{number}-{slide}"
            far = {"stain": float(number * slide), "embedding": 1.0}
            write_result(results, model, name, SCORES[number], distances=far)
            table.append((name, "MSI" if label else "MSS", f"p{number}"))
    labels = write_labels(tmp_path / "labels.csv", table, patients=True)
    new = run_recalibrate_stage(
        model.folder, results, labels, tmp_path / "new", RecalibrateOptions()
    )
    assert new.manifest.out_of_distribution.limits["stain"] == 14


def test_results_that_tell_no_distance(make_package, tmp_path):
    model = compares(make_package, tmp_path / "model")
    with pytest.raises(StageError) as caught:
        moved(tmp_path, model)
    assert str(caught.value) == (
        "patients of St Mary: the result of slide 's000' does not tell its stain's distance from "
        "the training slides. Call the slide again with 'medkd infer'."
    )
    assert not (tmp_path / "new").exists()


def test_a_model_that_compares_nothing_is_recalibrated_as_before(model, tmp_path):
    new = moved(tmp_path, model, distances=FAR)
    assert new.manifest.out_of_distribution is None
    assert new.manifest.recalibration.distances == ()


# Warnings.


def test_what_is_left_aside_is_told(model, tmp_path, capsys):
    results, labels = write_site(tmp_path, model, LABELS, SCORES)
    write_result(results, model, "more", 0.5)
    write_result(results, model, "gated", None)
    with labels.open("a") as file:
        file.write("gated,MSI\nlost,MSS\n")
    new = run_recalibrate_stage(
        model.folder, results, labels, tmp_path / "new", RecalibrateOptions()
    )
    assert new.manifest.recalibration.patients == 8
    assert capsys.readouterr().err.splitlines()[:3] == [
        "warning: Labelled slides without a result, left aside: 1 (lost).",
        "warning: Slides with a result and no label, left aside: 1 (more).",
        "warning: Labelled slides called 'no result', left aside: 1 (gated).",
    ]


def test_a_model_whose_rule_was_another(make_package, tmp_path):
    model = load_package(make_package(tmp_path / "model"))
    point = model.manifest.operating_point.model_dump(mode="json")
    youden = {**point, "rule": "Youden", "target_sensitivity": None}
    other = load_package(make_package(tmp_path / "youden", operating_point=youden))
    new = moved(tmp_path, other).manifest
    assert (new.operating_point.rule, new.operating_point.target_sensitivity) == (
        "fixed sensitivity",
        0.95,
    )
    assert new.recalibration.warnings[0] == (
        "The model's operating point was chosen by another rule (Youden); the new one fixes a "
        "sensitivity of 95%."
    )


def test_the_models_own_target_is_kept(make_package, tmp_path):
    point = load_package(make_package(tmp_path / "model")).manifest.operating_point
    content = {**point.model_dump(mode="json"), "target_sensitivity": 0.75}
    model = load_package(make_package(tmp_path / "own", operating_point=content))
    assert moved(tmp_path, model).manifest.operating_point.target_sensitivity == 0.75
    other = moved(tmp_path, model, out="other", target_sensitivity=0.5)
    assert other.manifest.operating_point.threshold == 0.8


def test_drawn_slides_and_a_share_that_was_not_stated_are_told(model, tmp_path):
    labels, scores = new_site(0, 30, 60)
    results, table = write_site(tmp_path, model, labels, scores)
    drawn = {"slide": True, "model": False}
    write_result(results, model, "s000", float(scores[0]), synthetic=drawn)
    record = run_recalibrate_stage(
        model.folder, results, table, tmp_path / "new", RecalibrateOptions()
    ).manifest.recalibration
    assert record.synthetic_slides == 1
    assert record.warnings == (
        "1 of the 90 slides are synthetic: drawn, not scanned.",
        "No prevalence was given: probabilities are for a site where 33% of the patients are MSI, "
        "as they are here. Give it where patients were picked by label.",
    )


# What is refused, and leaves nothing behind.


@pytest.mark.parametrize(
    ("labels", "scores", "what"),
    [
        ((1, 1, 1), (0.9, 0.8, 0.7), "there is no MSS among 3 patients"),
        ((0, 0, 0), (0.9, 0.8, 0.7), "there is no MSI among 3 patients"),
        ((1, 0), (0.9, 0.1), "2 patients with a label and a score are too few"),
        ((1, 0, 1, 0), (0.5,) * 4, "all 4 patients with a label and a score have the same score"),
    ],
)
def test_patients_that_nothing_can_be_fitted_to(model, tmp_path, labels, scores, what):
    assert what in refusal(StageError, tmp_path, model, labels, scores)


def test_a_score_that_is_no_number(model, tmp_path):
    results, labels = write_site(tmp_path, model, LABELS, SCORES)
    path = results / "s003" / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "score": float("nan")}))
    with pytest.raises(StageError) as caught:
        run_recalibrate_stage(model.folder, results, labels, tmp_path / "new", RecalibrateOptions())
    assert str(caught.value) == (
        f"{path}: 'score' (it is nan): input should be a finite number. Call the slide again with "
        "'medkd infer'."
    )


def test_an_operating_point_of_another_model(make_package, model, tmp_path):
    """Copied by hand into this one."""
    other = load_package(make_package(tmp_path / "other", students={"student1": (0.9, 0.0)}))
    path = model.folder / "model.json"
    content = json.loads(path.read_text())
    content["operating_point"] = json.loads((other.folder / "model.json").read_text())[
        "operating_point"
    ]
    path.write_text(json.dumps(content))
    message = refusal(ModelPackageError, tmp_path, model)
    assert "has the operating point of another model or calibration (" in message
    assert other.manifest.operating_point.fitted_to_sha256[:12] in message


def test_results_of_another_model(make_package, model, tmp_path):
    other = load_package(make_package(tmp_path / "other", students={"student1": (0.9, 0.0)}))
    results, labels = write_site(tmp_path, other, LABELS, SCORES)
    with pytest.raises(StageError) as caught:
        run_recalibrate_stage(model.folder, results, labels, tmp_path / "new", RecalibrateOptions())
    assert f"slide 's000' was called by another model: version 1, SHA-256 {other.sha256[:12]}" in (
        str(caught.value)
    )
    assert model.sha256[:12] in str(caught.value)


def test_results_of_the_old_version_do_not_fit_the_new(model, tmp_path):
    new = moved(tmp_path, model)
    with pytest.raises(StageError, match="was called by another model: version 1, SHA-256"):
        run_recalibrate_stage(
            new.folder, tmp_path / "results", tmp_path / "labels.csv", tmp_path / "newer",
            RecalibrateOptions(),
        )  # fmt: skip


def test_a_second_call_to_the_same_folder(model, tmp_path):
    new = moved(tmp_path, model)
    before = hashes(new.folder)
    with pytest.raises(OutputError) as caught:
        moved(tmp_path, model, prevalence=0.2)
    assert str(caught.value) == (
        f"{new.folder}: is there already, and no version of a model is written over. Name a folder "
        "that does not exist yet."
    )
    assert hashes(new.folder) == before


def test_a_model_without_an_operating_point(make_package, tmp_path):
    raw = make_package(tmp_path / "raw", operating_point=None)
    for where, package in ((tmp_path / "raw", raw), (tmp_path / "none", tmp_path / "none")):
        with pytest.raises(ModelPackageError, match=f"^{where}: "):
            run_recalibrate_stage(
                package, tmp_path, tmp_path / "l.csv", tmp_path / "new", RecalibrateOptions()
            )


def test_a_spoilt_student(model, tmp_path):
    broken = shutil.copytree(model.folder, tmp_path / "broken")
    with (broken / "students" / "student1.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ModelPackageError, match="is not the file that was packaged"):
        run_recalibrate_stage(
            broken, tmp_path, tmp_path / "l.csv", tmp_path / "new", RecalibrateOptions()
        )


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"prevalence": 1.5}, "the prevalence is 1.5, and must lie between 0 and 1. Change it."),
        ({"target_sensitivity": 95.0},
         "the target sensitivity is 95, and must lie above 0 and at most at 1. Change it; 0.95 is "
         "usual."),
        ({"conformal_error": 0.0},
         "the prediction sets cannot be fitted: the error rate is 0, and must lie between 0 and "
         "1. Change it; 0.1 is usual."),
    ],
)  # fmt: skip
def test_options_out_of_range(model, tmp_path, options, what):
    assert refusal(StageError, tmp_path, model, **options).startswith(
        f"patients of St Mary: {what}"
    )


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"site": " \n"},
         "--cohort: is empty. Say whose patients they are, or leave it out."),
        ({"conformal_error": 0.1, "no_conformal": True},
         "--no-conformal: cannot stand beside --conformal-error. Leave one of the two out."),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(model, tmp_path, options, what):
    assert refusal(ConfigError, tmp_path, model, **options) == what


def test_words_on_several_lines_are_one_line_in_the_package(model, tmp_path):
    new = moved(tmp_path, model, site=" St\nMary ")
    assert new.manifest.operating_point.cohort == "patients of St Mary"
    assert new.manifest.calibration == Uncalibrated()
