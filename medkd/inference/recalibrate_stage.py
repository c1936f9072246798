"""The recalibrate stage: a model package moved to a new scanner or site, as a new version."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medkd.errors import ConfigError, StageError, TooFewPatientsError
from medkd.inference.labelled_patients import LabelledPatients, check_patients, join_patients
from medkd.inference.labelled_results import read_labels, read_results
from medkd.inference.manifest import PackagedOperatingPoint
from medkd.inference.new_version import check_new_folder, version_name, write_new_version
from medkd.inference.package import ModelPackage, load_package
from medkd.inference.recalibration_record import (
    RecalibrationRecord,
    SiteDistances,
    SiteFigure,
    SiteFigures,
)
from medkd.progress import warn
from medkd.slide_level.calibration_error import CalibrationFigures
from medkd.slide_level.conformal import ConformalSets, fit_conformal
from medkd.slide_level.operating_point import OperatingPoint
from medkd.slide_level.out_of_distribution import OutOfDistribution
from medkd.slide_level.out_of_distribution_fit import refit_limits
from medkd.slide_level.recalibration import Recalibration, recalibrate

TARGET_SENSITIVITY = 0.95


@dataclass(frozen=True)
class RecalibrateOptions:
    """How a model is moved to a new site.

    Attributes:
        site: whose patients they are, in words that follow 'patients of'.
        target_sensitivity: of the new operating point; None: that of the model's, or 0.95 where
            its rule is another.
        prevalence: of the positive class at the site; None: the share among the patients.
        conformal_error: of the new prediction sets; None: that of the model's, if it has any.
        no_conformal: leave the model's prediction sets out, so that the operating point calls.
    """

    site: str = "the new site"
    target_sensitivity: float | None = None
    prevalence: float | None = None
    conformal_error: float | None = None
    no_conformal: bool = False

    @property
    def cohort(self) -> str:
        """Who the patients are, in words."""
        return f"patients of {self.site}"


def run_recalibrate_stage(
    model: Path, results: Path, labels: Path, out: Path, options: RecalibrateOptions
) -> ModelPackage:
    """Fit calibration and operating point to a site's labelled slides, and write a new version.

    Args:
        model: the package that called the slides; it is only read.
        results: what ``medkd infer --model model --out results`` wrote.
        labels: a table with slide_id, label and, if patients have several slides, patient_id.
        out: folder of the new package; must not be there.
        options: how.

    Returns:
        The new package; its ``manifest.recalibration`` says what changed.

    Raises:
        ConfigError: options that contradict one another, or a site without a name.
        ModelPackageError: the model was changed, or has no operating point.
        StageError: results of another model or that cannot be read; patients that nothing can be
            fitted to, or too few for the prediction sets.
        TableError: the labels cannot be used.
        OutputError: ``out`` is there already, or cannot be written.
    """
    options = _checked(options)
    check_new_folder(out, model)
    package = load_package(model)
    manifest = package.manifest
    old_point = manifest.operating_point
    assert old_point is not None  # load_package refuses a package without one
    compared = manifest.out_of_distribution
    patients = join_patients(
        read_results(results, package),
        read_labels(labels, manifest.classes),
        pooling=manifest.slide_head.patient,
        positive=manifest.positive,
        cohort=options.cohort,
        compared=() if compared is None else compared.limits,
    )
    for warning in patients.warnings:
        warn(warning)
    check_patients(
        patients, positive=manifest.positive, negative=package.negative, cohort=options.cohort
    )
    target, of_the_target = _target_sensitivity(old_point, options)
    date = datetime.now(UTC)
    found = recalibrate(
        patients.labels,
        patients.scores,
        manifest.calibration,
        old_point.threshold,
        target_sensitivity=target,
        prevalence=options.prevalence,
        confidence=manifest.slide_level.confidence,
        date=date.date().isoformat(),
        cohort=options.cohort,
    )
    conformal = _prediction_sets(package, patients, found, options)
    of_the_cohort = _of_the_cohort(patients, found, options, manifest.positive)
    limits, distances, of_the_limits = _distance_limits(package, patients, found, options)
    warnings = (*of_the_target, *of_the_cohort, *found.warnings, *of_the_limits)
    for warning in warnings:
        warn(warning)
    record = _record(package, patients, found, options, distances, warnings)
    new: dict[str, Any] = {
        "calibration": found.map.model_dump(mode="json"),
        "operating_point": found.new_point.to_json(),
        "conformal": None if conformal is None else conformal.model_dump(mode="json"),
        "test_performance": None,
        "recalibration": record.model_dump(mode="json"),
        **({} if limits is None else {"out_of_distribution": limits.model_dump(mode="json")}),
    }
    return write_new_version(
        package,
        out,
        {
            **new,
            "version": version_name(manifest.version, options.site, new),
            "created": date.isoformat(timespec="seconds"),
        },
    )


def _checked(options: RecalibrateOptions) -> RecalibrateOptions:
    """The options with the site's name on one line."""
    site = " ".join(options.site.split())
    if not site:
        raise ConfigError(
            "is empty", where="--cohort", remedy="Say whose patients they are, or leave it out."
        )
    if options.no_conformal and options.conformal_error is not None:
        raise ConfigError(
            "cannot stand beside --conformal-error",
            where="--no-conformal",
            remedy="Leave one of the two out.",
        )
    return replace(options, site=site)


