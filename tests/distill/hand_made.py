"""Small cohorts for tests: networks of a few thousand weights, images of 32 px, in float64."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medkd.distill.cohort import Cohort
from medkd.distill.graph import expand
from medkd.distill.method import Method, load_method, parse_method
from medkd.networks.staged import InputAdapter, Network, StagedNetwork, WholeNetwork, average_pool
from medkd.networks.zoo import build_network
from medkd.tasks.classification import Classification

CLASSES = 3
IMAGES = 4
SIDE_PX = 32

METHODS = (
    "independent",
    "kd",
    "kd_frozen",
    "kd_ml",
    "dml",
    "dml_e",
    "cml",
    "sokd",
    "sokd_features",
    "pcl",
    "pcl_e",
    "one",
    "okddip",
    "kdcl",
    "learning_styles",
)
SHARED_TRUNK = ("pcl", "pcl_e", "one", "okddip")
NEED_TWO = ("kd_ml", "dml", "dml_e", "cml", "pcl", "pcl_e", "learning_styles")
NUMBERS = [(m, k) for m in METHODS for k in (1, 2, 3, 5) if k > 1 or m not in NEED_TWO]
"""Every method with every number of students that it allows; the others: test_bad_methods.py."""
MIXED = [(m, k) for m, k in NUMBERS if m not in SHARED_TRUNK]
"""Those whose students may be of different kinds; the others: test_fit.py."""


def student() -> StagedNetwork:
    """A ResNet-10 of 4 to 32 channels whose last map of a 32 px image is 4 x 4."""
    network = build_network(
        "resnet10", classes=CLASSES, width=0.0625, stem_stride=1, max_pool=False
    )
    assert isinstance(network, StagedNetwork)
    return network


def teacher() -> StagedNetwork:
    """Twice as wide as :func:`student`."""
    network = build_network("resnet10", classes=CLASSES, width=0.125, stem_stride=1, max_pool=False)
    assert isinstance(network, StagedNetwork)
    return network


def toy(channels: int = 4, classes: int = CLASSES, stages: int = 3) -> StagedNetwork:
    """Stages of one convolution each: for tests that only need the parts to be there."""

    def block(before: int, after: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        )

    return StagedNetwork(
        adapter=InputAdapter(),
        stem=block(3, channels),
        stages=[block(channels, channels) for _ in range(stages)],
        pool=average_pool(),
        classifier=nn.Linear(channels, classes),
        stage_channels=[channels] * stages,
        pooled_channels=channels,
    )


def mixed(students: int) -> list[Network]:
    """A ResNet, a DenseNet, an EfficientNet, and again; a single one is an EfficientNet."""
    names = ("resnet10", "densenet121", "efficientnet-b0") if students > 1 else ("efficientnet-b0",)
    return [build_network(names[k % len(names)], classes=CLASSES) for k in range(students)]


def whole(classes: int = CLASSES) -> WholeNetwork:
    """A network that cannot be taken apart."""
    body = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(1), nn.Linear(12, classes))
    return WholeNetwork(InputAdapter(), body)


@dataclass
class Made:
    """A cohort and, for the judge, copies of its networks from before it was put together."""

    cohort: Cohort
    copies: dict[str, Network]
    images: Tensor
    labels: Tensor


def method_of(method: str | Method) -> Method:
    """A method by its name, or from text that has more than a line."""
    if isinstance(method, Method):
        return method
    return parse_method(method, "mine") if "\n" in method else load_method(method)


def networks_for(
    method: str | Method,
    students: int,
    *,
    make_student=student,
    make_teacher=teacher,
    mixed: Sequence[Network] | None = None,
) -> dict[str, Network]:
    """A network for each network of a method, and a fresh one for each bridge."""
    graph = expand(method_of(method), students)
    found: dict[str, Network] = {}
    for node in graph.nodes:
        if node.role == "teacher":
            found[node.name] = make_teacher()
        elif node.role == "student":
            found[node.name] = mixed[node.index] if mixed else make_student()
        elif node.role == "bridge":
            found[node.name] = make_teacher()
    return found


def batch(views: int = 1, *, seed: int = 1, images: int = IMAGES) -> tuple[Tensor, Tensor]:
    """Images of different brightness, with a dimension of views if there are several; labels."""
    generator = torch.Generator().manual_seed(seed)
    shape = (views, images, 3, SIDE_PX, SIDE_PX) if views > 1 else (images, 3, SIDE_PX, SIDE_PX)
    labels = torch.arange(images) * 2 % CLASSES
    brightness = torch.linspace(0.2, 1, images, dtype=torch.float64).view(-1, 1, 1, 1)
    return torch.rand(shape, generator=generator, dtype=torch.float64) * brightness, labels


def make(
    method: str | Method,
    students: int,
    *,
    networks: Mapping[str, Network] | None = None,
    seed: int = 0,
    make_student=student,
    make_teacher=teacher,
) -> Made:
    """A cohort in float64 and in training mode, whose means and batch norms are not as at birth."""
    torch.manual_seed(seed)
    method = method_of(method)
    networks = networks or networks_for(
        method, students, make_student=make_student, make_teacher=make_teacher
    )
    for network in networks.values():
        stir(network)
    copies = copy.deepcopy(dict(networks))
    graph = expand(method, students)
    cohort = Cohort(graph, networks, Classification()).double().train()
    for network in copies.values():
        network.double().train()
    for mean in cohort.averages.networks.values():
        stir(mean)
    for ensemble in cohort.ensembles.values():
        stir(ensemble)
    return Made(cohort, copies, *batch(graph.views))


@torch.no_grad()
def stir(network: nn.Module) -> None:
    """Move weights, and batch norms' statistics off 0 and 1 to what they would be in training.

    So that a mean is not its source, and evaluation mode is not training mode.
    """
    for parameter in network.parameters():
        parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
        parameter.add_(0.02 * torch.randn_like(parameter))
    if isinstance(network, StagedNetwork | WholeNetwork):
        images, _ = batch(seed=int(torch.randint(1000, ())))
        training = network.training
        for _ in range(5):
            network.train()(images.to(next(network.parameters()).dtype))
        network.train(training)


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum that a step goes backward from."""
    return torch.stack(list(terms.values())).sum()


def steps(cohort: Cohort, images: Tensor, labels: Tensor, count: int, rate: float) -> list[float]:
    """Plain SGD on one batch; the total loss before each step."""
    parameters = [p for group in cohort.parameters_by_node().values() for p in group]
    optimizer = torch.optim.SGD(parameters, lr=rate)
    losses = []
    for step in range(count):
        loss = total(cohort(images, labels).terms)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cohort.update_averages(step)
        losses.append(loss.item())
    return losses
