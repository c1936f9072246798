from __future__ import annotations

import json
import re

import numpy as np
import onnxruntime
import pytest

from medkd.errors import ConfigError, ModelPackageError, StageError
from medkd.export.calibration_tiles import tile_sets
from medkd.export.int8_package import measured_cost
from medkd.export.kinds import ExportKind
from medkd.export.stage import run_export_stage
from medkd.inference.package import load_package
from medkd.inference.students import Students
from medkd.slides.store import StoredTile, encode_tile, write_index, writing_store
from medkd.slides.synthetic import SlideSpec
from medkd.slides.synthetic.drawing import draw_slide
from tests.inference.conftest import make_package  # noqa: F401  (a fixture)

SLIDES, OF_A_SLIDE = 4, 36


def write_tiles(folder, size_px=64, mpp=1.0):
    """Drawn tiles of four slides as ``medkd tile`` stores them."""
    folder.mkdir()
    records = []
    for number in range(SLIDES):
        image = draw_slide(SlideSpec("MSI", number, 384, 384, 1.0))
        name = f"s{number}"
        with writing_store(folder / f"{name}.zip") as store:
            for place in range(OF_A_SLIDE):
                x, y = 64 * (place % 6), 64 * (place // 6)
                pixels = image[y : y + 64, x : x + 64]
                store.add(StoredTile(x, y, 1.0, 1.0), encode_tile(pixels, 90))
        parameters = {"mpp": mpp, "size_px": size_px}
        records.append({"slide_id": name, "patient_id": name, "parameters": parameters})
    write_index(folder, records)
    return folder


@pytest.fixture(scope="module")
def tiles_folder(tmp_path_factory):
    return write_tiles(tmp_path_factory.mktemp("tiles") / "tiles")


@pytest.fixture(scope="module")
def exported(model, tiles_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("int8") / "out"
    return run_export_stage(model, ExportKind.PACKAGE, out, calibrate=tiles_folder)


def positive(folder, tiles):
    return {
        path.stem: onnxruntime.InferenceSession(path).run(["probabilities"], {"tiles": tiles})[0][
            :, 1
        ]
        for path in sorted((folder / "students").glob("*.onnx"))
    }


def test_no_tile_of_the_calibration_is_measured_with(model, tiles_folder):
    sets = tile_sets(tiles_folder, load_package(model).manifest.preprocessing)
    assert {name: len(tiles) for name, tiles in sets.calibration.items()} == {"s0": 36, "s2": 36}
    assert {name: len(tiles) for name, tiles in sets.measurement.items()} == {"s1": 36, "s3": 36}
    assert sets.measurement["s1"].shape == (36, 64, 64, 3)


def test_the_cost_in_the_record_is_that_of_the_files(exported, model, tiles_folder):
    """Worked out anew from the ONNX files: the mean over tiles and students scores a slide."""
    sets = tile_sets(tiles_folder, load_package(model).manifest.preprocessing)
    apart, slides = [], []
    for tiles in sets.measurement.values():
        old, new = positive(model, tiles), positive(exported.folder, tiles)
        apart += [np.abs(old[name] - new[name]) for name in old]
        slides.append(abs(np.mean(list(old.values())) - np.mean(list(new.values()))))
    record = json.loads((exported.folder / "model.json").read_text())["quantisation"]
    assert record["tile_change_mean"] == pytest.approx(np.mean(apart), abs=1e-5)
    assert record["tile_change_max"] == pytest.approx(np.max(apart), abs=1e-5)
    assert record["slide_change_max"] == pytest.approx(max(slides), abs=1e-5)
    assert record["slide_change_mean"] == pytest.approx(np.mean(slides), abs=1e-5)
    assert 0 < record["slide_change_max"] <= 0.01
    assert (record["calibration_slides"], record["calibration_tiles"]) == (2, 72)
    assert (record["measured_slides"], record["measured_tiles"]) == (2, 72)
    assert record["from_sha256"] == load_package(model).sha256


def test_it_is_a_package_that_calls_with_the_same_operating_point(exported, model):
    old, new = load_package(model).manifest, load_package(exported.folder).manifest
    assert new.operating_point.threshold == old.operating_point.threshold
    assert new.operating_point.fitted_to_sha256 != old.operating_point.fitted_to_sha256
    assert new.version.startswith("1+int8.")
    assert new.test_performance is None
    student = new.students[0].onnx
    assert dict(exported.files)[f"{student}"] < 0.5 * (model / student).stat().st_size


def test_the_card_and_the_terminal_tell_the_cost(exported):
    card = (exported.folder / "model_card.md").read_text()
    assert "## Students in 8-bit integers" in card
    assert "ranges set on 72 tiles of 2 slides. On 72 other tiles of 2 slides" in card
    assert exported.lines[0] == "int8: ranges set on 72 tiles of 2 slides."
    assert re.fullmatch(
        r"The embedding's distance from the training slides changes by at most \d+% of its limit, "
        "which is kept.",
        exported.lines[2],
    )
    assert "; the embedding's distance from the training slides changed by at most " in card
    assert "The operating point is kept; " in exported.lines[3]


def test_how_far_the_embedding_moves_is_a_share_of_its_limit(exported, model, tiles_folder):
    old, new = load_package(model), load_package(exported.folder)
    sets = tile_sets(tiles_folder, old.manifest.preprocessing)
    cost = measured_cost(old, new, sets.measurement)
    limit = old.manifest.out_of_distribution.limits["embedding"]
    moved = []
    for tiles in sets.measurement.values():
        before, after = (
            who.distances(who(tiles))["embedding"] for who in (Students(old), Students(new))
        )
        moved.append(abs(before - after) / limit)
    np.testing.assert_allclose(cost.distances, moved)
    assert min(moved) > 0
    assert new.manifest.out_of_distribution == old.manifest.out_of_distribution


def test_int8_students_can_be_exported_in_one_go(model, tiles_folder, exported, tmp_path, tiles):
    done = run_export_stage(model, ExportKind.ONNX, tmp_path / "out", calibrate=tiles_folder)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    names = ["student_0_probabilities", "student_1_probabilities"]
    found = session.run(names, {"tiles": tiles})
    expected = positive(exported.folder, tiles)
    np.testing.assert_allclose(found[0][:, 1], expected["student_0"], atol=1e-2)
    np.testing.assert_allclose(found[1][:, 1], expected["student_1"], atol=1e-2)
    assert "Held against the int8 students of the package on 20 drawn tiles" in done.lines[-1]
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["manifest"]["quantisation"]["measured_slides"] == 2


def test_a_slide_calibrates_with_half_of_its_tiles(model, slide):
    preprocessing = load_package(model).manifest.preprocessing
    small = preprocessing.tile.model_copy(update={"size_px": 32})
    sets = tile_sets(slide, preprocessing.model_copy(update={"tile": small}))
    [calibration], [measurement] = sets.calibration.values(), sets.measurement.values()
    assert abs(len(calibration) - len(measurement)) <= 1
    assert 32 <= len(calibration) <= 65
    assert not {t.tobytes() for t in calibration} & {t.tobytes() for t in measurement}


def test_a_change_of_calls_is_counted(make_package, tmp_path):  # noqa: F811
    """Red 0.5 scores 0.5 and 0.515; the threshold lies between them."""
    kinds = {"old": (1.0, 0.0), "new": (1.0, 0.015)}
    old, new = (
        load_package(make_package(tmp_path / name, students={"s": kind}, threshold=0.507))
        for name, kind in kinds.items()
    )
    grey = np.full((4, 8, 8, 3), 128, np.uint8)  # 128 / 255 = 0.502
    white = np.full((4, 8, 8, 3), 230, np.uint8)
    cost = measured_cost(old, new, {"grey": grey, "white": white})
    assert cost.calls_changed == 1
    np.testing.assert_allclose(cost.slides, [0.015, 0.015], atol=1e-6)
    np.testing.assert_allclose(cost.tiles, np.full(8, 0.015), atol=1e-6)


def test_too_costly_is_refused(model, tiles_folder, tmp_path, monkeypatch):
    from medkd.export import int8_package

    monkeypatch.setattr(int8_package, "INT8_TOLERANCE", 1e-6)
    with pytest.raises(ModelPackageError) as error:
        run_export_stage(model, ExportKind.PACKAGE, tmp_path / "out", calibrate=tiles_folder)
    assert str(error.value).startswith(
        f"{model}: in 8-bit integers a slide's probability would change by up to 0.0"
    )
    assert "1e-06 is allowed. Nothing was written. Calibrate on tiles of more" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ExportKind.PACKAGE, "has students of 8-bit integers already. Quantise version 1, which"),
        (ExportKind.BUNDLE, "it is of 8-bit integers. Export version 1, whose students are in"),
        (ExportKind.OPENVINO, "has int8 students, of which OpenVINO makes other probabilities."),
    ],
)
def test_what_int8_students_are_not_exported_to(exported, tiles_folder, tmp_path, kind, message):
    if kind is ExportKind.OPENVINO:
        pytest.importorskip("openvino")
    calibrate = tiles_folder if kind is ExportKind.PACKAGE else None
    with pytest.raises(ModelPackageError) as error:
        run_export_stage(exported.folder, kind, tmp_path / "out", calibrate=calibrate)
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_tiles_of_another_resolution_are_refused(model, tmp_path):
    folder = write_tiles(tmp_path / "tiles", mpp=0.5)
    with pytest.raises(StageError) as error:
        tile_sets(folder, load_package(model).manifest.preprocessing)
    assert str(error.value) == (
        f"{folder}: holds tiles of 64 px at 0.5 um/px, and the model takes 64 px at 1 um/px. "
        "Name the tiles folder of the model's own experiment, or a slide."
    )


