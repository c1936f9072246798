"""What a recalibrated model package says of its recalibration."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from medkd.schema import Strict

Interval = Annotated[tuple[float, float], Field(strict=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class SiteFigure(Strict):
    """A figure with its interval; ``reason`` says why either cannot be had."""

    value: float | None
    lower: float | None = None
    upper: float | None = None
    reason: str = ""


class SiteFigures(Strict):
    """What a calibration map and a threshold reach on the patients of the new site."""

    threshold: float
    sensitivity: float
    sensitivity_interval: Interval
    specificity: float
    specificity_interval: Interval
    brier_score: SiteFigure
    log_loss: SiteFigure = Field(description="Nats a patient.")
    calibration_slope: SiteFigure = Field(description="1 at best.")
    calibration_intercept: SiteFigure = Field(description="In the large, 0 at best.")

    def in_words(self) -> dict[str, str]:
        """The figures that people look at, each with its interval, by name."""
        # Not on top: this brings scipy, and infer starts without it.
        from medkd.slide_level.statistics import Estimate

        return {
            "threshold": f"{self.threshold:.4f}",
            "sensitivity": str(Estimate(self.sensitivity, *self.sensitivity_interval)),
            "specificity": str(Estimate(self.specificity, *self.specificity_interval)),
            "calibration slope": str(Estimate(**self.calibration_slope.model_dump())),
            "calibration intercept": str(Estimate(**self.calibration_intercept.model_dump())),
        }


class SiteDistances(Strict):
    """How far the site's patients lie from the training slides, and where the limit went."""

    what: str = Field(description="stain or embedding.")
    old_limit: float
    new_limit: float
    beyond_old: int = Field(description="Patients with a slide beyond the old limit.")


class RecalibrationRecord(Strict):
    """Where a recalibrated model comes from, what it was fitted to, and what that changed."""

    from_version: str
    from_sha256: Sha256 = Field(description="Of the manifest it was made from.")
    cohort: str
    date: str
    patients: int
    positives: int
    slides: int
    synthetic_slides: int = Field(description="Of the slides; these were drawn.")
    data_sha256: Sha256 = Field(description="Of slides, patients, labels, scores and tiles.")
    prevalence: float = Field(description="That the new calibration map is for.")
    prevalence_is_stated: bool = Field(
        description="false: it is the share of positives among the patients."
    )
    confidence: float = Field(description="Level of the intervals.")
    map_parameters: int = Field(
        description="Of the calibration map that were fitted: 0, 1 (slope) or 2 (and intercept)."
    )
    map_shrinkage: float = Field(description="0 keeps the old map, 1 takes the fit as it is.")
    distances: Annotated[tuple[SiteDistances, ...], Field(strict=False)] = Field(
        (), description="Of what the model compares with its training slides."
    )
    old: SiteFigures = Field(description="Of the old map and threshold.")
    new: SiteFigures = Field(
        description="Of the new ones; those of calibration are cross-validated."
    )
    warnings: Annotated[tuple[str, ...], Field(strict=False)]
    old_test_performance: dict[str, Any] | None = Field(
        description="The old model's test_performance, which does not hold for the new one."
    )
    earlier: RecalibrationRecord | None = Field(
        None, description="Of the model it was made from, where that was recalibrated too."
    )
