"""A large pretrained network as teacher: its head alone learns, and its pooled features teach."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from medkd.distill.cohort import Cohort
from medkd.distill.graph import expand
from medkd.distill.method import load_method
from medkd.errors import MethodError
from medkd.networks.heads import train_head_only
from medkd.networks.staged import InputAdapter, Network
from medkd.networks.timm_models import PooledNetwork
from medkd.tasks.classification import Classification
from tests.distill import naive
from tests.distill.hand_made import CLASSES, Made, make, method_of, networks_for, steps, total, toy
from tests.networks.timm_stand_in import Convolutional

HINTS = """\
nodes:
  teacher: {network: teacher, frozen: true}
  student: {network: students}
links:
  - {from: teacher, to: student, loss: feature_mse, on: pooled}
deploy: {ensemble: student}
"""
CONCATENATED = """\
nodes:
  peer: {network: students}
  more: {ensemble_of: peer, by: concatenated features}
links:
  - {from: more, to: peer, loss: kl}
deploy: {ensemble: peer}
"""


def pooled() -> PooledNetwork:
    """Without stages; 9 pooled features."""
    return PooledNetwork(InputAdapter(), Convolutional(CLASSES))


def probe(network: Network) -> Network:
    train_head_only(network, "train.teacher")
    return network


def made_with(method: str, teacher) -> Made:
    return make(method, 2, make_student=toy, make_teacher=teacher)


def features(network: PooledNetwork, images: Tensor) -> Tensor:
    """By hand: what its classifier sees."""
    model = network.network
    maps = model.conv((images - network.adapter.mean) / network.adapter.std)
    return maps.mean((2, 3)) @ model.hidden.weight.T + model.hidden.bias


def test_pooled_features_of_a_network_without_stages_teach() -> None:
    """Through a learned matrix from the student's 4 channels to the teacher's 9."""
    made = made_with(HINTS, pooled)
    target = features(made.copies["teacher"], made.images).detach()
    logits, terms, _ = made.cohort(made.images, made.labels)
    head = made.copies["teacher"].network.classifier
    torch.testing.assert_close(logits["teacher"], head(target), atol=1e-12, rtol=0)
    for k in range(2):
        name = f"student_{k}/feature_mse_on_pooled_from_teacher"
        (weight,) = made.cohort.projections[f"{name}:teacher"].parameters()
        assert weight.shape == (9, 4)
        learner = made.copies[f"student_{k}"]
        state = learner.enter(made.images)
        for stage in learner.stages:
            state = stage(state)
        projected = learner.pool(state) @ weight.T
        expected = naive.feature_mse(target, projected)
        torch.testing.assert_close(terms[name], expected, atol=1e-10, rtol=0)
    losses = steps(made.cohort, made.images, made.labels, 3, rate=0.05)
    assert losses[2] < losses[0]


def test_pooled_features_are_concatenated_without_stages_too() -> None:
    made = make(CONCATENATED, 2, make_student=pooled)
    logits = made.cohort(made.images, made.labels).logits
    both = torch.cat([features(made.copies[f"peer_{k}"], made.images) for k in range(2)], dim=1)
    classifier = made.cohort.ensembles["more"].classifier
    torch.testing.assert_close(logits["more"], classifier(both), atol=1e-12, rtol=0)
    alone = made.cohort.eval().alone("more")
    torch.testing.assert_close(alone(made.images), logits["more"], atol=1e-12, rtol=0)


def test_a_stage_of_it_cannot_be_compared() -> None:
    method = HINTS.replace("on: pooled", "on: {from: stage -1, to: stage -1}")
    networks = networks_for(method, 2, make_student=toy, make_teacher=pooled)
    with pytest.raises(MethodError, match=r"mine.yaml:5: 'teacher' has no stages, and 'stage -1'"):
        Cohort(expand(method_of(method), 2), networks, Classification())


# The head alone.


def test_a_probe_learns_beside_the_students() -> None:
    """Online: the teacher's backbone and its batch norms stay, its classifier learns."""
    made = made_with("kd_ml", lambda: probe(toy(6)))
    cohort, teacher = made.cohort, made.cohort.nodes["teacher"]
    groups = cohort.parameters_by_node()
    assert [p.shape for p in groups["teacher"]] == [(CLASSES, 6), (CLASSES,)]
    before = copy.deepcopy(teacher.state_dict())
    losses = steps(cohort, made.images, made.labels, 3, rate=0.05)
    assert losses[2] < losses[0]
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key]) == (not key.startswith("classifier")), key
    cohort.train()
    assert {part.training for part in teacher.stages.modules()} == {False}
    assert teacher.classifier.training


