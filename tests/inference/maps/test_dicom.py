from __future__ import annotations

import io
import re
from dataclasses import replace

import highdicom as hd
import pydicom
import pytest
from pydicom.dataset import Dataset

from medkd.errors import SlideError
from medkd.inference.maps import map_files
from medkd.inference.maps.dicom_source import DicomSource, dicom_source
from tests.inference.maps.conftest import (
    FRAME_OF_REFERENCE,
    STUDY,
    marked_image,
    write_dicom_slide,
)

NAMES = ("heatmap.dcm", "tissue.dcm", "report.dcm")

# What the slide's header says of patient, study and scanner.
SECRETS = (b"Doe", b"Jane", b"MRN-4711", b"19560708", b"S26-0815", b"20260102", b"STUDY-99",
           b"House", b"Elsewhere", b"ScanCo", b"SN-123")  # fmt: skip


def files_of(called, **options) -> dict[str, bytes]:
    return map_files(called.inference, called.result, ["dicom"], package=called.package, **options)


def read(data: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(data))


def call_of(group: hd.sr.MeasurementsAndQualitativeEvaluations) -> hd.sr.CodeContentItem:
    (called,) = (e for e in group.get_qualitative_evaluations() if e.name.meaning == "Call")
    return called


@pytest.fixture(scope="module")
def half(call, tmp_path_factory):
    """The marked slide at 0.5 um/px, called as MSI: the operating point is below its score."""
    path = write_dicom_slide(tmp_path_factory.mktemp("dicom") / "slide.dcm", marked_image(0.5), 0.5)
    return call(path, threshold=0.45)


@pytest.fixture(scope="module")
def files(half) -> dict[str, bytes]:
    return files_of(half)


def test_nothing_of_patient_or_study_gets_out(files):
    assert tuple(files) == NAMES
    for data in files.values():
        assert not [secret for secret in SECRETS if secret in data]
        header = read(data)
        assert header.PatientName == "Anonymous^"
        assert re.fullmatch("medkd-[0-9a-f]{16}", header.PatientID)
        assert header.PatientIdentityRemoved == "YES"
        for keyword in ("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyDate",
                        "StudyTime", "StudyID", "ReferringPhysicianName"):  # fmt: skip
            assert not header[keyword].value


def test_they_lie_over_the_slide_and_share_a_study(files):
    headers = [read(data) for data in files.values()]
    assert len({header.StudyInstanceUID for header in headers}) == 1
    assert headers[0].StudyInstanceUID != STUDY
    assert len({header.SeriesInstanceUID for header in headers}) == 3
    for header in headers[:2]:
        assert header.FrameOfReferenceUID == FRAME_OF_REFERENCE
        (series,) = header.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == "1.2.5"
        assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == "1.2.3.1"


def test_the_study_is_kept_where_that_is_asked_for(half):
    for data in files_of(half, keep_uids=True).values():
        assert read(data).StudyInstanceUID == STUDY
        assert not [secret for secret in SECRETS if secret in data]


def test_every_object_is_for_research(files):
    for data in files.values():
        header = read(data)
        assert header.ContentQualification == "RESEARCH"
        assert header.SeriesDescription.endswith("research use only")


def test_the_parametric_map_says_what_its_values_are(files):
    image = hd.pm.ParametricMap.from_file(io.BytesIO(files["heatmap.dcm"]))
    (mapping,) = image.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    assert mapping.LUTExplanation == "Probability of MSI"
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    assert (
        mapping.DoubleFloatRealWorldValueFirstValueMapped,
        mapping.DoubleFloatRealWorldValueLastValueMapped,
    ) == (0, 1)
    assert image.DimensionOrganizationType == "TILED_FULL"


