from __future__ import annotations

import json

import numpy as np
import openslide
import pytest
import tifffile

from medkd.inference.maps import map_files
from medkd.inference.maps.geojson import qupath_origin
from tests.inference.maps.conftest import TOLERANCE, marked_image

LEFT_PX, TOP_PX, WIDTH_PX, HEIGHT_PX = 1000, 600, 3000, 2000
MPP = 0.5

# What OpenSlide reads of a Leica slide: one scanned area on a glass of WIDTH_PX x HEIGHT_PX.
LEICA = """<?xml version="1.0"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:0">
<collection name="c" uuid="urn:uuid:1" sizeX="{glass_x}" sizeY="{glass_y}">
<image name="scan" uuid="urn:uuid:2"><device model="m" version="1"/>
<pixels sizeX="{width}" sizeY="{height}">
<dimension sizeX="{width}" sizeY="{height}" r="0" ifd="0"/></pixels>
<view sizeX="{view_x}" sizeY="{view_y}" offsetX="{left}" offsetY="{top}"/>
<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>
<illuminationSettings><numericalAperture>0.4</numericalAperture>
<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>
<image name="macro" uuid="urn:uuid:3"><device model="m" version="1"/>
<pixels sizeX="64" sizeY="64"><dimension sizeX="64" sizeY="64" r="0" ifd="1"/></pixels>
<view sizeX="{glass_x}" sizeY="{glass_y}" offsetX="0" offsetY="0"/>
<scanSettings><objectiveSettings><objective>1</objective></objectiveSettings>
<illuminationSettings><illuminationSource>brightfield</illuminationSource></illuminationSettings>
</scanSettings></image></collection></scn>"""


@pytest.fixture(scope="module")
def bounded(call, tmp_path_factory):
    """A slide of which only an area off the corner was scanned, drawn in tiles of 112 um."""
    image = marked_image(MPP)
    nm = round(1000 * MPP)
    height, width = image.shape[:2]
    description = LEICA.format(
        glass_x=WIDTH_PX * nm,
        glass_y=HEIGHT_PX * nm,
        width=width,
        height=height,
        view_x=width * nm,
        view_y=height * nm,
        left=LEFT_PX * nm,
        top=TOP_PX * nm,
    )
    path = tmp_path_factory.mktemp("bounded") / "slide.scn"
    options = {"photometric": "rgb", "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(image, tile=(256, 256), description=description, **options)
        tiff.write(np.full((64, 64, 3), 220, np.uint8), tile=(64, 64), **options)
    return call(path, mpp=MPP, size_px=64)


def document(called):
    files = map_files(called.inference, called.result, ["geojson"], package=called.package)
    return json.loads(files["heatmap.geojson"])


def test_coordinates_count_from_where_qupath_crops(bounded):
    with openslide.OpenSlide(bounded.path) as slide:
        assert slide.dimensions == (WIDTH_PX, HEIGHT_PX)
        assert slide.properties["openslide.bounds-x"] == "1000"
    told = document(bounded)
    assert told["medkd"]["origin_level0_px"] == [LEFT_PX, TOP_PX]
    hot = [
        feature["geometry"]["coordinates"][0][0]
        for feature in told["features"]
        if feature["properties"]["measurements"]["probability of MSI"] > 0.8
    ]
    assert hot
    # Level-0 pixels of the tiles on the grid of 64 px, all inside of the square that was drawn.
    for x, y in hot:
        assert ((x + LEFT_PX) % 64, (y + TOP_PX) % 64) == (0, 0)
        assert 896 <= x <= 1120 - 64
        assert 448 <= y <= 672 - 64


def test_a_slide_without_bounds_is_as_it_is(flat_slide):
    assert qupath_origin(flat_slide) == (0, 0)


def test_objects_are_tiles_with_class_and_colour(marked):
    told = document(marked)
    assert told["type"] == "FeatureCollection"
    by_class: dict[str, list] = {}
    for feature in told["features"]:
        properties = feature["properties"]
        assert (feature["type"], feature["geometry"]["type"]) == ("Feature", "Polygon")
        assert properties["objectType"] == "tile"
        by_class.setdefault(properties["classification"]["name"], []).append(properties)
    assert {name: len(there) for name, there in by_class.items()} == {"MSS": 14, "MSI": 1}
    # viridis at 0.50 and at 0.82, read off its published table.
    np.testing.assert_allclose(by_class["MSI"][0]["color"], [144, 214, 67], atol=9)
    np.testing.assert_allclose(by_class["MSS"][0]["color"], [32, 144, 140], atol=9)
    assert by_class["MSI"][0]["classification"]["color"] == [213, 94, 0]
    assert by_class["MSS"][0]["classification"]["color"] == [0, 114, 178]


def test_the_file_says_what_it_is(marked):
    told = document(marked)["medkd"]
    assert told["call"] == "MSS"
    assert told["slide_id"] == "slide"
    assert told["operating_point"] == 0.6
    assert told["model"]["sha256"] == marked.package.sha256
    assert told["note"] == "Research use only."
    assert str(marked.path.parent) not in json.dumps(told)


def test_classes_follow_the_calibrated_probability(call, marked):
    """Calibration takes 0.82 to 0.5 and 0.50 to less: at an operating point of 0.6 none is MSI."""
    calibration = {"kind": "platt", "slope": 1.0, "intercept": -1.54}
    called = call(marked.path, calibration=calibration)
    classes = {f["properties"]["classification"]["name"] for f in document(called)["features"]}
    assert classes == {"MSS"}


def test_disagreement_stands_beside_the_probability(marked):
    """Student 1 says r, student 2 says r / 2 + 0.3: they differ by 0.5 r - 0.3, where r is red."""
    by_probability = sorted(
        (feature["properties"]["measurements"] for feature in document(marked)["features"]),
        key=lambda measured: measured["probability of MSI"],
    )
    assert all(len(measured) == 2 for measured in by_probability)
    told = [measured["disagreement of students"] for measured in by_probability]
    assert told[:-1] == pytest.approx([0.3 - 0.5 * 120 / 255] * 14, abs=TOLERANCE)
    assert told[-1] == pytest.approx(0.5 * 230 / 255 - 0.3, abs=TOLERANCE)


def test_one_student_disagrees_with_none(call, marked):
    called = call(marked.path, students={"student1": (1.0, 0.0)})
    measured = [f["properties"]["measurements"] for f in document(called)["features"]]
    assert {tuple(told) for told in measured} == {("probability of MSI",)}
