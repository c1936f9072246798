from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest

from medkd.inference.maps import map_files
from medkd.inference.maps.grid import TileGrid
from medkd.inference.maps.nifti import nifti_map
from tests.inference.maps.conftest import COLUMNS, MARKED_COLUMN, MARKED_ROW, ROWS, TOLERANCE

GRID = TileGrid(columns=3, rows=2, step_px=448, extent_px=448)
VALUES = np.array([[0.1, 0.2, 0.3], [0.4, np.nan, 0.6]], np.float32)


def volume(data: bytes) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(data))


@pytest.fixture(scope="module")
def written() -> bytes:
    return nifti_map(VALUES, GRID, 0.25, name="p(MSI)", description="medkd. Research use only.")


def test_voxels_and_their_millimetres(written):
    image = volume(written)
    np.testing.assert_array_equal(image.get_fdata()[..., 0], VALUES.T)
    assert image.header.get_zooms() == pytest.approx((0.112, 0.112, 0.004))
    assert image.header.get_xyzt_units()[0] == "mm"
    # Tile (2, 1) has its centre at 2.5 and 1.5 tiles of 0.112 mm.
    place = nibabel.affines.apply_affine(image.affine, (2, 1, 0))
    np.testing.assert_allclose(place, [-0.28, -0.168, 0], atol=1e-7)


def test_the_slide_is_neither_mirrored_nor_turned(written):
    """Along a row towards the left, down a column towards the back: an axial slice, as shown."""
    image = volume(written)
    assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
    assert np.linalg.det(image.affine[:3, :3]) > 0
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-7)
    assert (image.header["qform_code"], image.header["sform_code"]) == (1, 1)


def test_the_header_says_what_it_is(written):
    header = volume(written).header
    assert header.get_intent() == ("estimate", (), "p(MSI)")
    assert header["descrip"].item() == b"medkd. Research use only."
    assert (header["cal_min"], header["cal_max"]) == (0, 1)


def test_long_names_are_cut_and_bytes_are_the_same():
    options = {"name": "p(Größe der Klasse)", "description": "x" * 200}
    data = nifti_map(VALUES, GRID, 0.25, **options)
    assert volume(data).header.get_intent()[2] == "p(Gr??e der Kla"
    assert data == nifti_map(VALUES, GRID, 0.25, **options)


def test_disagreement_is_a_second_volume(marked):
    """As far as the students' slopes and offsets leave them apart; nothing on glass."""
    files = map_files(marked.inference, marked.result, ["nifti"], package=marked.package)
    assert list(files) == ["heatmap.nii.gz", "disagreement.nii.gz"]
    image = volume(files["disagreement.nii.gz"])
    assert image.header.get_intent()[2] == "disagreement"
    expected = np.full((COLUMNS, ROWS), np.nan)
    expected[1:, 1:] = 0.3 - 0.5 * 120 / 255
    expected[MARKED_COLUMN, MARKED_ROW] = 0.5 * 230 / 255 - 0.3
    np.testing.assert_allclose(image.get_fdata()[..., 0], expected, atol=TOLERANCE)
