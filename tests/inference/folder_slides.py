"""Files as scanners leave them in folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"


def write_dicom(
    path: Path, image: np.ndarray, *, series: str, number: int = 1, kind: str = WHOLE_SLIDE
) -> Path:
    """One level of a slide of 1 um/px at level 0, as uncompressed frames of 64 px."""
    height, width = image.shape[:2]
    frames = [
        image[y : y + 64, x : x + 64] for y in range(0, height, 64) for x in range(0, width, 64)
    ]
    content = Dataset()
    content.file_meta = FileMetaDataset()
    content.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    content.SOPClassUID = content.file_meta.MediaStorageSOPClassUID = kind
    instance = f"{series}.{number}"
    content.SOPInstanceUID = content.file_meta.MediaStorageSOPInstanceUID = instance
    content.StudyInstanceUID, content.SeriesInstanceUID = "1.2.4", series
    first = ("ORIGINAL", "NONE") if number == 1 else ("DERIVED", "RESAMPLED")
    content.ImageType = [first[0], "PRIMARY", "VOLUME", first[1]]
    content.PhotometricInterpretation = "RGB"
    content.SamplesPerPixel, content.PlanarConfiguration = 3, 0
    content.BitsAllocated, content.BitsStored, content.HighBit = 8, 8, 7
    content.PixelRepresentation = 0
    content.Rows = content.Columns = 64
    content.TotalPixelMatrixRows, content.TotalPixelMatrixColumns = height, width
    content.DimensionOrganizationType = "TILED_FULL"
    measures, functional = Dataset(), Dataset()
    measures.PixelSpacing = [0.001 * number, 0.001 * number]
    functional.PixelMeasuresSequence = [measures]
    content.SharedFunctionalGroupsSequence = [functional]
    content.NumberOfFrames = len(frames)
    content.PixelData = np.stack(frames).tobytes()
    content["PixelData"].VR = "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    content.save_as(path, enforce_file_format=True)
    return path


def touch(folder: Path, *names: str) -> None:
    """Files of one byte."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
