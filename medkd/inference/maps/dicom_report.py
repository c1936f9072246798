"""The call as a DICOM structured report, and the terms that medkd's DICOM objects use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import highdicom as hd
from highdicom import sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from medkd import __version__
from medkd.inference.engine import SlideInference
from medkd.inference.maps.dicom_source import DicomSource
from medkd.inference.maps.grid import disclaimer
from medkd.inference.package import ModelPackage
from medkd.inference.result import Result

_SCHEME = "99MEDKD"

# Lengths of DICOM's value representations SH (codes) and LO (meanings and names).
_CODE_LENGTH, _NAME_LENGTH = 16, 64

# Of this program as an observer; one name, one UID (ITU-T X.667).
_OBSERVER_UID = "2.25.251471290632417406398562301467225640451"


def concept(code: str, meaning: str) -> sr.CodedConcept:
    """A term of medkd's own: no public scheme has one for what a model says of a class."""
    return sr.CodedConcept(code[:_CODE_LENGTH], _SCHEME, meaning[:_NAME_LENGTH])


def coding_scheme() -> CodingSchemeIdentificationItem:
    """What the terms of :func:`concept` belong to."""
    return CodingSchemeIdentificationItem(
        _SCHEME, name="medkd", version=__version__, responsible_organization="medkd"
    )


def software(package: ModelPackage) -> dict[str, Any]:
    """The model as the equipment that made an object, keyword arguments of highdicom's classes."""
    manifest = package.manifest
    return {
        "manufacturer": "medkd",
        "manufacturer_model_name": manifest.name[:_NAME_LENGTH],
        "software_versions": f"medkd {__version__}, model {manifest.version}"[:_NAME_LENGTH],
        "device_serial_number": package.sha256[:16],
    }


def report(
    source: DicomSource,
    inference: SlideInference,
    result: Result,
    package: ModelPackage,
    maps: Sequence[Dataset],
) -> sr.ComprehensiveSR:
    """A measurement report (TID 1500) with the call, its figures and its reasons.

    Args:
        source: the slide.
        inference: of the slide.
        result: of the same.
        package: the model.
        maps: the DICOM objects that belong to it.
    """
    group = sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=hd.UID(), identifier=result.slide_id),
        algorithm_id=sr.AlgorithmIdentification(
            name=package.manifest.name,
            version=package.manifest.version,
            parameters=[f"SHA-256 of model.json: {package.sha256}"],
            family=codes.DCM.ArtificialIntelligence,
            manufacturer="medkd",
        ),
        measurements=_measurements(inference, result, package),
        qualitative_evaluations=[
            sr.QualitativeEvaluation(concept("CALL", "Call"), concept(*_call(result.call)))
        ],
        source_images=[sr.SourceImageForMeasurementGroup.from_source_image(source.header)],
    )
    group[0].ContentSequence.append(
        sr.TextContentItem(
            name=codes.DCM.Comment,
            value=" ".join((*result.reasons, disclaimer(result))),
            relationship_type=sr.RelationshipTypeValues.CONTAINS,
        )
    )
    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=_OBSERVER_UID, name="medkd", manufacturer_name="medkd", model_name=__version__
        ),
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.SCT.LightMicroscopy,
        imaging_measurements=[group],
    )
    return sr.ComprehensiveSR(
        evidence=[source.header, *maps],
        content=content,
        series_instance_uid=hd.UID(),
        series_number=3,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        is_complete=True,
        # Nobody has read it, and nobody is to treat by it.
        is_final=False,
        is_verified=False,
        content_qualification=hd.ContentQualificationValues.RESEARCH,
        coding_schemes=[coding_scheme()],
        series_description="medkd: call, research use only",
        **software(package),
    )


def _call(call: str) -> tuple[str, str]:
    return re.sub(r"[^A-Z0-9]+", "_", call.upper()).strip("_"), call


def _measurements(
    inference: SlideInference, result: Result, package: ModelPackage
) -> list[sr.Measurement]:
    one = codes.UCUM.NoUnits
    measured = [
        ("OPERATING_POINT", "Operating point", result.operating_point.threshold, one),
        ("TISSUE_AREA", "Area of tissue", inference.tissue_area_mm2, codes.UCUM.SquareMillimeter),
        ("TILES_USED", "Tiles used", result.tiles.used, one),
    ]
    if result.probability_msi is not None and result.interval is not None:
        probability = f"Probability of {package.manifest.positive}"
        lower, upper = result.interval
        measured = [
            ("PROBABILITY", probability, result.probability_msi, one),
            ("INTERVAL_LOWER", f"{probability}, lower end of interval", lower, one),
            ("INTERVAL_UPPER", f"{probability}, upper end of interval", upper, one),
            *measured,
        ]
    return [
        sr.Measurement(name=concept(code, meaning), value=value, unit=unit)
        for code, meaning, value, unit in measured
    ]
