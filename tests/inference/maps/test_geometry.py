"""The marked tile lies in the same place in every format, told by the format's own reader."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable

import highdicom as hd
import nibabel
import numpy as np
import openslide
import pytest
import tifffile
from matplotlib import colormaps

from medkd.inference.maps import map_files, write_maps
from tests.inference.maps.conftest import (
    COLUMNS,
    MARKED,
    MARKED_COLUMN,
    MARKED_ROW,
    ORIGIN_MM,
    ROWS,
    TILE_UM,
    TISSUE,
    TOLERANCE,
    Called,
    marked_image,
)

# Corner and centre of the marked tile from the corner of level 0, by hand: 4 and 2 tiles of 112 um.
LEFT_UM, TOP_UM = 448, 224
CENTRE_X_MM, CENTRE_Y_MM = 0.504, 0.280
GLASS = [(0, row) for row in range(ROWS)] + [(column, 0) for column in range(1, COLUMNS)]


@pytest.fixture(scope="module")
def folder(marked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    kinds = ["geojson", "nifti", "tiff", "dicom"]
    written = write_maps(marked.inference, marked.result, folder, kinds, package=marked.package)
    assert sorted(written) == sorted(folder.iterdir())
    return folder


def test_geojson(folder, marked):
    mpp = marked.inference.properties.mpp
    features = json.loads((folder / "heatmap.geojson").read_text())["features"]
    assert len(features) == (COLUMNS - 1) * (ROWS - 1)
    name = "probability of MSI"
    hottest = max(features, key=lambda feature: feature["properties"]["measurements"][name])
    assert hottest["properties"]["measurements"][name] == pytest.approx(MARKED, abs=TOLERANCE)
    (ring,) = hottest["geometry"]["coordinates"]
    left, top, side = LEFT_UM / mpp, TOP_UM / mpp, TILE_UM / mpp
    assert ring == [
        [left, top],
        [left + side, top],
        [left + side, top + side],
        [left, top + side],
        [left, top],
    ]


def test_nifti(folder):
    image = nibabel.load(folder / "heatmap.nii.gz")
    values = image.get_fdata()
    assert values.shape == (COLUMNS, ROWS, 1)
    voxel = np.unravel_index(np.nanargmax(values), values.shape)
    assert voxel == (MARKED_COLUMN, MARKED_ROW, 0)
    assert values[voxel] == pytest.approx(MARKED, abs=TOLERANCE)
    place = nibabel.affines.apply_affine(image.affine, voxel)
    np.testing.assert_allclose(place, [-CENTRE_X_MM, -CENTRE_Y_MM, 0], atol=1e-6)
    assert {(int(i), int(j)) for i, j, _ in np.argwhere(np.isnan(values))} == set(GLASS)


def blended(probability: float, rgb: tuple[int, int, int]) -> np.ndarray:
    return 0.6 * 255 * np.array(colormaps["viridis"](probability)[:3]) + 0.4 * np.mean(rgb)


def test_tiff(folder):
    path = folder / "heatmap.tif"
    pixels = tifffile.imread(path).astype(float)
    assert pixels.shape == (59, 89, 3)  # whole pixels of 8 um in 473 x 712 um
    expected = blended(MARKED, (230, 90, 170))
    near = abs(pixels - expected).max(axis=-1) < 25
    rows, columns = np.nonzero(near)
    side = TILE_UM / 8
    assert (columns.min(), columns.max() + 1) == (LEFT_UM / 8, LEFT_UM / 8 + side)
    assert (rows.min(), rows.max() + 1) == (TOP_UM / 8, TOP_UM / 8 + side)
    assert near.sum() == side**2
    # One pixel from the edges the thumbnail mixes neighbouring tiles.
    np.testing.assert_allclose(pixels[30:40, 58:68], np.broadcast_to(expected, (10, 10, 3)), atol=3)
    np.testing.assert_allclose(
        pixels[16:26, 20:80][..., 1], blended(TISSUE, (120, 40, 110))[1], atol=3
    )
    np.testing.assert_allclose(pixels[:10], 243, atol=2)
    with openslide.OpenSlide(path) as slide:
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(8)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(8)
        region = slide.read_region((0, 0), 0, slide.dimensions)
    np.testing.assert_array_equal(np.asarray(region)[..., :3], pixels)


def place_mm(image: hd.Image, row: int, column: int) -> np.ndarray:
    """Slide coordinates of a pixel's centre, as highdicom finds them in the file."""
    origin = image.TotalPixelMatrixOriginSequence[0]
    transformer = hd.spatial.PixelToReferenceTransformer(
        image_position=(
            origin.XOffsetInSlideCoordinateSystem,
            origin.YOffsetInSlideCoordinateSystem,
            origin.ZOffsetInSlideCoordinateSystem,
        ),
        image_orientation=image.ImageOrientationSlide,
        pixel_spacing=image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing,
    )
    return transformer(np.array([[column, row]]))[0]


