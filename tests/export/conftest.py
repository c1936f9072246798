"""A package of two small networks that torch, ONNX and the rest must agree on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from medkd.inference.package import write_package
from medkd.networks.zoo import build_network, count_parameters
from medkd.slides.synthetic import SlideSpec, write_slide
from medkd.training.export import embedding_size, export_onnx, export_safetensors
from tests.inference.compared import compared
from tests.inference.conftest import manifest_content, medkd  # noqa: F401  (a fixture)

SIZE_PX = 64


@dataclass(frozen=True)
class Trained:
    """Networks, in evaluation mode, and what a package needs of them."""

    networks: dict[str, nn.Module]
    files: dict[str, bytes]

    def probabilities(self, tiles: np.ndarray) -> dict[str, np.ndarray]:
        """Of uint8 tiles, N x SIZE_PX x SIZE_PX x 3, in torch, worked out step by step."""
        images = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            return {
                name: torch.softmax(network(images), dim=1).numpy()
                for name, network in self.networks.items()
            }


def _network(seed: int) -> nn.Module:
    """Not trained, but its answers differ from tile to tile."""
    torch.manual_seed(seed)
    network = build_network("resnet10", classes=2, width=0.0625)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="session")
def trained() -> Trained:
    networks = {f"student_{number}": _network(number) for number in range(2)}
    files = {}
    for name, network in networks.items():
        files[f"students/{name}.onnx"] = export_onnx(network, SIZE_PX)
        files[f"students/{name}.safetensors"] = export_safetensors(network)
    return Trained(networks, files)


@pytest.fixture(scope="session")
def make_model(trained: Trained) -> Callable[..., Path]:
    """``make_model(folder, operating_point=None, ...)``: keywords replace the manifest's keys."""

    def make(folder: Path, **changes: Any) -> Path:
        content = manifest_content(dict.fromkeys(trained.networks, (0.0, 0.0)))
        content["preprocessing"]["tile"] |= {"mpp": 1.0, "size_px": SIZE_PX}
        for student in content["students"]:
            network = trained.networks[student["name"]]
            student |= {
                "network": "resnet10",
                "width": 0.0625,
                "parameters": count_parameters(network),
                "embedding_size": embedding_size(network, SIZE_PX),
            }
        width = sum(student["embedding_size"] for student in content["students"])
        held = compared(
            {"stain": 1e6, "embedding": 1e6}, {"stain": [0] * 6, "embedding": [0] * width}
        )
        content["out_of_distribution"] = held["out_of_distribution"]
        write_package(folder, content | changes, {**trained.files, **held["files"]})
        return folder

    return make


@pytest.fixture(scope="session")
def model(make_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound package. Tests that change one make their own."""
    return make_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="session")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """512 x 384 um of drawn H&E."""
    path = tmp_path_factory.mktemp("slide") / "drawn.svs"
    write_slide(SlideSpec("MSI", 5, 1024, 768, 0.5), path)
    return path


@pytest.fixture(scope="session")
def tiles() -> np.ndarray:
    """Five tiles of noise, each darker than the one before; not those that exports are held to."""
    random = np.random.default_rng(11)
    return np.stack(
        [random.integers(0, high, (SIZE_PX, SIZE_PX, 3), np.uint8) for high in range(255, 5, -50)]
    )
