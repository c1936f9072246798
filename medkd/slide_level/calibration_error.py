"""How far probabilities are from what happens: reliability, ECE, Brier score, slope, intercept.

The unit is the patient. Bins are those of scikit-learn's ``calibration_curve``: a probability on
the edge of two bins belongs to the lower one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from medkd.slide_level.calibration import logit
from medkd.slide_level.calibration_fit import log_losses, maximum_likelihood
from medkd.slide_level.labelled import check_labelled
from medkd.slide_level.operating_point import exact_interval
from medkd.slide_level.statistics import Estimate

Scheme = Literal["equal width", "equal count"]


@dataclass(frozen=True)
class ReliabilityBin:
    """Patients of like probability.

    Attributes:
        lower, upper: edges; ``lower`` itself lies outside but in the first bin.
        patients, positives: counts.
        mean_probability: of the patients in it.
        share: of positives among them.
        interval: exact, of the share.
    """

    lower: float
    upper: float
    patients: int
    positives: int
    mean_probability: float
    share: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram in numbers. Bins without patients are left out.

    Attributes:
        scheme: ``equal width`` over [0, 1], or ``equal count`` by quantiles.
        asked: how many bins were asked for.
        bins: rising.
        confidence: level of the intervals.
    """

    scheme: Scheme
    asked: int
    bins: tuple[ReliabilityBin, ...]
    confidence: float

    @property
    def expected_error(self) -> float:
        """Expected calibration error: mean of \\|share - mean probability\\| over patients.

        Naeini et al., AAAI 2015. It is biased upwards: chance alone gives each bin an error.
        """
        gaps = [bin.patients * abs(bin.share - bin.mean_probability) for bin in self.bins]
        return float(sum(gaps) / sum(bin.patients for bin in self.bins))

    @property
    def squared_error(self) -> float | None:
        """Mean squared gap over patients without the bias that chance gives it.

        From each bin's squared gap the variance of its share, ``share (1 - share) / (n - 1)``, is
        taken (Kumar, Liang and Ma, NeurIPS 2019, debiased estimator). Of calibrated probabilities
        it is 0 on average, so it may be negative. None where a bin has a single patient, whose
        variance cannot be had.
        """
        if any(bin.patients < 2 for bin in self.bins):
            return None
        gaps = [
            bin.patients
            * (
                (bin.share - bin.mean_probability) ** 2
                - bin.share * (1 - bin.share) / (bin.patients - 1)
            )
            for bin in self.bins
        ]
        return float(sum(gaps) / sum(bin.patients for bin in self.bins))


@dataclass(frozen=True)
class BrierDecomposition:
    """``score = reliability - resolution + uncertainty + within_bins``.

    Murphy 1973; ``within_bins`` is what Stephenson, Coelho and Jolliffe (2008) add where
    probabilities differ within a bin. Reliability is 0 at best, resolution the higher the better,
    uncertainty is that of the cohort alone.
    """

    score: float
    reliability: float
    resolution: float
    uncertainty: float
    within_bins: float


@dataclass(frozen=True)
class CalibrationFigures:
    """Calibration of one cohort.

    Attributes:
        patients, positives: counts.
        bins: asked for, in both schemes.
        confidence: level of the intervals.
        ece_equal_width, ece_equal_count: expected calibration error, biased upwards.
        squared_error_debiased: over the bins of equal count; see :attr:`Reliability.squared_error`.
        brier: decomposed over the bins of equal count.
        brier_score, log_loss: with t intervals of their mean over patients; log loss in nats.
        slope: 1 at best; below 1 probabilities are too extreme.
        intercept: calibration in the large, 0 at best; above 0 probabilities are too low.
    """

    patients: int
    positives: int
    bins: int
    confidence: float
    ece_equal_width: float
    ece_equal_count: float
    squared_error_debiased: float | None
    brier: BrierDecomposition
    brier_score: Estimate
    log_loss: Estimate
    slope: Estimate
    intercept: Estimate

    def to_json(self) -> dict[str, Any]:
        """In plain JSON types."""
        estimates = ("brier_score", "log_loss", "slope", "intercept")
        return {**asdict(self), **{name: getattr(self, name).to_json() for name in estimates}}


def calibration_figures(
    labels: Any,
    probabilities: Any,
    *,
    bins: int = 10,
    confidence: float = 0.95,
    cohort: str = "test patients",
) -> CalibrationFigures:
    """All figures of calibration.

    Args:
        labels: (patients,), True for the positive class.
        probabilities: (patients,), in [0, 1].
        bins: of each scheme.
        confidence: level of the intervals.
        cohort: who they are, in words, for the messages.

    Raises:
        StageError: a class is absent, patients are too few, or a probability is not in [0, 1].
    """
    labels, probabilities = check_labelled(
        labels, probabilities, cohort=cohort, purpose="to measure calibration on"
    )
    by_width = reliability(labels, probabilities, bins=bins, scheme="equal width")
    by_count = reliability(labels, probabilities, bins=bins, scheme="equal count")
    return CalibrationFigures(
        patients=len(labels),
        positives=int(labels.sum()),
        bins=bins,
        confidence=confidence,
        ece_equal_width=by_width.expected_error,
        ece_equal_count=by_count.expected_error,
        squared_error_debiased=by_count.squared_error,
        brier=brier_decomposition(labels, probabilities, by_count),
        brier_score=_mean((probabilities - labels) ** 2, confidence),
        log_loss=_mean(log_losses(labels, probabilities), confidence),
        slope=calibration_slope(labels, probabilities, confidence=confidence),
        intercept=calibration_in_the_large(labels, probabilities, confidence=confidence),
    )