def _prediction_sets(
    package: ModelPackage,
    patients: LabelledPatients,
    found: Recalibration,
    options: RecalibrateOptions,
) -> ConformalSets | None:
    """Sets for the new map; None where the operating point is to call."""
    old = package.manifest.conformal
    error_rate = options.conformal_error
    if error_rate is None and old is not None:
        error_rate = old.error_rate
    if error_rate is None or options.no_conformal:
        return None
    try:
        return fit_conformal(
            patients.labels,
            found.map(patients.scores),
            error_rate,
            date=found.new_point.date,
            cohort=options.cohort,
        )
    except StageError as error:
        raise StageError(
            f"the prediction sets cannot be fitted: {error.what}",
            where=error.where,
            remedy=f"{error.remedy} The options are --conformal-error RATE; or --no-conformal, and "
            "the operating point calls.",
        ) from error


def _distance_limits(
    package: ModelPackage,
    patients: LabelledPatients,
    found: Recalibration,
    options: RecalibrateOptions,
) -> tuple[OutOfDistribution | None, tuple[SiteDistances, ...], tuple[str, ...]]:
    """Limits that take these patients for normal, what became of each, and what is to be told."""
    old = package.manifest.out_of_distribution
    if old is None or not old.checks:
        return old, (), ()
    warnings = []
    try:
        new = refit_limits(
            old,
            patients.distances,
            package.manifest.gates.out_of_distribution_share,
            date=found.new_point.date,
            cohort=options.cohort,
        )
    except TooFewPatientsError as error:
        new = old
        warnings.append(
            "The old limits of what is out of distribution are kept, which the site's slides may "
            f"lie beyond: {error.what}."
        )
    changes = tuple(
        SiteDistances(
            what=what,
            old_limit=limit,
            new_limit=new.limits[what],
            beyond_old=int((patients.distances[what] > limit).sum()),
        )
        for what, limit in old.limits.items()
    )
    if new is not old:
        warnings += [
            f"{one.beyond_old} of the {len(patients.labels)} patients have a slide whose "
            f"{one.what} was out of distribution; the new limit of {one.new_limit:.2f} takes such "
            "slides for normal. Look whether they are."
            for one in changes
            if one.beyond_old
        ]
    return new, changes, tuple(warnings)


def _target_sensitivity(
    old: PackagedOperatingPoint, options: RecalibrateOptions
) -> tuple[float, tuple[str, ...]]:
    """The sensitivity to reach, and a warning where the model's threshold had another rule."""
    target = options.target_sensitivity
    if old.target_sensitivity is not None:
        return old.target_sensitivity if target is None else target, ()
    target = TARGET_SENSITIVITY if target is None else target
    return target, (
        f"The model's operating point was chosen by another rule ({old.rule}); the new one fixes "
        f"a sensitivity of {100 * target:g}%.",
    )


def _of_the_cohort(
    patients: LabelledPatients,
    found: Recalibration,
    options: RecalibrateOptions,
    positive: str,
) -> tuple[str, ...]:
    told = []
    if patients.synthetic_slides:
        told.append(
            f"{patients.synthetic_slides} of the {patients.slides} slides are synthetic: drawn, "
            "not scanned."
        )
    if options.prevalence is None and found.parameters:
        told.append(
            f"No prevalence was given: probabilities are for a site where "
            f"{patients.labels.mean():.0%} of the patients are {positive}, as they are "
            "here. Give it where patients were picked by label."
        )
    return tuple(told)


def _record(
    package: ModelPackage,
    patients: LabelledPatients,
    found: Recalibration,
    options: RecalibrateOptions,
    distances: tuple[SiteDistances, ...],
    warnings: tuple[str, ...],
) -> RecalibrationRecord:
    manifest, point = package.manifest, found.new_point
    return RecalibrationRecord(
        from_version=manifest.version,
        from_sha256=package.sha256,
        cohort=options.cohort,
        date=point.date,
        patients=point.patients,
        positives=point.positives,
        slides=patients.slides,
        synthetic_slides=patients.synthetic_slides,
        data_sha256=patients.sha256,
        prevalence=point.prevalence if options.prevalence is None else options.prevalence,
        prevalence_is_stated=options.prevalence is not None,
        confidence=point.confidence,
        map_parameters=found.parameters,
        map_shrinkage=found.shrinkage,
        distances=distances,
        old=_figures(found.old_point, found.old_calibration),
        new=_figures(point, found.new_calibration),
        warnings=warnings,
        old_test_performance=manifest.test_performance,
        earlier=manifest.recalibration,
    )


def _figures(point: OperatingPoint, calibration: CalibrationFigures) -> SiteFigures:
    return SiteFigures(
        threshold=point.threshold,
        sensitivity=point.sensitivity,
        sensitivity_interval=point.sensitivity_interval,
        specificity=point.specificity,
        specificity_interval=point.specificity_interval,
        brier_score=SiteFigure(**calibration.brier_score.to_json()),
        log_loss=SiteFigure(**calibration.log_loss.to_json()),
        calibration_slope=SiteFigure(**calibration.slope.to_json()),
        calibration_intercept=SiteFigure(**calibration.intercept.to_json()),
    )
