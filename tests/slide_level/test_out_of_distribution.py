"""Distances against scipy's with scikit-learn's covariance; limits against their guarantee."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.spatial.distance import mahalanobis
from scipy.stats import norm
from sklearn.covariance import LedoitWolf

from medkd.errors import StageError, TooFewPatientsError
from medkd.slide_level.feature_file import feature_row
from medkd.slide_level.out_of_distribution import (
    DistanceCheck,
    DistanceLimit,
    TrainingSlides,
    cohort_from_bytes,
    cohort_to_bytes,
    distances,
    in_words,
)
from medkd.slide_level.out_of_distribution_fit import (
    FittedChecks,
    fit_checks,
    fit_limit,
    fit_training_slides,
    refit_limits,
)
from medkd.slide_level.slide_features import SlideFeatures

MANY = np.full(400, 50)
DATE = "2030-01-02"


def slides(random: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Slides that differ along some directions more than along others."""
    return random.normal(size=(count, width)) * np.linspace(0.1, 3, width) + 5


def fitted(values: np.ndarray, noise: float = 0.0) -> TrainingSlides:
    return fit_training_slides([values], [np.full(values.shape, noise)], MANY[: len(values)])[0]


# Distances.


@pytest.mark.parametrize(("count", "width"), [(60, 6), (25, 40), (12, 200)])
def test_the_distance_is_scipys_with_ledoit_and_wolfs_covariance(count: int, width: int) -> None:
    """With more slides than numbers, and with far fewer."""
    random = np.random.default_rng(width)
    values = slides(random, count, width)
    cohort, shrinkage = fit_training_slides([values], [np.zeros_like(values)], MANY[:count])
    scale = math.sqrt(values.var(0).mean())
    reference = LedoitWolf().fit(values / scale)
    assert shrinkage == pytest.approx(reference.shrinkage_)
    inverse = np.linalg.inv(reference.covariance_)
    for one in (*values[:3], *slides(random, 5, width), np.full(width, 30.0), np.zeros(width)):
        expected = mahalanobis(one / scale, reference.location_, inverse)
        assert cohort.distance(one, 50) == pytest.approx(expected, rel=1e-5)


def test_a_network_of_large_features_does_not_hide_the_others() -> None:
    """Each block is divided by the root of its mean variance: units do not matter."""
    random = np.random.default_rng(0)
    blocks = [slides(random, 30, 4), slides(random, 30, 7)]
    new = [slides(random, 1, 4)[0], slides(random, 1, 7)[0]]
    found = []
    for factor in (1, 1000):
        scaled = [blocks[0] * factor, blocks[1]]
        cohort, _ = fit_training_slides(scaled, [0 * block for block in scaled], MANY[:30])
        found.append(cohort.distance(np.concatenate([new[0] * factor, new[1]]), 50))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_few_tiles_are_allowed_what_chance_adds() -> None:
    """scipy's distance again, the covariance widened by what means of fewer tiles vary more."""
    random = np.random.default_rng(1)
    values = slides(random, 30, 5)
    within = random.uniform(1, 4, (30, 5))
    tiles = np.array([40, 120] * 15)
    cohort, _ = fit_training_slides([values], [within], tiles)
    scale = math.sqrt(values.var(0).mean())
    covariance = LedoitWolf().fit(values / scale).covariance_
    noise = (within * tiles[:, None]).sum(0) / tiles.sum() / scale**2
    one = slides(random, 1, 5)[0] + 4
    for count in (10, 59):
        # The harmonic mean of 40 and 120 is 60.
        widened = covariance + (1 / count - 1 / 60) * np.diag(noise)
        expected = mahalanobis(one / scale, values.mean(0) / scale, np.linalg.inv(widened))
        assert cohort.distance(one, count) == pytest.approx(expected, rel=1e-5)
    whole = mahalanobis(one / scale, values.mean(0) / scale, np.linalg.inv(covariance))
    for count in (60, 5000):
        assert cohort.distance(one, count) == pytest.approx(whole, rel=1e-5)