def reliability(
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    bins: int = 10,
    scheme: Scheme,
    confidence: float = 0.95,
) -> Reliability:
    """Patients in bins of probability.

    Args:
        labels: bool, (patients,).
        probabilities: float, (patients,), in [0, 1].
        bins: of equal width over [0, 1], or between quantiles of the probabilities. Equal
            probabilities stay together, so that bins of equal count may differ in count.
        scheme: which.
        confidence: level of the exact intervals.
    """
    steps = np.linspace(0, 1, bins + 1)
    edges = steps if scheme == "equal width" else np.quantile(probabilities, steps)
    number = np.searchsorted(edges[1:-1], probabilities, side="left")
    found = []
    for index in np.unique(number):
        inside = number == index
        patients, positives = int(inside.sum()), int(labels[inside].sum())
        found.append(
            ReliabilityBin(
                lower=float(edges[index]),
                upper=float(edges[index + 1]),
                patients=patients,
                positives=positives,
                mean_probability=float(probabilities[inside].mean()),
                share=positives / patients,
                interval=exact_interval(positives, patients, confidence),
            )
        )
    return Reliability(scheme, bins, tuple(found), confidence)


def brier_decomposition(
    labels: np.ndarray, probabilities: np.ndarray, binned: Reliability
) -> BrierDecomposition:
    """The Brier score and its parts over the bins of these patients."""
    patients = np.array([bin.patients for bin in binned.bins])
    share = np.array([bin.share for bin in binned.bins])
    mean = np.array([bin.mean_probability for bin in binned.bins])
    weight = patients / patients.sum()
    base = float(labels.mean())
    score = float(np.mean((probabilities - labels) ** 2))
    reliable = float(weight @ (mean - share) ** 2)
    resolved = float(weight @ (share - base) ** 2)
    uncertain = base * (1 - base)
    return BrierDecomposition(
        score=score,
        reliability=reliable,
        resolution=resolved,
        uncertainty=uncertain,
        within_bins=score - (reliable - resolved + uncertain),
    )


def calibration_slope(
    labels: np.ndarray, probabilities: np.ndarray, *, confidence: float = 0.95
) -> Estimate:
    """Slope of the logistic regression of the label on the log odds (Cox 1958), Wald interval."""
    log_odds = logit(probabilities)
    positive, negative = log_odds[labels], log_odds[~labels]
    if log_odds.min() == log_odds.max():
        return Estimate(None, reason="all probabilities are equal")
    # Without overlap the likelihood has no maximum (Albert and Anderson 1984).
    if negative.max() <= positive.min() or positive.max() <= negative.min():
        return Estimate(None, reason="the classes are separated")
    features = np.stack([log_odds, np.ones_like(log_odds)], 1)
    return _wald(features, labels, np.zeros_like(log_odds), confidence)


def calibration_in_the_large(
    labels: np.ndarray, probabilities: np.ndarray, *, confidence: float = 0.95
) -> Estimate:
    """What must be added to all log odds to expect as many positives as there are.

    The intercept of the logistic regression with the log odds as offset (Steyerberg 2019, 15.3),
    with its Wald interval.
    """
    log_odds = logit(probabilities)
    return _wald(np.ones((len(labels), 1)), labels, log_odds, confidence)


def _wald(
    features: np.ndarray, labels: np.ndarray, offset: np.ndarray, confidence: float
) -> Estimate:
    """The first parameter of a logistic regression."""
    from scipy.stats import norm

    count = features.shape[1]
    free = [(-np.inf, np.inf)] * count
    found = maximum_likelihood(features, labels.astype(np.float64), free, [0.0] * count, offset)
    log_odds = features @ found + offset
    variance = np.exp(-np.logaddexp(0, log_odds) - np.logaddexp(0, -log_odds))
    information = features.T @ (features * variance[:, None])
    half = norm.ppf((1 + confidence) / 2) * np.sqrt(np.linalg.inv(information)[0, 0])
    return Estimate(float(found[0]), float(found[0] - half), float(found[0] + half))


def _mean(losses: np.ndarray, confidence: float) -> Estimate:
    from scipy.stats import t

    error = losses.std(ddof=1) / np.sqrt(len(losses))
    half = float(t.ppf((1 + confidence) / 2, len(losses) - 1) * error)
    mean = float(losses.mean())
    return Estimate(mean, max(0.0, mean - half), mean + half)
