from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from medkd.export.kinds import ExportKind
from medkd.export.stage import run_export_stage
from medkd.inference.package import load_package


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("torchscript") / "out"
    return run_export_stage(model, ExportKind.TORCHSCRIPT, out)


def test_students_give_torch_s_probabilities_of_any_number_of_tiles(exported, trained, tiles):
    expected = trained.probabilities(tiles)
    for name, values in expected.items():
        student = torch.jit.load(exported.folder / f"{name}.ts")
        for count in (1, 5):
            probabilities, embeddings = student(torch.from_numpy(tiles[:count]))
            np.testing.assert_allclose(probabilities.numpy(), values[:count], atol=1e-4)
            assert embeddings.shape == (count, 32)


def test_a_file_names_its_model(exported, model):
    extra = {"medkd.json": ""}
    torch.jit.load(exported.folder / "student_1.ts", _extra_files=extra)
    label = json.loads(extra["medkd.json"])
    assert label == {
        "model": "by-hand 1",
        "model_sha256": load_package(model).sha256,
        "classes": ["MSS", "MSI"],
        "tile_px": 64,
        "tile_mpp": 1.0,
        "research_use_only": True,
    }


def test_the_record(exported):
    record = json.loads((exported.folder / "export.json").read_text())
    assert record["torch"] == torch.__version__
    assert record["agreement"]["largest_difference"] <= 1e-4
    assert [name for name, _ in exported.files] == ["export.json", "student_0.ts", "student_1.ts"]
