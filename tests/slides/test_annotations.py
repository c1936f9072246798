from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from skimage.draw import polygon

from medkd.config import Config, TileConfig, load_config
from medkd.datasets.tables import SlideRow
from medkd.errors import ConfigError, SlideError
from medkd.slides.annotations import read_annotations
from medkd.slides.tile_stage import run_tile_stage
from medkd.slides.tiling import TileCounts, open_slide_for_tiling


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def feature(name: str | None, *rings, kind: str = "Polygon", **more) -> dict:
    """As QuPath 0.5 writes an annotation."""
    coordinates = list(rings) if kind == "Polygon" else rings[0]
    properties = {"objectType": "annotation", "isLocked": False}
    if name is not None:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "id": "1", "geometry": geometry, "properties": properties} | more


@pytest.fixture
def drawn(tmp_path):
    """``drawn(feature, ..., include=[...])`` writes S.geojson and gives the parameters."""

    def write(*features, include=(), exclude=(), text: str | bytes | None = None) -> TileConfig:
        if text is None:
            text = json.dumps({"type": "FeatureCollection", "features": list(features)})
        content = text.encode() if isinstance(text, str) else text
        (tmp_path / "S.geojson").write_bytes(content)
        return TileConfig(
            size_px=64,
            annotations=tmp_path,
            annotations_include=tuple(include),
            annotations_exclude=tuple(exclude),
        )

    return write


def mask_of(parameters: TileConfig, height: int, width: int, scale: float = 1.0) -> np.ndarray:
    annotations = read_annotations(parameters, "S")
    assert annotations is not None
    return annotations.wanted(height, width, scale)


def test_a_pixel_is_wanted_where_its_centre_is(drawn):
    parameters = drawn(feature("Tumor", square(2.4, 1.6, 4.0)), include=["Tumor"])
    expected = np.zeros((10, 10), bool)
    expected[2:6, 2:6] = True  # centres from 2.5 to 5.5 in y, 2.5 to 5.5 in x
    np.testing.assert_array_equal(mask_of(parameters, 10, 10), expected)


def test_coordinates_are_of_level_0(drawn):
    parameters = drawn(feature("Tumor", square(160, 320, 320)), include=["Tumor"])
    expected = np.zeros((50, 60), bool)
    expected[20:40, 10:30] = True
    np.testing.assert_array_equal(mask_of(parameters, 50, 60, 16.0), expected)


def test_holes_stay_holes_and_what_lies_in_them_is_its_own(drawn):
    ring = feature("Tumor", square(0, 0, 90), square(20, 20, 50))
    island = feature("Tumor", square(40, 40, 10))
    mask = mask_of(drawn(ring, island, include=["Tumor"]), 100, 100)
    assert mask.sum() == 90**2 - 50**2 + 10**2
    assert not mask[30, 30]
    assert mask[45, 45]


def test_multipolygons_and_overlaps_are_unions(drawn):
    both = feature("Tumor", [[square(0, 0, 20)], [square(10, 0, 20)]], kind="MultiPolygon")
    mask = mask_of(drawn(both, include=["Tumor"]), 40, 40)
    assert mask.sum() == 30 * 20


def test_what_is_excluded_is_taken_from_what_is_included(drawn):
    features = (feature("Tumor", square(0, 0, 20)), feature("Ignore*", square(10, 0, 20)))
    assert mask_of(drawn(*features, include=["Tumor"], exclude=["Ignore*"]), 40, 40).sum() == 200
    assert mask_of(drawn(*features, exclude=["Ignore*"]), 40, 40).sum() == 40 * 40 - 20 * 20
    assert mask_of(drawn(*features, include=["Tumor", "Ignore*"]), 40, 40).sum() == 600


def test_many_corners_cut_off_by_the_picture_s_edge_agree_with_scikit_image(drawn):
    """A star of 500 corners, in a picture whose pixels have their centres at whole numbers."""
    random = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 500, endpoint=False)
    radius = 40 + 25 * random.random(500)
    star = np.stack([60 + radius * np.cos(angle), 30 + radius * np.sin(angle)], axis=1)
    mask = mask_of(drawn(feature("Tumor", star.tolist()), include=["Tumor"]), 90, 100)
    expected = np.zeros((90, 100), bool)
    expected[polygon(star[:, 1] - 0.5, star[:, 0] - 0.5, expected.shape)] = True
    np.testing.assert_array_equal(mask, expected)
    assert 0.3 < mask.mean() < 0.9


@pytest.mark.parametrize("wrap", ["collection", "list", "feature"])
def test_every_way_that_qupath_exports(drawn, wrap):
    one = feature("Tumor", square(0, 0, 4))
    text = {
        "collection": json.dumps({"type": "FeatureCollection", "features": [one]}),
        "list": json.dumps([one]),
        "feature": "\ufeff" + json.dumps(one),
    }[wrap]
    assert mask_of(drawn(text=text, include=["Tumor"]), 8, 8).sum() == 16