def test_slides_of_few_tiles_are_not_farther_than_others() -> None:
    """Drawn slides: without the allowance those of 5 tiles lie three times as far."""
    random = np.random.default_rng(2)
    width, between, within = 30, 0.3, 1.0

    def drawn(count: int, tiles: int) -> np.ndarray:
        centres = random.normal(0, between, (count, width))
        return centres + random.normal(0, within / math.sqrt(tiles), (count, width))

    training = drawn(200, 400)
    cohort, _ = fit_training_slides([training], [np.ones((200, width))], np.full(200, 400))
    usual = np.median([cohort.distance(one, 400) for one in drawn(200, 400)])
    few = drawn(200, 5)
    assert np.median([cohort.distance(one, 5) for one in few]) == pytest.approx(usual, rel=0.05)
    assert np.median([cohort.distance(one, 400) for one in few]) > 1.5 * usual


def test_too_few_training_slides_or_slides_that_are_all_alike() -> None:
    values = slides(np.random.default_rng(0), 9, 4)
    with pytest.raises(TooFewPatientsError) as caught:
        fitted(values)
    assert caught.value.what == "9 training slides are too few to compare with: it takes 10"
    with pytest.raises(TooFewPatientsError, match="the training slides do not differ"):
        fitted(np.ones((20, 4)))


# Limits.


def test_a_limit_is_the_conformal_quantile_worked_out_by_hand() -> None:
    """Of 39 patients 5% may lie beyond: ceil(40 * 0.95) = 38th in ascending order."""
    limit = fit_limit(np.arange(39, 0, -1.0), 0.05, date=DATE)
    assert (limit.distance, limit.rule, limit.share) == (38, "conformal", 2 / 40)
    assert (limit.largest, limit.patients, limit.cohort) == (39, 39, "validation patients")
    # 19 patients leave room for none beyond, and that is exactly 5%.
    limit = fit_limit(np.arange(1.0, 20), 0.05, date=DATE)
    assert (limit.distance, limit.rule, limit.share) == (19, "conformal", 1 / 20)


def test_with_too_few_patients_the_largest_is_extended_and_what_is_certain_is_told() -> None:
    limit = fit_limit(np.array([1.0, 3, 2, 4, 2, 1, 1, 2]), 0.005, date=DATE)
    assert (limit.rule, limit.largest, limit.share) == ("extended", 4, 1 / 9)
    factor = norm.isf(0.005 / 2) / norm.isf(1 / 18)
    assert limit.distance == pytest.approx(4 * factor)
    # The more patients, the less; none where they are enough.
    factors = [
        fit_limit(np.ones(count), 0.005, date=DATE).distance for count in (5, 20, 100, 198, 199)
    ]
    assert factors == sorted(factors, reverse=True)
    assert factors[-2:] == pytest.approx([1, 1], abs=1e-3)


def test_four_patients_set_no_limit() -> None:
    with pytest.raises(TooFewPatientsError) as caught:
        fit_limit(np.ones(4), 0.05, date=DATE)
    assert caught.value.what == "4 validation patients are too few to set a limit on: it takes 5"


@pytest.mark.parametrize(
    ("patients", "share", "least", "most"),
    [(99, 0.05, 0.04, 0.05), (39, 0.1, 0.075, 0.1), (8, 0.01, 0, 1 / 9), (30, 0.01, 0, 1 / 31)],
)
def test_how_often_a_slide_like_the_others_lies_beyond(
    patients: int, share: float, least: float, most: float
) -> None:
    """2,000 drawn cohorts of heavy tails, one more patient each: mean over cohorts.

    Conformal: between a - 1 / (n + 1) and a. Extended: below 1 / (n + 1) for certain.
    """
    random = np.random.default_rng(patients)
    drawn = np.abs(random.standard_t(3, (2000, patients + 1)))
    beyond = np.mean([own[-1] > fit_limit(own[:-1], share, date=DATE).distance for own in drawn])
    error = 4 * math.sqrt(most / 2000)
    assert least - error < beyond < most + error


def test_extended_limits_keep_to_the_share_where_slides_are_normal() -> None:
    """What the extension is for: some 1% of slides of 6 normal numbers, not 1 in 9."""
    random = np.random.default_rng(0)
    drawn = np.linalg.norm(random.normal(size=(4000, 9, 6)), axis=2)
    limits = np.array([fit_limit(own[:-1], 0.01, date=DATE).distance for own in drawn])
    assert (drawn[:, -1] > limits).mean() < 0.01
    assert (drawn[:, -1] > drawn[:, :-1].max(1)).mean() == pytest.approx(1 / 9, abs=0.02)


