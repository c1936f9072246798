"""Tiles, tissue and call as DICOM objects that belong to a DICOM slide."""

from __future__ import annotations

import io
from typing import Any

import highdicom as hd
import numpy as np
from highdicom.pm import (
    DerivedPixelContrastValues,
    ImageFlavorValues,
    ParametricMap,
    RealWorldValueMapping,
)
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from medkd import __version__
from medkd.inference.engine import SlideInference
from medkd.inference.maps.dicom_report import coding_scheme, concept, report, software
from medkd.inference.maps.dicom_source import DicomSource, dicom_source
from medkd.inference.maps.grid import TileGrid
from medkd.inference.package import ModelPackage
from medkd.inference.result import Result

PADDING = -1.0
"""Value of the parametric map where no tile is; no probability is below 0."""

_FRAME_PX = 256


def dicom_maps(
    inference: SlideInference,
    result: Result,
    package: ModelPackage,
    grid: TileGrid,
    values: np.ndarray,
    *,
    keep_uids: bool,
) -> dict[str, bytes]:
    """A parametric map, a segmentation and a structured report: file name to content.

    Args:
        inference: of the slide.
        result: of the same.
        package: the model.
        grid: of the tiles.
        values: probability of each of its cells, float, rows x columns, nan where no tile is.
        keep_uids: whether they join the slide's study; else they make up a study of their own.

    Raises:
        SlideError: as :func:`medkd.inference.maps.dicom_source.dicom_source`.
    """
    source = dicom_source(inference.properties, keep_uids=keep_uids)
    probability = _parametric_map(source, package, grid, values)
    tissue = _segmentation(source, inference, package)
    called = report(source, inference, result, package, [probability, tissue])
    objects = {"heatmap.dcm": probability, "tissue.dcm": tissue, "report.dcm": called}
    return {name: _bytes_of(content) for name, content in objects.items()}


def _parametric_map(
    source: DicomSource, package: ModelPackage, grid: TileGrid, values: np.ndarray
) -> ParametricMap:
    quantity = f"Probability of {package.manifest.positive}"
    written = ParametricMap(
        pixel_array=np.where(np.isnan(values), PADDING, values).astype(np.float32),
        real_world_value_mappings=[
            RealWorldValueMapping(
                lut_label="probability",
                lut_explanation=quantity,
                unit=codes.UCUM.NoUnits,
                value_range=(0.0, 1.0),
                quantity_definition=concept("PROBABILITY", quantity),
            )
        ],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=0.5, window_width=1.0)],
        contains_recognizable_visual_features=False,
        content_label="PROBABILITY",
        content_description="Probability of each tile. Research use only.",
        image_flavor=ImageFlavorValues.VOLUME,
        derived_pixel_contrast=DerivedPixelContrastValues.QUANTITY,
        coding_schemes=[coding_scheme()],
        series_description="medkd: probability by tile, research use only",
        **_plane(source, grid.step_px, grid.extent_px / 2, values.shape),
        **_instance(source, package, 1),
    )
    written.FloatPixelPaddingValue = PADDING
    return written


def _segmentation(
    source: DicomSource, inference: SlideInference, package: ModelPackage
) -> Segmentation:
    step_px = inference.thumbnail_mpp / inference.properties.mpp
    return Segmentation(
        pixel_array=inference.tissue_mask.astype(np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            SegmentDescription(
                segment_number=1,
                segment_label="Tissue",
                segmented_property_category=codes.SCT.Tissue,
                segmented_property_type=codes.SCT.Tissue,
                algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=hd.AlgorithmIdentificationSequence(
                    name="medkd tissue mask",
                    family=codes.DCM.HistogramAnalysis,
                    version=__version__,
                ),
            )
        ],
        omit_empty_frames=False,
        content_label="TISSUE",
        content_description="Tissue that tiles were taken from. Research use only.",
        series_description="medkd: tissue, research use only",
        **_plane(source, step_px, step_px / 2, inference.tissue_mask.shape),
        **_instance(source, package, 2),
    )


def _plane(
    source: DicomSource, step_px: float, centre_px: float, shape: tuple[int, ...]
) -> dict[str, Any]:
    """Where pixels lie that are ``step_px`` level-0 pixels apart, the first at ``centre_px``."""
    height, width = shape
    row_mm, column_mm = source.spacing_mm
    slide = hd.CoordinateSystemNames.SLIDE
    position = hd.PlanePositionSequence(
        slide, source.position_mm(centre_px, centre_px), pixel_matrix_position=(1, 1)
    )
    return {
        "pixel_measures": hd.PixelMeasuresSequence(
            (step_px * row_mm, step_px * column_mm), source.section_mm
        ),
        "plane_orientation": hd.PlaneOrientationSequence(slide, source.orientation),
        "plane_positions": [position],
        "tile_pixel_array": True,
        "tile_size": (min(_FRAME_PX, height), min(_FRAME_PX, width)),
        "dimension_organization_type": hd.DimensionOrganizationTypeValues.TILED_FULL,
    }


def _instance(source: DicomSource, package: ModelPackage, number: int) -> dict[str, Any]:
    return {
        "source_images": [source.header],
        "series_instance_uid": hd.UID(),
        "series_number": number,
        "sop_instance_uid": hd.UID(),
        "instance_number": 1,
        "content_qualification": hd.ContentQualificationValues.RESEARCH,
        **software(package),
    }


def _bytes_of(content: Dataset) -> bytes:
    content.PatientIdentityRemoved = "YES"
    content.DeidentificationMethod = "medkd takes over geometry and UIDs only"
    buffer = io.BytesIO()
    content.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