def test_the_report(files, half):
    document = hd.sr.srread(io.BytesIO(files["report.dcm"]))
    assert isinstance(document.content, hd.sr.MeasurementReport)
    assert (document.PreliminaryFlag, document.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")
    (group,) = document.content.get_image_measurement_groups()
    measured = {m.name.meaning: (m.value, m.unit.value) for m in group.get_measurements()}
    score, (lower, upper) = half.result.probability_msi, half.result.interval
    assert measured == {
        "Probability of MSI": (pytest.approx(score), "1"),
        "Probability of MSI, lower end of interval": (pytest.approx(lower), "1"),
        "Probability of MSI, upper end of interval": (pytest.approx(upper), "1"),
        "Operating point": (0.45, "1"),
        "Area of tissue": (pytest.approx(half.inference.tissue_area_mm2), "mm2"),
        "Tiles used": (15, "1"),
    }
    called = call_of(group)
    assert called.value.meaning == "MSI suspected"
    assert called.value.value == "MSI_SUSPECTED"
    (source,) = group.source_images
    assert source.referenced_sop_instance_uid == "1.2.3.1"
    made = {read(files[name]).SOPInstanceUID for name in NAMES[:2]}
    assert made < {instance for _, _, instance, _ in document.get_evidence()}
    comment = hd.sr.utils.find_content_items(
        document.content[0], name=pydicom.sr.codedict.codes.DCM.Comment, recursive=True
    )
    assert comment[0].value == " ".join((*half.result.reasons, "Research use only."))


def test_without_a_result_the_report_holds_no_probability(call, half):
    called = call(half.path, gates={"min_tiles": 100, "min_tissue_mm2": 0.01})
    document = hd.sr.srread(io.BytesIO(files_of(called)["report.dcm"]))
    (group,) = document.content.get_image_measurement_groups()
    names = [measured.name.meaning for measured in group.get_measurements()]
    assert names == ["Operating point", "Area of tissue", "Tiles used"]
    assert call_of(group).value.meaning == "no result"


def test_a_stated_mpp_does_not_move_the_map(call, half):
    """The slide's own spacing rules on the glass, whatever resolution was believed."""
    called = call(half.path, mpp=0.25, size_px=112)
    image = read(files_of(called)["heatmap.dcm"])
    spacing = image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    # Tiles of 56 um as believed are 224 px, which are 112 um on the glass.
    assert spacing == [0.112, 0.112]


def test_a_slide_in_another_format(call, flat_slide):
    called = call(flat_slide, mpp=0.5)
    with pytest.raises(SlideError) as raised:
        files_of(called)
    assert str(raised.value) == (
        f"{flat_slide}: is not a DICOM slide, so DICOM maps cannot refer to it. Leave dicom out of "
        "the maps, or convert the slide to DICOM."
    )


def test_a_slide_that_does_not_say_where_it_lies(call, tmp_path):
    missing = {"FrameOfReferenceUID": None, "TotalPixelMatrixOriginSequence": None}
    path = write_dicom_slide(tmp_path / "slide.dcm", marked_image(0.5), 0.5, **missing)
    with pytest.raises(SlideError) as raised:
        files_of(call(path))
    assert str(raised.value) == (
        f"{path}: its DICOM header lacks FrameOfReferenceUID, TotalPixelMatrixOriginSequence, "
        "without which no map can lie over it. Leave dicom out of the maps; geojson, nifti and "
        "tiff do without."
    )


def test_places_on_the_glass_where_pixels_are_not_square():
    """100 columns of 1 um along +y and 50 rows of 2 um along -x, from the first pixel's centre."""
    header, origin = Dataset(), Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = 10, 20
    header.TotalPixelMatrixOriginSequence = [origin]
    source = DicomSource(header, (0.002, 0.001), 0.004, (0, 1, 0, -1, 0, 0))
    assert source.position_mm(100.5, 50.5) == pytest.approx((10 - 0.1, 20 + 0.1, 0))


def test_a_level_that_is_gone(half):
    properties = half.inference.properties
    gone = replace(properties, width_px=9)
    with pytest.raises(SlideError, match="no file of its series is its level 0 of 9 x 946 px"):
        dicom_source(gone, keep_uids=False)


@pytest.mark.real_data
def test_a_real_slide(call, real_slides):
    """50 x 50 px of 0.499 um that highdicom tests with, without a tissue tile of this size."""
    called = call(real_slides / "highdicom_sm_image.dcm", size_px=16)
    slide = pydicom.dcmread(real_slides / "highdicom_sm_image.dcm", stop_before_pixels=True)
    for data in files_of(called).values():
        header = read(data)
        assert str(slide.PatientName) not in str(header)
        assert "AA01" not in str(header)
        assert "S19-1" not in str(header)
    image = read(files_of(called)["heatmap.dcm"])
    assert image.FrameOfReferenceUID == slide.FrameOfReferenceUID
    assert (image.TotalPixelMatrixColumns, image.TotalPixelMatrixRows) == (3, 3)
