"""What training slides look like, and how far validation patients lie from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import ndtri
from sklearn.covariance import ledoit_wolf_shrinkage

from medkd.errors import StageError, TooFewPatientsError
from medkd.slide_level.feature_file import CohortFeatures, read_features
from medkd.slide_level.out_of_distribution import (
    FILE,
    WHATS,
    DistanceCheck,
    DistanceLimit,
    NotChecked,
    OutOfDistribution,
    TrainingSlides,
    What,
    cohort_to_bytes,
    compared,
    nothing_checked,
)

COHORT = "validation patients"

FEWEST_TRAINING_SLIDES = 10
FEWEST_PATIENTS = 5


@dataclass(frozen=True)
class FittedChecks:
    """For a model package, and what they say of the slides that they were fitted to.

    Attributes:
        packaged: for the manifest.
        files: relative path to content; none where nothing is checked.
        distances: by slide, each distance that is checked.
    """

    packaged: OutOfDistribution
    files: Mapping[str, bytes]
    distances: Mapping[str, Mapping[str, float]]


def fit_checks(
    path: Path,
    slide_ids: Sequence[str],
    students: Sequence[str],
    *,
    enabled: bool,
    share: float,
    date: str,
) -> FittedChecks:
    """Fit both checks to the training slides of a run, and their limits to validation patients.

    Args:
        path: ``slide_features.parquet`` of the run.
        slide_ids: of its predictions.
        students: that ship.
        enabled: whether anything is to be checked.
        share: of patients like those of validation, the most that may be taken for others; it is
            divided between the checks.
        date: of the limits, ISO.

    Raises:
        StageError: the features cannot be read, or are of other slides than the predictions.
    """
    if not enabled:
        return _unchecked("it was turned off by infer.out_of_distribution")
    features = read_features(path, students)
    if features is None:
        return _unchecked(
            "the predictions do not have what it takes, as an earlier medkd made them; predict and "
            "aggregate again"
        )
    if set(features.slides["slide_id"]) != set(slide_ids):
        raise StageError(
            "is of other slides than the predictions",
            where=path,
            remedy="Run 'medkd predict' again.",
        )
    with_embedding = all(student in features.means for student in students)
    whats = [what for what in WHATS if what == "stain" or with_embedding]
    reasons: dict[What, str] = {}
    if not with_embedding:
        reasons["embedding"] = "not every student has pooled features"
    cohort: dict[What, TrainingSlides] = {}
    checks: list[DistanceCheck] = []
    distances: dict[str, dict[str, float]] = {slide_id: {} for slide_id in slide_ids}
    for what in whats:
        try:
            slides, shrinkage = _training_slides(what, features, students)
            found = _distances(what, slides, features, students)
            limit = _limit(features, found, share / len(whats), date)
        except TooFewPatientsError as error:
            reasons[what] = error.what
            continue
        cohort[what] = slides
        checks.append(
            DistanceCheck(
                what=what,
                width=len(slides.mean),
                training_slides=int((features.slides["role"] == "train").sum()),
                shrinkage=shrinkage,
                limit=limit,
            )
        )
        for slide_id, distance in zip(features.slides["slide_id"], found.tolist(), strict=True):
            distances[slide_id][what] = distance
    packaged = OutOfDistribution(
        file=FILE if cohort else None,
        checks=tuple(checks),
        not_checked=tuple(NotChecked(what=w, reason=reasons[w]) for w in WHATS if w in reasons),
    )
    return FittedChecks(packaged, {FILE: cohort_to_bytes(cohort)} if cohort else {}, distances)


def refit_limits(
    packaged: OutOfDistribution,
    distances: Mapping[str, np.ndarray],
    share: float,
    *,
    date: str,
    cohort: str,
) -> OutOfDistribution:
    """The same comparison with the training slides, with limits that other patients set.

    Args:
        packaged: with the limits so far.
        distances: of what is compared, that of each patient's farthest slide, (patients,).
        share: of patients like these, the most that may be taken for others; divided between the
            checks.
        date: of the limits, ISO.
        cohort: who the patients are, in words.

    Raises:
        TooFewPatientsError: there are fewer than :data:`FEWEST_PATIENTS`.
    """
    checks = tuple(
        check.model_copy(
            update={
                "limit": fit_limit(
                    distances[check.what], share / len(packaged.checks), date=date, cohort=cohort
                )
            }
        )
        for check in packaged.checks
    )
    return packaged.model_copy(update={"checks": checks})


def _unchecked(reason: str) -> FittedChecks:
    return FittedChecks(nothing_checked(reason), {}, {})


def _training_slides(
    what: What, features: CohortFeatures, students: Sequence[str]
) -> tuple[TrainingSlides, float]:
    training = (features.slides["role"] == "train").to_numpy()
    names = ["stain"] if what == "stain" else students
    return fit_training_slides(
        [features.means[name][training] for name in names],
        [features.variances[name][training] for name in names],
        features.slides["tiles"].to_numpy()[training],
    )


def _distances(
    what: What, slides: TrainingSlides, features: CohortFeatures, students: Sequence[str]
) -> np.ndarray:
    values = compared(what, features.means, students)
    # Slides of more tiles than training slides have are all treated alike.
    tiles = np.minimum(features.slides["tiles"].to_numpy(), math.ceil(slides.tiles.item()))
    found = np.empty(len(values))
    for count in np.unique(tiles):
        found[tiles == count] = slides.distances(values[tiles == count], int(count))
    return found


def _limit(
    features: CohortFeatures, distances: np.ndarray, share: float, date: str
) -> DistanceLimit:
    of_slides = features.slides.assign(distance=distances)
    validation = of_slides[of_slides["role"] == "validation"]
    farthest = validation.groupby("patient_id")["distance"].max()
    return fit_limit(farthest.to_numpy(), share, date=date)


def fit_training_slides(
    means: Sequence[np.ndarray], variances: Sequence[np.ndarray], tiles: np.ndarray
) -> tuple[TrainingSlides, float]:
    """Mean and covariance of training slides.

    The covariance is shrunk by Ledoit and Wolf's formula (J. Multivariate Anal. 88 (2004) 365),
    which is made for fewer slides than numbers. No direction is dropped before: slides of another
    kind stand out where training slides do not differ.

    Args:
        means: over the tiles of each slide, blocks (slides, D) of numbers that belong together,
            such as the features of one network. A block is divided by the root of its mean
            variance, so that one of large numbers does not hide the others.
        variances: over the tiles of each slide, likewise.
        tiles: of each slide, (slides,).

    Returns:
        Mean and covariance, and the shrinkage, 0 to 1.

    Raises:
        TooFewPatientsError: there are too few slides, or they do not differ.
    """
    slides = len(tiles)
    if slides < FEWEST_TRAINING_SLIDES:
        raise TooFewPatientsError(
            f"{slides} training slides are too few to compare with: it takes "
            f"{FEWEST_TRAINING_SLIDES}",
            where="training slides",
            remedy="Train on more slides.",
        )
    scale = np.concatenate(
        [np.full(block.shape[1], math.sqrt(block.var(0).mean()) or 1.0) for block in means]
    )
    values = np.concatenate(means, axis=1)
    off = (values - values.mean(0)) / scale
    shrinkage = float(ledoit_wolf_shrinkage(off, assume_centered=True))
    rest = shrinkage * float(np.square(off).mean())
    if rest <= 0:
        raise TooFewPatientsError(
            "the training slides do not differ",
            where="training slides",
            remedy="Train on slides that differ.",
        )
    _, singular, directions = np.linalg.svd(off, full_matrices=False)
    # Of centred slides the last singular value is rounding.
    spanned = singular > 1e-6 * singular[0]
    loadings = math.sqrt((1 - shrinkage) / slides) * singular[:, None] * directions
    of_tiles = np.average(np.concatenate(variances, axis=1), axis=0, weights=tiles)
    cohort = TrainingSlides(
        mean=values.mean(0),
        scale=scale,
        loadings=loadings[spanned].astype(np.float32),
        rest=np.array([rest]),
        noise=of_tiles / scale**2,
        tiles=np.array([1 / np.mean(1 / tiles)]),
    )
    return cohort, shrinkage


def fit_limit(
    distances: np.ndarray, share: float, *, date: str, cohort: str = COHORT
) -> DistanceLimit:
    """The limit of a distance.

    With ``n`` patients that were not trained on, the ``ceil((n + 1) (1 - share))``-th smallest
    distance is exceeded by at most ``share`` of the patients that come from where these come from
    (split conformal prediction; Vovk, Gammerman and Shafer 2005). Where that number is above
    ``n``, the largest distance is multiplied by ``z(1 - share / 2) / z(1 - 1 / (2 n + 2))``, ``z``
    being quantiles of the normal distribution. By itself the largest is exceeded by at most
    ``1 / (n + 1)``, which is all that is certain then.

    Args:
        distances: of patients, of each that of the farthest slide, (patients,).
        share: that may lie beyond, in (0, 1).
        date: of the limit, ISO.
        cohort: who the patients are, in words.

    Raises:
        TooFewPatientsError: there are fewer than :data:`FEWEST_PATIENTS`.
    """
    count = len(distances)
    if count < FEWEST_PATIENTS:
        raise TooFewPatientsError(
            f"{count} {cohort} are too few to set a limit on: it takes {FEWEST_PATIENTS}",
            where=cohort,
            remedy="Add patients.",
        )
    ordered = np.sort(distances)
    # Whole numbers must not be lost to rounding, as in medkd.slide_level.conformal.
    outside = math.floor((count + 1) * share + 1e-9)
    certain = max(outside, 1) / (count + 1)
    if outside:
        limit = ordered[count - outside]
    else:
        limit = ordered[-1] * ndtri(1 - share / 2) / ndtri(1 - certain / 2)
    return DistanceLimit(
        distance=float(limit),
        rule="conformal" if outside else "extended",
        share=certain,
        largest=float(ordered[-1]),
        patients=count,
        cohort=cohort,
        date=date,
    )
