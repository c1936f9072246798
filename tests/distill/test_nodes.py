"""How nodes run: forwards counted, views dealt out, modes held."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import nn

from medkd.distill.cohort import Cohort
from tests.distill.hand_made import METHODS, SHARED_TRUNK, Made, batch, make, steps, total, toy


def made_of_toys(method: str, students: int) -> Made:
    return make(method, students, make_student=toy, make_teacher=toy)


# One forward.


def count_forwards(cohort: Cohort) -> Counter[str]:
    """Counts by part, as 'node part', in whatever is run from here on. A shared part counts once
    under the first node that has it."""
    counts: Counter[str] = Counter()
    hooked: set[int] = set()
    nodes = [*cohort.nodes.items(), *cohort.averages.networks.items()]
    for name, node in nodes:
        parts = dict(node.named_children())
        parts |= {f"stage {i}": stage for i, stage in enumerate(node.stages)}
        for part in ("stem", *(f"stage {i}" for i in range(len(node.stages))), "pool"):
            module = parts.get(part)
            if module is not None and id(module) not in hooked:
                hooked.add(id(module))
                module.register_forward_hook(lambda *_, key=f"{name} {part}": counts.update([key]))
        node.classifier.register_forward_hook(
            lambda *_, key=f"{name} classifier": counts.update([key])
        )
    for name, module in cohort.ensembles.items():
        module.register_forward_hook(lambda *_, key=name: counts.update([key]))
    return counts


PARTS = ("stem", "stage 0", "stage 1", "stage 2", "pool", "classifier")
LATE = ("stage 2", "pool", "classifier")


def every(parts: tuple[str, ...], *names: str) -> dict[str, int]:
    return {f"{name} {part}": 1 for name in names for part in parts}


def expected_forwards(method: str, students: int) -> dict[str, int]:
    """By hand: each network once, a trunk once for all who share it."""
    numbered = {w: [f"{w}_{k}" for k in range(students)] for w in ("student", "peer", "branch")}
    if method in ("pcl", "pcl_e"):
        means = [f"mean_{k}" for k in range(students)]
        found = every(PARTS, "peer_0", "mean_0")
        found |= every(LATE, *numbered["peer"], *means)
        return found | {"all_peers": 1}
    if method == "one":
        found = every(PARTS, "branch_0") | every(LATE, *numbered["branch"])
        return found | {"gate": 1}
    if method == "okddip":
        found = every(PARTS, "peer_0") | every(LATE, *numbered["peer"], "leader")
        return found | {"mix": students}
    found = every(PARTS, *numbered["student"])
    if method not in ("dml", "dml_e"):
        found |= every(PARTS, "teacher")
    if method.startswith("sokd"):
        # The bridge has one stage, its own number 0.
        found |= every(("stage 0", "pool", "classifier"), "bridge")
    return found


@pytest.mark.parametrize("students", [2, 5])
@pytest.mark.parametrize("method", METHODS)
def test_one_forward_of_each_network(method: str, students: int) -> None:
    made = made_of_toys(method, students)
    counts = count_forwards(made.cohort)
    made.cohort(made.images, made.labels)
    assert counts == expected_forwards(method, students)
    counts.clear()
    total(made.cohort(made.images, made.labels).terms).backward()
    assert counts == expected_forwards(method, students)


def test_a_pool_without_weights_is_no_exception() -> None:
    """What is counted above is counted on a real network too: stem and classifier of each."""
    made = make("kd_ml", 3)
    counts = count_forwards(made.cohort)
    made.cohort(made.images, made.labels)
    assert set(counts.values()) == {1}
    assert {key for key in counts if key.endswith(("stem", "classifier"))} == {
        f"{name} {part}"
        for name in ("teacher", "student_0", "student_1", "student_2")
        for part in ("stem", "classifier")
    }


@pytest.mark.parametrize("method", SHARED_TRUNK)
def test_what_is_shared_is_there_once(method: str) -> None:
    """In memory, and in what is counted as parameters."""
    made = made_of_toys(method, 3)
    nodes = list(made.cohort.nodes.values())
    first = nodes[0]
    for node in nodes[1:]:
        assert node.stem is first.stem
        assert [node.stages[i] is first.stages[i] for i in range(3)] == [True, True, False]
        assert node.classifier is not first.classifier


# Views.


@pytest.mark.parametrize("students", [2, 3])
def test_every_peer_sees_its_own_view(students: int) -> None:
    """The logits of a peer depend on its view: nobody sees another one's image."""
    made = make("kdcl", students)
    made.cohort.eval()
    names = ["teacher", *(f"student_{k}" for k in range(students))]
    logits = made.cohort(made.images).logits
    for number, name in enumerate(names):
        alone = made.cohort.alone(name)(made.images[number])
        torch.testing.assert_close(logits[name], alone, atol=1e-12, rtol=0)