def test_too_few_tiles_are_refused(model, flat_tiles_folder):
    with pytest.raises(StageError) as error:
        tile_sets(flat_tiles_folder, load_package(model).manifest.preprocessing)
    assert str(error.value) == (
        f"{flat_tiles_folder}: gives 5 tiles to calibrate on; 32 are needed. Name a tiles folder "
        "of more slides, or a slide with more tissue."
    )


@pytest.fixture
def flat_tiles_folder(tmp_path):
    """Ten tiles of one slide."""
    folder = tmp_path / "few"
    folder.mkdir()
    with writing_store(folder / "a.zip") as store:
        for x in range(10):
            tile = np.full((64, 64, 3), 20 * x, np.uint8)
            store.add(StoredTile(x, 0, 1.0, 1.0), encode_tile(tile, 90))
    parameters = {"mpp": 1.0, "size_px": 64}
    write_index(folder, [{"slide_id": "a", "patient_id": "a", "parameters": parameters}])
    return folder


def test_a_package_as_it_is_is_no_export(model, tmp_path):
    with pytest.raises(ConfigError) as error:
        run_export_stage(model, ExportKind.PACKAGE, tmp_path / "out")
    assert str(error.value) == (
        "--to package: a package is what there is already. Add --int8 --calibrate TILES, or name "
        "another kind."
    )