# From a run to a package.

STUDENTS = ("b", "a")


def write_run(
    path: Path,
    *,
    training: int = 20,
    validation: int = 8,
    networks: tuple[str, ...] = STUDENTS,
    seed: int = 0,
) -> dict[str, SlideFeatures]:
    """``slide_features.parquet`` of drawn slides; each validation patient has two."""
    random = np.random.default_rng(seed)
    roles = [("train", f"t{n}", f"t{n}") for n in range(training)]
    roles += [("validation", f"v{n}", f"v{n}-{k}") for n in range(validation) for k in (1, 2)]
    roles += [("test", f"x{n}", f"x{n}") for n in range(3)]
    found, rows = {}, []
    for role, patient, slide in roles:
        means = {name: random.normal(0, 1, 5) for name in networks}
        means["stain"] = random.normal(0, 0.2, 6)
        variances = {name: np.ones_like(values) for name, values in means.items()}
        found[slide] = SlideFeatures(
            50,
            {name: values.astype(np.float32) for name, values in means.items()},
            {name: values.astype(np.float32) for name, values in variances.items()},
        )
        rows.append(feature_row(slide, patient, role, found[slide]))
    pq.write_table(pa.concat_tables(rows), path)
    return found


def fit(path: Path, slide_ids: list[str], *, enabled: bool = True) -> FittedChecks:
    return fit_checks(path, slide_ids, STUDENTS, enabled=enabled, share=0.01, date=DATE)


def test_both_checks_are_fitted_to_training_slides_and_validation_patients(tmp_path: Path) -> None:
    path = tmp_path / "slide_features.parquet"
    features = write_run(path)
    found = fit(path, list(features))
    stain, embedding = found.packaged.checks
    assert (stain.what, stain.width, stain.training_slides) == ("stain", 6, 20)
    assert (embedding.what, embedding.width) == ("embedding", 10)
    assert found.packaged.not_checked == ()
    training = [one for name, one in features.items() if name.startswith("t")]
    # Students in the order of the package, each divided by the root of its mean variance.
    blocks = [np.array([one.means[name] for one in training], np.float64) for name in STUDENTS]
    scaled = np.concatenate([block / math.sqrt(block.var(0).mean()) for block in blocks], axis=1)
    reference = LedoitWolf().fit(scaled)
    new = features["x0"].means
    scaled_new = np.concatenate(
        [new[n] / math.sqrt(b.var(0).mean()) for n, b in zip(STUDENTS, blocks, strict=True)]
    )
    expected = math.sqrt(reference.mahalanobis(scaled_new[None])[0])
    assert found.distances["x0"]["embedding"] == pytest.approx(expected, rel=1e-5)
    # A patient's farthest slide counts, and the two checks share the 1%.
    farthest = [max(found.distances[f"v{n}-{k}"]["embedding"] for k in (1, 2)) for n in range(8)]
    assert embedding.limit == fit_limit(np.array(farthest), 0.005, date=DATE)
    assert found.packaged.limits["embedding"] == embedding.limit.distance

    read = cohort_from_bytes(found.files["out_of_distribution.safetensors"], found.packaged.checks)
    again = distances(features["x0"], read, STUDENTS)
    assert again == pytest.approx(found.distances["x0"])


def test_classes_and_other_roles_do_not_matter(tmp_path: Path) -> None:
    """Test slides that are moved away change neither the cohort nor the limits."""
    path = tmp_path / "slide_features.parquet"
    features = write_run(path)
    before = fit(path, list(features))
    table = pq.read_table(path).to_pandas()
    tested = table["role"] == "test"
    table.loc[tested, "mean_stain"] = table.loc[tested, "mean_stain"].map(lambda v: v + 9)
    pq.write_table(pa.Table.from_pandas(table), path)
    after = fit(path, list(features))
    assert after.packaged == before.packaged
    assert after.distances["x1"]["stain"] > 10 * before.distances["x1"]["stain"]


