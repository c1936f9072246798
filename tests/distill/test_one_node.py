"""What ships of a cohort: a node alone gives the same logits, with what it needs and no more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medkd.distill.cohort import Cohort
from medkd.training.export import export_onnx
from tests.distill.hand_made import CLASSES, METHODS, SIDE_PX, batch, make, steps, toy


def trained(method: str, students: int = 3) -> Cohort:
    """A cohort after two steps, in evaluation mode."""
    made = make(method, students)
    steps(made.cohort, made.images, made.labels, 2, rate=0.01)
    return made.cohort.eval()


def ids(*modules: nn.Module) -> set[int]:
    return {id(p) for module in modules for p in module.parameters()}


@pytest.mark.parametrize("method", METHODS)
def test_every_node_alone(method: str) -> None:
    """Those that do not ship too: they are measured."""
    cohort = trained(method)
    images, _ = batch(seed=7)
    with torch.no_grad():
        logits = cohort(images).logits
        for node in cohort.graph.nodes:
            alone = cohort.alone(node.name).eval()(images)
            assert isinstance(alone, Tensor)
            torch.testing.assert_close(alone, logits[node.name], atol=1e-12, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_what_ships_holds_nothing_of_the_teacher(method: str) -> None:
    cohort = trained(method, 2)
    for name in cohort.graph.deployed:
        held = ids(cohort.alone(name))
        assert held
        for other in ("teacher", "bridge"):
            if other in cohort.nodes:
                assert not held & ids(cohort.nodes[other])
        assert not held & ids(cohort.averages)
        assert not held & ids(cohort.projections)


# Of what a node is made: networks, averages and ensembles, by hand.
MADE_OF = {
    ("kd_ml", "student_1"): {"student_1"},
    ("kd_ml", "teacher"): {"teacher"},
    ("dml_e", "others_0"): {"student_1", "student_2"},
    ("kdcl", "shared"): {"teacher", "student_0", "student_1", "student_2"},
    ("sokd", "bridge"): {"teacher", "bridge"},
    ("pcl", "peer_0"): {"peer_0"},
    ("pcl", "mean_2"): {"mean_2"},
    ("pcl_e", "all_peers"): {"peer_0", "peer_1", "peer_2", "all_peers"},
    ("one", "gate"): {"branch_0", "branch_1", "branch_2", "gate"},
    ("okddip", "leader"): {"leader"},
    ("okddip", "mix_1"): {"peer_0", "peer_1", "peer_2", "mix"},
    ("okddip", "mean"): {"peer_0", "peer_1", "peer_2"},
}


@pytest.mark.parametrize(("method", "name"), MADE_OF)
def test_a_node_alone_holds_what_it_needs_and_no_more(method: str, name: str) -> None:
    cohort = make(method, 3, make_student=toy, make_teacher=toy).cohort
    parts = [
        module
        for holder in (cohort.nodes, cohort.averages.networks, cohort.ensembles)
        for key, module in holder.items()
        if key in MADE_OF[method, name]
    ]
    assert ids(cohort.alone(name)) == ids(*parts)


@pytest.mark.parametrize(("method", "name"), MADE_OF)
def test_a_node_alone_follows_the_cohort(method: str, name: str) -> None:
    """Its weights are the cohort's own, not copies: what is trained later is in what ships."""
    made = make(method, 3, make_student=toy, make_teacher=toy)
    alone = made.cohort.alone(name)
    images, _ = batch(seed=7)
    before = alone.eval()(images)
    steps(made.cohort, made.images, made.labels, 2, rate=0.1)
    made.cohort.eval()
    assert not torch.equal(alone.eval()(images), before) or name == "teacher"
    expected = made.cohort(images).logits[name]
    torch.testing.assert_close(alone(images), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("method", ["pcl_e", "one", "okddip", "sokd"])
def test_a_node_alone_comes_back_from_its_weights(method: str) -> None:
    name = {"pcl_e": "all_peers", "one": "gate", "okddip": "mix_1", "sokd": "bridge"}[method]
    one, other = (
        make(method, 2, make_student=toy, make_teacher=toy, seed=s).cohort.alone(name).eval()
        for s in (0, 1)
    )
    images, _ = batch(seed=7)
    assert not torch.allclose(other(images), one(images))
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(other(images), one(images), atol=0, rtol=0)


@pytest.mark.parametrize("method", ["pcl_e", "one"])
def test_an_ensemble_alone_runs_its_trunk_once(method: str) -> None:
    cohort = make(method, 3, make_student=toy, make_teacher=toy).cohort.eval()
    counts = []
    cohort.nodes[cohort.graph.nodes[0].name].stem.register_forward_hook(lambda *_: counts.append(1))
    cohort.alone("all_peers" if method == "pcl_e" else "gate").eval()(batch()[0])
    assert len(counts) == 1


def test_the_ensemble_of_pcl_ships_as_onnx() -> None:
    import onnxruntime

    cohort = trained("pcl_e").float()
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randint(256, (5, SIDE_PX, SIDE_PX, 3), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        logits = cohort(tiles.permute(0, 3, 1, 2) / 255).logits["all_peers"]
    model = export_onnx(cohort.alone("all_peers"), SIDE_PX)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run(["probabilities"], {"tiles": tiles.numpy()})
    assert found.shape == (5, CLASSES)
    np.testing.assert_allclose(found, torch.softmax(logits, 1).numpy(), atol=1e-4)
    assert np.abs(found - found.mean(0)).max() > 1e-3
