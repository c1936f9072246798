"""What inference.py measures: an ensemble as a model package, and other ways to run it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import torch
from PIL import Image
from safetensors.numpy import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from medkd.config import InferConfig, SlideLevelConfig, TileConfig
from medkd.inference.overlap import overlapped, usable_cores
from medkd.inference.package import ModelPackage, load_package, write_package
from medkd.inference.quantise import quantise
from medkd.inference.students import Students
from medkd.networks.zoo import build_network, count_parameters
from medkd.slides.tiling import open_slide_for_tiling
from medkd.training.export import embedding_size, export_onnx

TILE = TileConfig(mpp=0.5, size_px=224)
SLIDE_MPP = 0.25
EAGER_BATCH_TILES = 32
CLASSES = ("MSS", "MSI")


@dataclass(frozen=True)
class Ensemble:
    """Networks by name and width: the students, and the teacher that they would learn from."""

    students: tuple[tuple[str, float], ...]
    teacher: tuple[str, float]


# As configs/msi_mss.yaml and configs/demo.yaml have them.
MSI_MSS = Ensemble((("resnet18", 1.0), ("resnet18", 1.0)), ("resnet50", 1.0))
DEMO = Ensemble((("resnet10", 0.25), ("resnet10", 0.25)), ("resnet18", 0.5))


@dataclass(frozen=True)
class Built:
    """An ensemble that can be run.

    Attributes:
        students, teacher: for torch, in evaluation.
        float32, int8, teacher_alone: the students, the same quantised, and the teacher as
            packages.
    """

    students: list[nn.Module]
    teacher: nn.Module
    float32: ModelPackage
    int8: ModelPackage
    teacher_alone: ModelPackage


def build(ensemble: Ensemble, folder: Path, tiles: np.ndarray) -> Built:
    """Networks of random weights whose batch norms have seen ``tiles``, uint8 N x H x W x 3.

    Half of the tiles calibrate the students in int8.
    """
    students = [_network(name, width, tiles) for name, width in ensemble.students]
    teacher = _network(*ensemble.teacher, tiles)
    exported = [export_onnx(network, TILE.size_px) for network in students]
    half = tiles[::2]
    batches = [half[first : first + 8] for first in range(0, len(half), 8)]
    return Built(
        students,
        teacher,
        _package(folder / "float32", students, exported),
        _package(folder / "int8", students, [quantise(one, batches) for one in exported]),
        _package(folder / "teacher", [teacher], [export_onnx(teacher, TILE.size_px)]),
    )


def _network(name: str, width: float, tiles: np.ndarray) -> nn.Module:
    network = build_network(name, classes=len(CLASSES), width=width)
    with torch.no_grad():
        for first in range(0, len(tiles), 16):
            network.train()(_images(torch.from_numpy(tiles[first : first + 16])))
    return network.eval()


def _package(folder: Path, networks: Sequence[nn.Module], exported: list[bytes]) -> ModelPackage:
    files: dict[str, bytes] = {}
    students: list[dict[str, Any]] = []
    for number, (network, onnx) in enumerate(zip(networks, exported, strict=True)):
        paths = {kind: f"students/{number}.{kind}" for kind in ("onnx", "safetensors")}
        # Inference reads the ONNX file alone.
        files |= {paths["onnx"]: onnx, paths["safetensors"]: save({"none": np.zeros(1)})}
        students.append(
            {
                "name": f"student_{number}",
                "network": type(network).__name__,
                "parameters": count_parameters(network),
                "embedding_size": embedding_size(network, TILE.size_px),
                **paths,
            }
        )
    write_package(folder, {**_MANIFEST, "students": students}, files)
    return load_package(folder)


_MANIFEST: dict[str, Any] = {
    "schema_version": 1,
    "name": "benchmark",
    "version": "1",
    "created": "2026-01-01T00:00:00+00:00",
    "task": "classification",
    "research_use_only": True,
    "classes": list(CLASSES),
    "positive": CLASSES[1],
    "preprocessing": {"tile": TILE.model_dump(mode="json")},
    "slide_head": {"pooling": "mean_probability"},
    "calibration": {"kind": "none"},
    "operating_point": {
        "threshold": 0.5,
        "target_sensitivity": 0.95,
        "sensitivity": 1.0,
        "sensitivity_interval": [0.0, 1.0],
        "specificity": 1.0,
        "specificity_interval": [0.0, 1.0],
        "cohort": "none",
        "patients": 0,
        "positives": 0,
        "date": "2026-01-01",
        "method": "none",
    },
    "gates": InferConfig().model_dump(mode="json"),
    "slide_level": SlideLevelConfig().model_dump(mode="json"),
    "provenance": {
        "run_id": "none",
        "experiment": "benchmark",
        "run_name": "benchmark",
        "method": "none",
        "seed": 0,
        "epochs": 0,
        "best_epoch": 0,
        "data_digest": "none",
        "patients": {},
        "tiles": {},
        "trained_on_synthetic": True,
        "software": "benchmark",
        "torch": torch.__version__,
    },
}


def read_tiles(path: Path) -> tuple[list[tuple[int, int]], np.ndarray]:
    """What ``medkd infer`` reads of a slide: places, and tiles, uint8 N x H x W x 3."""
    with open_slide_for_tiling(path, TILE) as slide:
        used = [
            (tile.x, tile.y, slide.learnt_pixels(tile))
            for tile in slide.tiles()
            if tile.pixels is not None
        ]
    return [(x, y) for x, y, _ in used], np.stack([pixels for _, _, pixels in used])


def predict(students: Students, tiles: np.ndarray) -> None:
    """The model's share of the pass, alone: all tiles are there already."""
    batches = (tiles[first : first + 8] for first in range(0, len(tiles), 8))
    for _ in overlapped(students, batches, threads=usable_cores()):
        pass