@pytest.mark.parametrize("kind", [lambda: toy(6), pooled])
def test_a_probe_by_hand(kind) -> None:
    """Its gradient is that of a linear classifier on fixed features; the rest has none."""
    made = made_with("kd", lambda: probe(kind()))
    network = made.copies["teacher"].eval()
    if isinstance(network, PooledNetwork):
        fixed = features(network, made.images).detach()
    else:
        state = network.enter(made.images)
        for stage in network.stages:
            state = stage(state)
        fixed = network.pool(state).detach()
    weight, bias = (p.detach().clone().requires_grad_() for p in network.classifier.parameters())
    expected = naive.cross_entropy(fixed @ weight.T + bias, made.labels)
    seen = made.cohort.look(made.images, learning=True)["teacher"]
    assert seen.logits.requires_grad
    assert seen.pooled is None or not seen.pooled.requires_grad
    terms = made.cohort(made.images, made.labels).terms
    torch.testing.assert_close(terms["teacher/supervised"], expected, atol=1e-10, rtol=0)
    total(terms).backward()
    theirs = torch.autograd.grad(expected, [weight, bias])
    ours = [p.grad for p in made.cohort.nodes["teacher"].classifier.parameters()]
    torch.testing.assert_close(ours, list(theirs), atol=1e-10, rtol=0)
    rest = [p for p in made.cohort.nodes["teacher"].parameters() if not p.requires_grad]
    assert rest
    assert all(p.grad is None for p in rest)


def test_a_frozen_probe_trains_its_head_first_and_then_nothing() -> None:
    graph = expand(load_method("kd_frozen"), 2)
    network = probe(toy(6))
    first = Cohort(graph.first("teacher"), {"teacher": network}, Classification())
    assert [len(group) for group in first.parameters_by_node().values()] == [2]
    networks = {"teacher": network, "student_0": toy(), "student_1": toy()}
    then = Cohort(graph, networks, Classification())
    assert set(then.parameters_by_node()) == {"student_0", "student_1"}
    assert not any(p.requires_grad for p in network.parameters())
    then.train()
    assert {part.training for part in network.modules()} == {False}


def test_a_bridge_of_a_probe_learns_whole() -> None:
    """SOKD on a foundation model: the bridge is a fresh copy, marked like its teacher."""
    made = made_with("sokd", lambda: probe(toy(6)))
    bridge = made.cohort.nodes["bridge"]
    assert all(p.requires_grad for p in bridge.parameters())
    made.cohort.train()
    assert {part.training for part in bridge.modules()} == {True}


def test_a_probe_cannot_learn_features() -> None:
    method = """\
nodes:
  teacher: {network: teacher}
  student: {network: students}
links:
  - {from: student, to: teacher, loss: attention, on: stage -1}
deploy: {ensemble: student}
"""
    networks = networks_for(method, 2, make_student=toy, make_teacher=lambda: probe(toy()))
    with pytest.raises(MethodError) as error:
        Cohort(expand(method_of(method), 2), networks, Classification())
    assert str(error.value) == (
        "mine.yaml:5: 'teacher' trains its head alone, and 'stage -1' comes before it. Compare "
        "logits, or leave 'train_only' out of its network."
    )


def test_a_probe_cannot_share_its_stages() -> None:
    networks = networks_for("one", 2, make_student=lambda: probe(toy()))
    with pytest.raises(MethodError) as error:
        Cohort(expand(load_method("one"), 2), networks, Classification())
    assert str(error.value) == (
        "one.yaml:7: 'branch_0' shares stages with others, and trains its head alone. Leave "
        "'train_only' out of its network, or share no stages."
    )


def test_a_compiled_probe_computes_the_same() -> None:
    torch._dynamo.reset()
    made = made_with("kd", lambda: probe(toy(6, stages=2)))
    expected = made.cohort(made.images, made.labels).terms
    found = torch.compile(made.cohort, backend="aot_eager", fullgraph=True)(
        made.images, made.labels
    ).terms
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
