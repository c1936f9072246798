"""What DICOM maps take over from the slide they are of: geometry and identifiers, no patient."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from medkd.errors import SlideError
from medkd.inference.maps.grid import SECTION_MM
from medkd.slides.dicom_headers import dicom_header, series_files
from medkd.slides.reader import SlideProperties

# Nothing else of the header is even read: what is not here cannot get out.
_TAKEN_OVER = (
    "Columns",
    "DimensionOrganizationType",
    "FrameOfReferenceUID",
    "ImageOrientationSlide",
    "LossyImageCompression",
    "LossyImageCompressionMethod",
    "LossyImageCompressionRatio",
    "NumberOfFrames",
    "PositionReferenceIndicator",
    "Rows",
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SharedFunctionalGroupsSequence",
    "StudyInstanceUID",
    "TotalPixelMatrixColumns",
    "TotalPixelMatrixOriginSequence",
    "TotalPixelMatrixRows",
)
_NEEDED = (
    "FrameOfReferenceUID",
    "ImageOrientationSlide",
    "StudyInstanceUID",
    "TotalPixelMatrixOriginSequence",
)


@dataclass(frozen=True)
class DicomSource:
    """Level 0 of a DICOM slide.

    Attributes:
        header: of its file, without pixels and without patient.
        spacing_mm: between the centres of rows, and of columns, of level 0.
        section_mm: thickness; nominal where the header does not say it.
        orientation: direction cosines along a row and down a column, slide coordinates.
    """

    header: Dataset
    spacing_mm: tuple[float, float]
    section_mm: float
    orientation: tuple[float, ...]

    def position_mm(self, x_px: float, y_px: float) -> tuple[float, float, float]:
        """Slide coordinates of a place in level-0 pixels; (0, 0) is the image's top left corner.

        The equation of PS3.3 C.7.6.2.1.1, which counts from the centre of the first pixel.
        """
        (origin,) = self.header.TotalPixelMatrixOriginSequence
        first = np.array(
            [
                float(origin.XOffsetInSlideCoordinateSystem),
                float(origin.YOffsetInSlideCoordinateSystem),
                float(origin.get("ZOffsetInSlideCoordinateSystem") or 0),
            ]
        )
        along_row, down_column = np.reshape(self.orientation, (2, 3))
        row_mm, column_mm = self.spacing_mm
        place = first + (x_px - 0.5) * column_mm * along_row + (y_px - 0.5) * row_mm * down_column
        x, y, z = place.tolist()
        return x, y, z


def dicom_source(properties: SlideProperties, *, keep_uids: bool) -> DicomSource:
    """The level-0 header of a slide with a made-up patient.

    The UIDs of the slide's frame of reference, series and instance stay: without them no viewer can
    lay a map over the slide. The study's is made up, too, unless ``keep_uids``.

    Raises:
        SlideError: it is no DICOM slide, or its header does not say where it lies.
    """
    path = properties.path
    if properties.vendor != "dicom":
        raise SlideError(
            "not_dicom",
            "is not a DICOM slide, so DICOM maps cannot refer to it",
            where=path,
            remedy="Leave dicom out of the maps, or convert the slide to DICOM.",
        )
    with warnings.catch_warnings():
        # Of identifiers that are too long, and the like: they stay as the slide has them.
        warnings.simplefilter("ignore")
        header = pydicom.dcmread(
            _level0_file(properties), stop_before_pixels=True, specific_tags=list(_TAKEN_OVER)
        )
    measures = _pixel_measures(header)
    spacing, section_mm = measures.get("PixelSpacing"), measures.get("SliceThickness")
    missing = [name for name in _NEEDED if not header.get(name)]
    if spacing is None:
        missing.append("PixelSpacing")
    if missing:
        raise SlideError(
            "no_dicom_geometry",
            f"its DICOM header lacks {', '.join(missing)}, without which no map can lie over it",
            where=path,
            remedy="Leave dicom out of the maps; geojson, nifti and tiff do without.",
        )
    if not keep_uids:
        header.StudyInstanceUID = generate_uid()
    _make_up_patient(header, properties)
    return DicomSource(
        header,
        (float(spacing[0]), float(spacing[1])),
        SECTION_MM if section_mm is None else float(section_mm),
        tuple(float(cosine) for cosine in header.ImageOrientationSlide),
    )


def _level0_file(properties: SlideProperties) -> Path:
    size = (properties.width_px, properties.height_px)
    for file in series_files(properties.path):
        header = dicom_header(file)
        if header is None or header.flavour != "VOLUME":
            continue
        if (header.width_px, header.height_px) == size:
            return file
    raise SlideError(
        "no_dicom_level",
        f"no file of its series is its level 0 of {size[0]} x {size[1]} px",
        where=properties.path,
        remedy="Copy the whole series again, or leave dicom out of the maps.",
    )


def _pixel_measures(header: Dataset) -> Any:
    groups = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
    measures = groups[0].get("PixelMeasuresSequence") or [Dataset()]
    return measures[0]


def _make_up_patient(header: Dataset, properties: SlideProperties) -> None:
    header.Modality = "SM"
    header.SpecificCharacterSet = "ISO_IR 192"
    header.PatientName = "Anonymous^"
    # A constant would make one patient of all slides in an archive.
    header.PatientID = f"medkd-{properties.fingerprint[:16]}"
    for keyword in (
        "PatientBirthDate",
        "PatientSex",
        "AccessionNumber",
        "StudyID",
        "StudyDate",
        "StudyTime",
        "ReferringPhysicianName",
    ):
        setattr(header, keyword, "")
