from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from monai.bundle import verify_metadata, verify_net_in_out

from medkd.errors import ModelPackageError, SlideError, StageError
from medkd.export.bundle_network import StudentEnsemble
from medkd.export.bundle_run import SlideEvaluator, TorchStudents, slides_of
from medkd.export.kinds import ExportKind
from medkd.export.stage import run_export_stage
from medkd.inference.engine import infer_slide
from medkd.inference.infer_stage import infer_slides
from medkd.inference.package import load_package
from medkd.inference.slide_files import SlideFile
from medkd.inference.students import Students

# Of meta_schema_20240725.json, which MONAI's verify_metadata fetches.
MONAI_REQUIRES = {
    "schema", "version", "monai_version", "pytorch_version", "numpy_version",
    "required_packages_version", "task", "description", "authors", "copyright",
    "network_data_format",
}  # fmt: skip
MONAI_REQUIRES_OF_A_TENSOR = {
    "type", "format", "num_channels", "spatial_shape", "dtype", "value_range",
}  # fmt: skip


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundle") / "out"
    return run_export_stage(model, ExportKind.BUNDLE, out).folder


def monai_bundle(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "monai.bundle", *map(str, arguments)],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_monai_runs_it_and_it_calls_as_infer_does(bundle, model, slide, tmp_path):
    done = monai_bundle(
        bundle, "run", "--config_file", "configs/inference.json",
        "--dataset_dir", slide, "--output_dir", tmp_path / "bundle",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    infer_slides([slide], load_package(model), tmp_path / "infer")
    found, expected = (
        json.loads((tmp_path / who / "drawn" / "result.json").read_text())
        for who in ("bundle", "infer")
    )
    assert expected["probability_msi"] is not None
    assert found["probability_msi"] == pytest.approx(expected["probability_msi"], abs=1e-4)
    assert found["students"] == pytest.approx(expected["students"], abs=1e-4)
    for key in ("call", "tiles", "model", "operating_point", "slide_fingerprint"):
        assert found[key] == expected[key]
    assert set(found["software"]) == {"medkd", "torch", "monai"}


def test_monai_verifies_metadata(bundle):
    """With the schema beside it, as without a network."""
    verify_metadata(
        meta_file=str(bundle / "configs" / "metadata.json"),
        filepath=bundle / "configs" / "metadata.schema.json",
    )


@pytest.mark.parametrize("key", ["monai_version", "network_data_format"])
def test_monai_refuses_metadata_that_lack_a_key(bundle, key, tmp_path):
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    del metadata[key]
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=f"'{key}' is a required property"):
        verify_metadata(
            meta_file=str(tmp_path / "metadata.json"),
            filepath=bundle / "configs" / "metadata.schema.json",
        )


def test_our_schema_asks_for_all_that_monai_s_does(bundle):
    schema = json.loads((bundle / "configs" / "metadata.schema.json").read_text())
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert set(schema["required"]) >= MONAI_REQUIRES
    assert set(schema["$defs"]["Tensors"]["required"]) >= MONAI_REQUIRES_OF_A_TENSOR - {"dtype"}
    assert metadata["network_data_format"]["inputs"]["image"]["dtype"] == "float32"
    assert metadata["schema"].endswith("meta_schema_20240725.json")


def test_monai_verifies_inputs_and_outputs(bundle):
    verify_net_in_out(
        "network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.json"),
        device="cpu",
    )


def test_weights_are_tensors_alone_and_give_torch_s_probabilities(bundle, trained, tiles):
    network = json.loads((bundle / "configs" / "inference.json").read_text())["network_def"]
    ensemble = StudentEnsemble(network["students"], network["classes"]).eval()
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    ensemble.load_state_dict(weights)
    with torch.no_grad():
        mean = ensemble(torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255)
    expected = trained.probabilities(tiles)
    np.testing.assert_allclose(mean, (expected["student_0"] + expected["student_1"]) / 2, atol=1e-6)