def test_what_has_no_class_or_no_area_is_told_where_a_class_is_missing(drawn):
    parameters = drawn(
        feature(None, square(0, 0, 4)),
        feature("Stroma", square(0, 0, 4)),
        feature("Stroma", square(8, 0, 4)),
        feature("Tumor", [5, 5], kind="Point"),
        include=["Tumor"],
    )
    annotations = read_annotations(parameters, "S")
    assert not annotations.wanted(8, 8, 1.0).any()
    assert annotations.warnings == (
        "S.geojson has no area of class Tumor; it has: Stroma (2), Tumor, not an area (1), "
        "no class (1)",
    )


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is not JSON: line 1, column 1: Expecting value"),
        ('{"type":\n "Feature",', "is not JSON: line 2, column 12: "),
        (b"\xff\xfe{}", "is not UTF-8 text"),
        ("[" * 100_000, "is nested too deeply"),
        ("{}", "is neither a FeatureCollection nor a list of features"),
        ('{"type": "FeatureCollection"}', "is neither a FeatureCollection nor a list"),
        ("[3]", "feature 1: is not a Feature"),
        (json.dumps([feature("T", square(0, 0, 4)), {}]), "feature 2: is not a Feature"),
        (
            json.dumps([feature("T") | {"properties": {"classification": {"colour": 1}}}]),
            "feature 1: its properties.classification.name is not a text",
        ),
        (
            json.dumps([feature("T", kind="Polygon") | {"geometry": None}]),
            "feature 1: its geometry is None, not a Polygon or MultiPolygon",
        ),
        (json.dumps([feature("T")]), "feature 1: its coordinates are not a list of rings"),
        (json.dumps([feature("T", [[0, 0], [1]])]), r"feature 1: \[1\] is not a point \[x, y\]"),
        (json.dumps([feature("T", [[0, 0], [1, "2"]])]), "feature 1: .* is not a point"),
        (json.dumps([feature("T", [[0, 0], [1, float("nan")]])]), "feature 1: .*not a point"),
        (json.dumps([feature("T", [[0, 0], [1, 10**400]])]), "feature 1: .* is not a point"),
        (json.dumps([feature("T", [[0, 0], [4, 4], [0, 0]])]), "fewer than 3 corners"),
    ],
)
def test_malformed_files_say_what_and_where_in_one_line(drawn, tmp_path, text, what):
    parameters = drawn(text=text, include=["T"])
    with pytest.raises(SlideError) as caught:
        read_annotations(parameters, "S")
    message = str(caught.value)
    assert caught.value.reason == "malformed_annotations"
    assert re.match(re.escape(f"{tmp_path / 'S.geojson'}: ") + what, message) or what in message
    assert "\n" not in message
    assert message.endswith(
        "Export it again as GeoJSON (QuPath: File > Export objects as GeoJSON), or remove the "
        "file to use all tissue of the slide."
    )


def test_tiles_outside_get_a_fate_of_their_own(drawn, write_slide, tissue, glass):
    """Tissue right of x = 128; tumour from 256 to 512 in x and y, with a necrosis of one tile."""
    image = glass(512, 640)
    image[:, 128:] = tissue(512, 512)
    path = write_slide("S.svs", image)
    parameters = drawn(
        feature("Tumor", square(256, 256, 256)),
        feature("Necrosis", square(320, 320, 64)),
        include=["Tumor"],
        exclude=["Necrosis"],
    )
    annotations = read_annotations(parameters, "S")
    with open_slide_for_tiling(path, parameters, annotations=annotations) as slide:
        tiles = list(slide.tiles())
    fates = {(tile.x, tile.y): tile.fate for tile in tiles}
    assert fates[0, 0] == fates[0, 256] == "background"
    assert fates[192, 256] == fates[576, 256] == fates[256, 192] == "annotation"
    assert fates[320, 320] == "annotation"
    used = {at for at, fate in fates.items() if fate == "used"}
    expected = {(x, y) for x in range(256, 512, 64) for y in range(256, 512, 64)}
    assert used == expected - {(320, 320)}
    counts = TileCounts.of(fates.values())
    assert counts.candidate == 80 == counts.used + sum(counts.rejected.values())


def test_half_a_tile_must_be_wanted(drawn, write_slide, tissue):
    path = write_slide("S.svs", tissue(256, 256))
    parameters = drawn(feature("Tumor", square(32, -10, 140)), include=["Tumor"])
    annotations = read_annotations(parameters, "S")
    with open_slide_for_tiling(path, parameters, annotations=annotations) as slide:
        fates = {tile.x: tile.fate for tile in slide.tiles() if tile.y == 64}
    # Wanted from 32 to 172: half, all, 44 of 64, nothing.
    assert fates == {0: "used", 64: "used", 128: "used", 192: "annotation"}