def _images(tiles: Tensor) -> Tensor:
    """Uint8 N x H x W x 3 to RGB in [0, 1], float N x 3 x H x W."""
    return tiles.permute(0, 3, 1, 2).to(torch.float32) / 255


def eager(networks: Sequence[nn.Module], tiles: np.ndarray, layout: torch.memory_format) -> None:
    """The same share in torch, float32, eager, as is."""
    with torch.inference_mode():
        for first in range(0, len(tiles), EAGER_BATCH_TILES):
            batch = torch.from_numpy(tiles[first : first + EAGER_BATCH_TILES])
            images = _images(batch).contiguous(memory_format=layout)
            for network in networks:
                torch.softmax(network(images), dim=1).numpy()


def eager_pass(networks: Sequence[nn.Module], path: Path) -> None:
    """A slide through torch with medkd's own reading, one after the other."""
    eager(networks, read_tiles(path)[1], torch.channels_last)


class _Regions(Dataset):
    """Regions through OpenSlide, made smaller with PIL: the pattern of most pipelines."""

    def __init__(self, path: Path, places: list[tuple[int, int]]) -> None:
        self._path, self._places = path, places
        self._slide: openslide.OpenSlide | None = None

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Tensor:
        if self._slide is None:
            self._slide = openslide.OpenSlide(self._path)
        side_px = round(TILE.size_px * TILE.mpp / SLIDE_MPP)
        region = self._slide.read_region(self._places[index], 0, (side_px, side_px))
        small = region.convert("RGB").resize(
            (TILE.size_px, TILE.size_px), Image.Resampling.BILINEAR
        )
        # What torchvision's ToTensor gives.
        return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous().div(255)


def peer_pass(networks: Sequence[nn.Module], path: Path, places: list[tuple[int, int]]) -> None:
    """The same tiles by the peers' pattern, which is told where they lie."""
    loader = DataLoader(
        _Regions(path, places), batch_size=EAGER_BATCH_TILES, num_workers=usable_cores()
    )
    with torch.inference_mode():
        for images in loader:
            for network in networks:
                torch.softmax(network(images), dim=1).numpy()