def test_a_slide_that_cannot_be_used_does_not_stop_the_others(bundle, trained, slide, tmp_path):
    network = json.loads((bundle / "configs" / "inference.json").read_text())["network_def"]
    evaluator = SlideEvaluator(
        dataset=[SlideFile("gone", tmp_path / "gone.svs"), SlideFile("drawn", slide)],
        network=StudentEnsemble(network["students"], network["classes"]),
        preprocessing=lambda tile: torch.from_numpy(tile).permute(2, 0, 1) / 255,
        inferer=lambda images, look: look(images),
        device=torch.device("cpu"),
        package_dir=str(bundle / "models" / "package"),
        output_dir=str(tmp_path / "out"),
    )
    with pytest.raises(StageError) as error:
        evaluator.run()
    assert str(error.value) == (
        f"{tmp_path / 'out'}: 1 of 2 slides could not be called; the others were. "
        "The lines above say why."
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["drawn"]
    # By torch, whose weights this network lacks, the stain is as far as by ONNX.
    package = load_package(bundle / "models" / "package")
    expected = infer_slide(slide, package, Students(package)).call.gates
    found = json.loads((tmp_path / "out" / "drawn" / "result.json").read_text())["qc"]["gates"]
    assert [gate["name"] for gate in found] == [gate.name for gate in expected]
    for gate, own in zip(found, expected, strict=True):
        if gate["name"] == "out of distribution: stain":
            assert gate["value"] == own.value


def test_embeddings_reach_a_learned_pooling(make_model, trained, tiles, tmp_path, monkeypatch):
    """As ``predict`` keeps them: float16."""
    package = load_package(make_model(tmp_path / "model"))
    monkeypatch.setattr(type(package.manifest.slide_head), "learned", property(lambda _: True))
    without = {"_package": package, "_heads": object(), "_cohort": {}}
    monkeypatch.setattr(Students, "__init__", lambda self, _: vars(self).update(without))
    students = [{"name": n, "network": "resnet10", "width": 0.0625, "stem_stride": None,
                 "max_pool": None} for n in trained.networks]  # fmt: skip
    network = StudentEnsemble(students, 2)
    for name, one in trained.networks.items():
        network.students[name].load_state_dict(one.state_dict())
    seen = TorchStudents(
        package,
        network,
        lambda tile: torch.from_numpy(tile).permute(2, 0, 1) / 255,
        lambda images, look: look(images),
        torch.device("cpu"),
    )(tiles)
    images = torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = trained.networks["student_1"].logits_and_pooled(images)[1].half().numpy()
    assert seen.embeddings["student_1"].dtype == np.float16
    np.testing.assert_allclose(seen.embeddings["student_1"], expected, rtol=1e-2, atol=1e-3)


def test_a_folder_without_slides(tmp_path):
    with pytest.raises(SlideError) as error:
        slides_of(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: there are no slides. Name a slide or a folder of slides with --dataset_dir."
    )


def test_an_ensemble_of_networks_has_no_bundle(make_model, model, tmp_path):
    students = [
        s.model_dump() | {"network": "mean logits of a and b"}
        for s in load_package(model).manifest.students
    ]
    folder = make_model(tmp_path / "model", students=students)
    with pytest.raises(ModelPackageError) as error:
        run_export_stage(folder, ExportKind.BUNDLE, tmp_path / "out")
    assert str(error.value).startswith(
        f"{folder}: 'mean logits of a and b' of student_0 cannot be built as a torch network: "
        "unknown network"
    )
    assert not (tmp_path / "out").exists()


def test_a_class_is_not_imported_on_a_package_s_word(make_model, model, tmp_path):
    students = [
        s.model_dump() | {"network": "os:system"} for s in load_package(model).manifest.students
    ]
    folder = make_model(tmp_path / "model", students=students)
    with pytest.raises(ModelPackageError) as error:
        run_export_stage(folder, ExportKind.BUNDLE, tmp_path / "out")
    assert str(error.value) == (
        f"{folder}: 'os:system' of student_0 cannot be built as a torch network: a package's word "
        "is not enough to import a class. Export it --to onnx, openvino or mlflow, which take the "
        "student's ONNX as it is."
    )