def test_tiles_outside_are_not_read(drawn, write_slide, damage, tissue):
    path = write_slide("S.svs", tissue(256, 256))
    damage(path, [0])
    parameters = drawn(feature("Tumor", square(128, 128, 128)), include=["Tumor"])
    annotations = read_annotations(parameters, "S")
    with open_slide_for_tiling(path, parameters, annotations=annotations) as slide:
        counts = TileCounts.of(tile.fate for tile in slide.tiles())
    assert (counts.unreadable, counts.used, counts.rejected["annotation"]) == (0, 4, 12)


def test_areas_off_the_slide_are_a_warning(drawn, write_slide, tissue):
    path = write_slide("S.svs", tissue(256, 256))
    inside, outside = square(10, 10, 100), square(3000, 10, 100)
    parameters = drawn(feature("T", inside), feature("T", outside), include=["T"])
    annotations = read_annotations(parameters, "S")
    with open_slide_for_tiling(path, parameters, annotations=annotations) as slide:
        assert slide.warnings[-1] == (
            "1 of 2 areas of S.geojson lie outside of the slide; their coordinates must be level-0 "
            "pixels"
        )


def row(path: Path) -> SlideRow:
    return SlideRow(slide_id=path.stem, path=path, patient_id="P", label="MSS")


def test_the_stage_records_annotations_and_notices_every_change(
    drawn, write_slide, tissue, tmp_path
):
    rows = [row(write_slide(f"{name}.svs", tissue(256, 256))) for name in "STU"]
    folder = tmp_path / "tiles"
    parameters = drawn(feature("Tumor", square(0, 0, 128)), include=["Tumor"])
    (tmp_path / "U.geojson").write_text("[}")
    summary = run_tile_stage(rows, parameters, folder)
    assert [(slide_id, reason) for slide_id, reason, _ in summary.failed] == [
        ("U", "malformed_annotations")
    ]
    record = json.loads((folder / "S.json").read_text())
    assert record["annotations"] == {
        "file": "S.geojson",
        "sha256": hashlib.sha256((tmp_path / "S.geojson").read_bytes()).hexdigest(),
        "include_areas": 1,
        "exclude_areas": 0,
    }
    assert (record["tiles"]["used"], record["tiles"]["rejected"]["annotation"]) == (4, 12)
    without = json.loads((folder / "T.json").read_text())
    assert without["annotations"]["sha256"] is None
    assert without["tiles"]["used"] == 16
    assert without["slide"]["warnings"] == [
        f"no annotations: T.geojson is not in {tmp_path}; all tissue is used"
    ]
    (tmp_path / "U.geojson").unlink()

    summary = run_tile_stage(rows, parameters, folder)
    assert (summary.done, summary.skipped_existing) == (1, 2)
    drawn(feature("Tumor", square(0, 0, 64)), include=["Tumor"])
    (tmp_path / "T.geojson").write_text((tmp_path / "S.geojson").read_text())
    summary = run_tile_stage(rows, parameters, folder)
    assert summary.redone == (("S", "annotations changed"), ("T", "annotations changed"))
    for name in "ST":
        assert json.loads((folder / f"{name}.json").read_text())["tiles"]["used"] == 1
    (tmp_path / "T.geojson").unlink()
    assert run_tile_stage(rows, parameters, folder).redone == (("T", "annotations changed"),)
    # Moved elsewhere they are the same annotations.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "S.geojson").rename(elsewhere / "S.geojson")
    moved = parameters.model_copy(update={"annotations": elsewhere})
    assert run_tile_stage(rows, moved, folder).skipped_existing == 3


def test_the_folder_is_relative_to_the_configuration(tmp_path):
    text = "tile: {annotations: drawn, annotations_include: [Tumor, 'Tumor: MSI']}\n"
    (tmp_path / "medkd.yaml").write_text(text)
    tile = load_config(tmp_path / "medkd.yaml").tile
    assert tile.annotations == tmp_path / "drawn"
    assert tile.annotations_include == ("Tumor", "Tumor: MSI")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{annotations: a}", "'annotations' needs a class in 'annotations_include' or"),
        (
            "{annotations: a, annotations_include: [T], annotations_exclude: [T]}",
            "'T' stands in both 'annotations_include' and 'annotations_exclude'",
        ),
        ("{annotations_include: [T]}", "need the folder 'tile.annotations'"),
    ],
)
def test_annotations_that_could_do_nothing_are_refused(tmp_path, text, what):
    (tmp_path / "medkd.yaml").write_text(f"tile: {text}\n")
    with pytest.raises(ConfigError, match=re.escape(what)):
        load_config(tmp_path / "medkd.yaml")


def test_a_model_package_knows_nothing_of_what_was_drawn():
    tile = TileConfig(annotations=Path("/somewhere"), annotations_include=("Tumor",), mpp=1.0)
    assert TileConfig.model_validate(tile.packaged()) == TileConfig(mpp=1.0)
    assert "somewhere" not in json.dumps(tile.recorded())
    assert Config().tile.annotations is None