@pytest.mark.parametrize(
    ("run", "what", "reason"),
    [
        ({"training": 9}, "stain and embedding",
         "9 training slides are too few to compare with: it takes 10"),
        ({"validation": 4}, "stain and embedding",
         "4 validation patients are too few to set a limit on: it takes 5"),
        ({"networks": ("a",)}, "embedding", "not every student has pooled features"),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_says_why(tmp_path: Path, run: dict, what: str, reason: str) -> None:
    path = tmp_path / "slide_features.parquet"
    found = fit(path, list(write_run(path, **run)))
    assert found.packaged.reasons == {reason: what}
    assert ("stain" in found.packaged.limits) == (what == "embedding")
    assert (found.packaged.file is None) == (found.files == {}) == (what != "embedding")
    if what == "embedding":
        # The whole share is the stain's then.
        farthest = [max(found.distances[f"v{n}-{k}"]["stain"] for k in (1, 2)) for n in range(8)]
        assert found.packaged.checks[0].limit == fit_limit(np.array(farthest), 0.01, date=DATE)


def test_a_run_without_features_and_one_that_turned_it_off(tmp_path: Path) -> None:
    path = tmp_path / "slide_features.parquet"
    (reason,) = fit(path, ["s1"]).packaged.reasons
    assert reason.endswith("as an earlier medkd made them; predict and aggregate again")
    write_run(path)
    (reason,) = fit(path, ["s1"], enabled=False).packaged.reasons
    assert reason == "it was turned off by infer.out_of_distribution"


def test_features_of_other_slides_than_the_predictions(tmp_path: Path) -> None:
    path = tmp_path / "slide_features.parquet"
    features = write_run(path)
    with pytest.raises(StageError) as caught:
        fit(path, [*features, "more"])
    assert str(caught.value) == (
        f"{path}: is of other slides than the predictions. Run 'medkd predict' again."
    )


def test_other_patients_set_other_limits(tmp_path: Path) -> None:
    path = tmp_path / "slide_features.parquet"
    packaged = fit(path, list(write_run(path))).packaged
    site = {"stain": np.arange(1.0, 41), "embedding": np.full(40, 7.0)}
    new = refit_limits(packaged, site, 0.2, date=DATE, cohort="patients of St Mary")
    # Of 40 patients a tenth for each: ceil(41 * 0.9) = 37th.
    assert new.limits == {"stain": 37, "embedding": 7}
    assert new.checks[0].limit.cohort == "patients of St Mary"
    assert (new.file, new.checks[1].shrinkage) == (packaged.file, packaged.checks[1].shrinkage)


# Its file, and words.


def test_a_file_of_another_kind_or_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "slide_features.parquet"
    found = fit(path, list(write_run(path)))
    content, checks = found.files["out_of_distribution.safetensors"], found.packaged.checks
    with pytest.raises(ValueError, match="cannot be read: "):
        cohort_from_bytes(content[:100], checks)
    stain = {"stain": cohort_from_bytes(content, checks)["stain"]}
    with pytest.raises(ValueError, match="embedding/mean"):
        cohort_from_bytes(cohort_to_bytes(stain), checks)
    wider = checks[0].model_copy(update={"width": 7})
    with pytest.raises(ValueError, match=r"'stain' has other shapes than model\.json says"):
        cohort_from_bytes(content, [wider])


def test_a_limit_in_words() -> None:
    limit = DistanceLimit(
        distance=4.913, rule="extended", share=1 / 9, largest=2.79, patients=8,
        cohort="validation patients", date=DATE,
    )  # fmt: skip
    check = DistanceCheck(what="stain", width=6, training_slides=25, shrinkage=0.04, limit=limit)
    assert in_words(check) == (
        "The stain may lie up to 4.91 from the mean of 25 training slides (Mahalanobis distance). "
        "Set on 2030-01-02 by the largest distance of 8 validation patients, 2.79, extended as a "
        "normal distribution would have it; for certain, at most 11% of patients like these lie "
        "beyond."
    )
    quantile = limit.model_copy(update={"rule": "conformal", "share": 0.005, "patients": 399})
    assert in_words(check.model_copy(update={"limit": quantile})).endswith(
        "Set on 2030-01-02 by a quantile of the distances of 399 validation patients: at most 0.5% "
        "of patients like these lie beyond."
    )