def test_peers_of_a_trunk_see_their_own_views() -> None:
    made = make("pcl", 3)
    made.cohort.eval()
    logits = made.cohort(made.images).logits
    for k in range(3):
        for name in (f"peer_{k}", f"mean_{k}"):
            alone = made.cohort.alone(name)(made.images[k])
            torch.testing.assert_close(logits[name], alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_one_view_for_all_is_enough_to_predict(method: str) -> None:
    made = made_of_toys(method, 2)
    made.cohort.eval()
    images, _ = batch()
    one = made.cohort(images).logits
    if made.cohort.graph.views > 1:
        many = made.cohort(torch.stack([images] * made.cohort.graph.views)).logits
        torch.testing.assert_close(many, one, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("method", "views"), [("kd_ml", 1), ("pcl", 2), ("kdcl", 3)])
def test_the_number_of_views_is_checked(method: str, views: int) -> None:
    made = made_of_toys(method, 2)
    assert made.cohort.graph.views == views
    images, labels = batch(4)
    with pytest.raises(ValueError, match=f"4 views, and the method has {views}"):
        made.cohort(images, labels)


# Modes, and what stays as it is.

FROZEN = ("kd_frozen", "cml", "sokd", "sokd_features")


@pytest.mark.parametrize("method", FROZEN)
def test_a_frozen_teacher_does_not_change_in_training(method: str) -> None:
    made = make(method, 2)
    before = copy.deepcopy(made.cohort.nodes["teacher"].state_dict())
    others = copy.deepcopy(made.cohort.nodes["student_0"].state_dict())
    made.cohort.nodes["teacher"].train()
    steps(made.cohort, made.images, made.labels, 5, rate=0.1)
    after = made.cohort.nodes["teacher"].state_dict()
    torch.testing.assert_close(after, before, atol=0, rtol=0)
    for key, value in made.cohort.nodes["student_0"].state_dict().items():
        if not key.startswith("adapter"):
            assert not torch.equal(value, others[key]), key


def modes(module: nn.Module) -> set[bool]:
    return {part.training for part in module.modules()}


@pytest.mark.parametrize("method", FROZEN)
def test_modes_with_a_frozen_teacher(method: str) -> None:
    made = made_of_toys(method, 2)
    cohort = made.cohort
    teacher = cohort.nodes["teacher"]
    learners = [node for name, node in cohort.nodes.items() if name != "teacher"]

    assert cohort.train() is cohort
    assert modes(teacher) == {False}
    assert all(modes(node) == {True} for node in learners)
    assert cohort.training

    # Whatever anyone calls: its batch norm uses the statistics that it was trained with.
    expected = copy.deepcopy(teacher).eval()(made.images)
    teacher.train()
    logits = cohort(made.images, made.labels).logits["teacher"]
    torch.testing.assert_close(logits, expected, atol=1e-12, rtol=0)
    assert modes(teacher) == {False}
    teacher.stages[0].train()
    logits = cohort(made.images, made.labels).logits["teacher"]
    torch.testing.assert_close(logits, expected, atol=1e-12, rtol=0)

    cohort.eval()
    assert modes(cohort) == {False}
    cohort.train()
    assert modes(teacher) == {False}
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("method", ["pcl", "pcl_e"])
def test_modes_with_means(method: str) -> None:
    cohort = made_of_toys(method, 2).cohort
    cohort.train()
    assert modes(cohort.averages) == {False}
    assert modes(cohort.nodes) == modes(cohort.ensembles) == {True}
    images, labels = batch(2)
    expected = {
        f"mean_{k}": copy.deepcopy(cohort.averages[f"mean_{k}"]).eval()(images[k]) for k in range(2)
    }
    for careless in (cohort.averages, cohort.averages["mean_0"], cohort.averages["mean_1"].stem):
        careless.train()
        logits = cohort(images, labels).logits
        for name, wanted in expected.items():
            torch.testing.assert_close(logits[name], wanted, atol=1e-12, rtol=0)
    cohort.eval()
    assert modes(cohort) == {False}


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(FROZEN) - {"pcl", "pcl_e"}))
def test_all_others_are_in_the_mode_that_was_asked_for(method: str) -> None:
    cohort = made_of_toys(method, 2).cohort
    cohort.train()
    assert modes(cohort.nodes) == {True}
    assert modes(cohort.ensembles) == {True}
    assert modes(cohort.eval()) == {False}