def slide_mm(marked: Called, x_mm: float, y_mm: float) -> list[float]:
    """By hand: the slide's rows run along -y and its columns along -x from its first pixel."""
    half_mm = marked.inference.properties.mpp / 2000
    return [ORIGIN_MM[0] - (y_mm - half_mm), ORIGIN_MM[1] - (x_mm - half_mm), 0]


def test_dicom_parametric_map(folder, marked):
    image = hd.imread(folder / "heatmap.dcm")
    values = image.get_total_pixel_matrix(apply_real_world_transform=False)
    assert values.shape == (ROWS, COLUMNS)
    row, column = np.unravel_index(values.argmax(), values.shape)
    assert (column, row) == (MARKED_COLUMN, MARKED_ROW)
    assert values[row, column] == pytest.approx(MARKED, abs=TOLERANCE)
    expected = slide_mm(marked, CENTRE_X_MM, CENTRE_Y_MM)
    np.testing.assert_allclose(place_mm(image, row, column), expected, atol=1e-6)
    assert {(int(j), int(i)) for i, j in np.argwhere(values == -1)} == set(GLASS)
    assert image.FloatPixelPaddingValue == -1


def test_dicom_segmentation(folder, marked):
    image = hd.seg.segread(folder / "tissue.dcm")
    mask = image.get_total_pixel_matrix(combine_segments=True)
    np.testing.assert_array_equal(mask.astype(bool), marked.inference.tissue_mask)
    # Tissue was drawn from 112 um to 672 um across and to 448 um down, in pixels of 8 um.
    assert mask[15:55, 15:83].all()
    assert not mask[:12].any()
    assert not mask[:, :12].any()
    np.testing.assert_allclose(place_mm(image, 28, 56), slide_mm(marked, 0.452, 0.228), atol=1e-6)


def hottest_um(files: dict[str, bytes], mpp: float) -> tuple[float, float]:
    features = json.loads(files["heatmap.geojson"])["features"]
    hottest = max(features, key=lambda f: f["properties"]["measurements"]["probability of MSI"])
    x, y = hottest["geometry"]["coordinates"][0][0]
    return x * mpp, y * mpp


@pytest.fixture(scope="module")
def odd(call, write_flat, tmp_path_factory) -> Callable[..., Called]:
    """An Aperio slide whose tiles begin and end between pixels: 448.8 px a side."""

    def made(**changes: object) -> Called:
        path = write_flat(
            tmp_path_factory.mktemp("odd") / "odd.svs", marked_image(0.2496), mpp=0.2496
        )
        return call(path, **changes)

    return made


def test_tiles_between_pixels(odd):
    called = odd()
    assert called.inference.tile_extent_px == pytest.approx(448.718, abs=1e-3)
    files = map_files(called.inference, called.result, ["geojson", "nifti"], package=called.package)
    # A tile's corner is rounded to a whole pixel of level 0.
    assert hottest_um(files, 0.2496) == pytest.approx((LEFT_UM, TOP_UM), abs=0.13)
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(files["heatmap.nii.gz"]))
    voxel = np.unravel_index(np.nanargmax(image.get_fdata()), image.shape)
    place = nibabel.affines.apply_affine(image.affine, voxel)
    np.testing.assert_allclose(place, [-CENTRE_X_MM, -CENTRE_Y_MM, 0], atol=1e-6)


def test_overlapping_tiles_have_smaller_cells(odd):
    """Steps of half a tile: cells of 56 um, of which the marked square is one tile exactly."""
    called = odd(tile={"step_px": 112})
    files = map_files(called.inference, called.result, ["nifti"], package=called.package)
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(files["heatmap.nii.gz"]))
    # (712 - 112) / 56 = 10.7 and (473 - 112) / 56 = 6.4 steps fit beside the first tile.
    assert image.shape == (11, 7, 1)
    np.testing.assert_allclose(image.header.get_zooms()[:2], 0.056, rtol=1e-6)
    voxel = np.unravel_index(np.nanargmax(image.get_fdata()), image.shape)
    place = nibabel.affines.apply_affine(image.affine, voxel)
    np.testing.assert_allclose(place, [-CENTRE_X_MM, -CENTRE_Y_MM, 0], atol=1e-6)
