"""Slides of flat tiles, one of them marked, as Aperio's and as DICOM, and what is called of them.

The grid has 6 x 4 tiles of 224 px at 0.5 um/px (112 um, 14 pixels of the thumbnail); the slide
reaches 40 um and 25 um beyond them. The first row and column are glass. Red is 120 on the tissue
and 230 on the marked tile, so the students' mean, 0.75 r + 0.15, is 0.503 and 0.826.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medkd.config import TileConfig
from medkd.inference.engine import SlideInference, Students, infer_slide
from medkd.inference.infer_stage import build_result
from medkd.inference.package import ModelPackage, load_package
from medkd.inference.result import Result
from tests.slides.test_dicom_tiles import Making, write_file

COLUMNS, ROWS, TILE_UM = 6, 4, 112.0
MARKED_COLUMN, MARKED_ROW = 4, 2
TISSUE, MARKED = 0.75 * 120 / 255 + 0.15, 0.75 * 230 / 255 + 0.15
TOLERANCE = 0.01  # of JPEG, in red

# The slide lies turned on the glass: its rows run along -y, its columns along -x.
ORIENTATION = [0, -1, 0, -1, 0, 0]
ORIGIN_MM = (20.0, 40.0)
FRAME_OF_REFERENCE, STUDY = "1.2.8", "1.2.4"


@dataclass(frozen=True)
class Called:
    """One slide with all that its maps are made from."""

    path: Path
    inference: SlideInference
    result: Result
    package: ModelPackage


def marked_image(
    mpp: float, *, marked: tuple[int, int] = (MARKED_COLUMN, MARKED_ROW)
) -> np.ndarray:
    """The drawing at ``mpp``, uint8 RGB."""
    image = np.full((round(473 / mpp), round(712 / mpp), 3), 243, np.uint8)

    def fill(column: int, row: int, colour: tuple[int, int, int]) -> None:
        left, right = (round(at * TILE_UM / mpp) for at in (column, column + 1))
        top, bottom = (round(at * TILE_UM / mpp) for at in (row, row + 1))
        image[top:bottom, left:right] = colour

    for row in range(1, ROWS):
        for column in range(1, COLUMNS):
            fill(column, row, (120, 40, 110))
    fill(*marked, (230, 90, 170))
    return image


def write_dicom_slide(path: Path, image: np.ndarray, mpp: float, **more: object) -> Path:
    """One level, with its place on the glass and with what must not get out."""
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = ORIGIN_MM
    told = {
        "FrameOfReferenceUID": FRAME_OF_REFERENCE,
        "PositionReferenceIndicator": "SLIDE_CORNER",
        "ImageOrientationSlide": ORIENTATION,
        "TotalPixelMatrixOriginSequence": [origin],
        "PatientName": "Doe^Jane",
        "PatientID": "MRN-4711",
        "PatientBirthDate": "19560708",
        "PatientSex": "F",
        "AccessionNumber": "S26-0815",
        "StudyDate": "20260102",
        "StudyID": "STUDY-99",
        "ReferringPhysicianName": "House^Gregory",
        "InstitutionName": "St. Elsewhere",
        "Manufacturer": "ScanCo",
        "DeviceSerialNumber": "SN-123",
        "ContainerIdentifier": "S26-0815-A1",
        **more,
    }
    present = tuple((name, value) for name, value in told.items() if value is not None)
    write_file(path, image, Making(more=present), number=0, mpp=mpp)
    return path


@pytest.fixture(scope="session")
def call(make_package, tmp_path_factory) -> Callable[..., Called]:
    """``call(path, mpp=None, **changes of the package)``."""

    def made(path: Path, *, mpp: float | None = None, size_px: int = 224, **changes) -> Called:
        tile = TileConfig(mpp=0.5, size_px=size_px, min_focus=0.0, **changes.pop("tile", {}))
        folder = make_package(
            tmp_path_factory.mktemp("package") / "model",
            preprocessing={"tile": tile.model_dump(mode="json")},
            **{"threshold": 0.6, **changes},
        )
        package = load_package(folder)
        inference = infer_slide(path, package, Students(package), mpp=mpp)
        return Called(path, inference, build_result(inference, package, {}), package)

    return made


@pytest.fixture(scope="session", params=[0.25, 0.5])
def marked(request, call, tmp_path_factory) -> Called:
    """The marked slide as DICOM, at each resolution of level 0."""
    path = tmp_path_factory.mktemp("dicom") / "slide.dcm"
    return call(write_dicom_slide(path, marked_image(request.param), request.param))
