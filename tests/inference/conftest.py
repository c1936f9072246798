"""A model package that was made by hand, so that every score can be worked out by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tifffile
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from medkd.config import InferConfig, SlideLevelConfig, TileConfig
from medkd.inference.package import write_package
from medkd.slides.synthetic import SlideSpec, write_slide

MakePackage = Callable[..., Path]

# A student's probability of MSI is slope * (mean red of the tile / 255) + offset.
STUDENTS = {"student1": (1.0, 0.0), "student2": (0.5, 0.3)}


def student_onnx(slope: float, offset: float, *, embeddings: bool = False) -> bytes:
    """uint8 N x H x W x 3 to probabilities of MSS and MSI; embeddings: mean red, green, blue."""
    constants = {
        "axes": np.array([1, 2], np.int64),
        "weight": np.array([[-slope / 255, slope / 255], [0, 0], [0, 0]], np.float32),
        "bias": np.array([1 - offset, offset], np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["tiles"], ["colours"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["colours", "axes"], ["mean"], keepdims=0),
            helper.make_node("Gemm", ["mean", "weight", "bias"], ["probabilities"]),
            *([helper.make_node("Identity", ["mean"], ["embeddings"])] if embeddings else []),
        ],
        "mean_red",
        [helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["n", "h", "w", 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])
            for name, width in {"probabilities": 2, "embeddings": 3 if embeddings else 0}.items()
            if width
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def operating_point(threshold: float) -> dict[str, Any]:
    return {
        "threshold": threshold,
        "target_sensitivity": 0.95,
        "sensitivity": 1.0,
        "sensitivity_interval": [0.68, 1.0],
        "specificity": 0.9,
        "specificity_interval": [0.6, 0.98],
        "cohort": "validation patients",
        "patients": 18,
        "positives": 8,
        "date": "2026-01-02",
        "method": "lowest threshold of the target sensitivity",
    }


def manifest_content(students: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "name": "by-hand",
        "version": "1",
        "created": "2026-01-02T03:04:05+00:00",
        "task": "classification",
        "research_use_only": True,
        "classes": ["MSS", "MSI"],
        "positive": "MSI",
        "preprocessing": {
            # Flat colours are out of focus.
            "tile": TileConfig(mpp=1.0, size_px=64, min_focus=0.0).model_dump(mode="json")
        },
        "students": [
            {
                "name": name,
                "network": "mean_red",
                "width": 1.0,
                "parameters": 2,
                "onnx": f"students/{name}.onnx",
                "safetensors": f"students/{name}.safetensors",
            }
            for name in students
        ],
        "slide_head": {"pooling": "mean_probability"},
        "calibration": {"kind": "none"},
        "operating_point": operating_point(0.5),
        "gates": InferConfig(min_tissue_mm2=0.01).model_dump(mode="json"),
        "slide_level": SlideLevelConfig().model_dump(mode="json"),
        "provenance": {
            "run_id": "0123456789abcdef",
            "experiment": "tests",
            "run_name": "by-hand",
            "method": "kd_ml",
            "seed": 0,
            "epochs": 1,
            "best_epoch": 1,
            "data_digest": "f" * 64,
            "patients": {"train": 3, "validation": 2, "test": 2},
            "tiles": {"train": 30, "validation": 20, "test": 20},
            "trained_on_synthetic": False,
            "software": "medkd",
            "torch": "2.13.0",
        },
    }


@pytest.fixture(scope="session")
def make_package() -> MakePackage:
    """Write a package: ``make_package(folder, threshold=0.7, gates={"min_tiles": 3})``.

    ``students``: name to slope and offset. ``embeddings``: the students have some. ``files``: more
    of them. Other keys replace, or are merged into, the manifest's.
    """

    def make(
        folder: Path,
        *,
        students: Mapping[str, tuple[float, float]] = STUDENTS,
        threshold: float = 0.5,
        embeddings: bool = False,
        files: Mapping[str, bytes] | None = None,
        **changes: Any,
    ) -> Path:
        content = manifest_content(students)
        for student in content["students"] if embeddings else ():
            student["embedding_size"] = 3
        content["operating_point"] = operating_point(threshold)
        for key, value in changes.items():
            merge = isinstance(value, dict) and isinstance(content.get(key), dict)
            content[key] = {**content[key], **value} if merge else value
        written = dict(files or {})
        for name, (slope, offset) in students.items():
            written[f"students/{name}.onnx"] = student_onnx(slope, offset, embeddings=embeddings)
            written[f"students/{name}.safetensors"] = save({"slope": np.array([slope, offset])})
        write_package(folder, content, written)
        return folder

    return make


@pytest.fixture(scope="session")
def package_folder(make_package: MakePackage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound package. Tests that change one copy it."""
    return make_package(tmp_path_factory.mktemp("package") / "model")


@pytest.fixture(scope="session")
def synthetic_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """512 x 384 um of drawn H&E, with label and macro."""
    path = tmp_path_factory.mktemp("synthetic") / "drawn.svs"
    write_slide(SlideSpec("MSI", 5, 1024, 768, 0.5, with_label_and_macro=True), path)
    return path


def write_flat_slide(
    path: Path, image: np.ndarray, *, mpp: float | None = 1.0, more: str = "", **tags: Any
) -> Path:
    """One level of pixels as a tiled TIFF that OpenSlide takes for an Aperio slide."""
    told = "" if mpp is None else f"|MPP = {mpp}"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            image,
            photometric="rgb",
            tile=(64, 64),
            compression="zlib",
            description=f"Aperio Image Library v10.0.0\r\ntest{told}{more}",
            metadata=None,
            **tags,
        )
    return path


@pytest.fixture(scope="session")
def flat_image() -> np.ndarray:
    """Glass, 10 x 8 tiles of 64 px, with 5 x 4 tiles of flat pink from column 3 and row 2.

    Red is 153 (0.6 of 255) on the left three columns of them, and 204 (0.8) on the right two.
    """
    image = np.full((8 * 64, 10 * 64, 3), 243, np.uint8)
    image[2 * 64 : 6 * 64, 3 * 64 : 6 * 64] = (153, 90, 130)
    image[2 * 64 : 6 * 64, 6 * 64 : 8 * 64] = (204, 120, 170)
    return image


@pytest.fixture(scope="session")
def flat_slide(flat_image: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``flat_image`` as a slide of 1 um/px."""
    return write_flat_slide(tmp_path_factory.mktemp("flat") / "flat.svs", flat_image)


@pytest.fixture(scope="session")
def write_flat() -> Callable[..., Path]:
    """``write_flat(path, image, mpp=None, more="|User = x", **tags of tifffile)``."""
    return write_flat_slide


@pytest.fixture(scope="session")
def medkd() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line as a user does."""

    def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "medkd.cli", *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            capture_output=True,
            text=True,
            check=False,
        )

    return run
