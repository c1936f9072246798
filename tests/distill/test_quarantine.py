"""A network that has turned NaN is cut out; to all others it is as if its links were not there.

A mean over targets stays divided by their full number: a missing one says nothing, and the others
do not speak louder for it. An ensemble is that of the living.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from medkd.distill.cohort import Cohort
from medkd.distill.method import load_method
from tests.distill.hand_made import METHODS, SHARED_TRUNK, Made, make, total, toy
from tests.distill.test_formulas import gradients, paired, world_of
from tests.distill.transcribed import TRANSCRIPTIONS


def made_of_toys(method: str, students: int) -> Made:
    return make(method, students, make_student=toy, make_teacher=toy)


@torch.no_grad()
def kill(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        for parameter in module.parameters():
            parameter.fill_(torch.nan)


def own(cohort: Cohort, name: str) -> list[nn.Module]:
    """What belongs to a node alone: of one that shares its early stages, the late ones."""
    if name in cohort.ensembles:
        return [cohort.ensembles[name]]
    if name in cohort.averages:
        return [cohort.averages[name].classifier]
    node = cohort.nodes[name]
    return [node.stages[-1], node.classifier] if cohort.graph.node(name).trunk else [node]


def check_the_living(made: Made, dead: list[nn.Module]) -> None:
    """Every gradient outside of the dead is a number."""
    total(made.cohort(made.images, made.labels).terms).backward()
    theirs = {id(p) for module in dead for p in module.parameters()}
    for name, parameter in made.cohort.named_parameters():
        if id(parameter) not in theirs and parameter.grad is not None:
            assert bool(parameter.grad.isfinite().all()), name


# Of each method every kind of node that can die, and who dies with it.
DEATHS = [
    *[(m, "teacher", {"teacher"}) for m in ("independent", "kd", "kd_frozen", "kd_ml", "cml")],
    *[(m, "student_1", {"student_1"}) for m in METHODS if m not in SHARED_TRUNK],
    ("kdcl", "teacher", {"teacher"}),
    ("learning_styles", "teacher", {"teacher"}),
    # The bridge stands on the teacher's early stages.
    ("sokd", "teacher", {"teacher", "bridge"}),
    ("sokd", "bridge", {"bridge"}),
    ("sokd_features", "bridge", {"bridge"}),
    ("pcl", "peer_1", {"peer_1"}),
    ("pcl_e", "peer_1", {"peer_1"}),
    ("pcl", "mean_1", {"mean_1"}),
    ("pcl", "all_peers", {"all_peers"}),
    ("one", "branch_1", {"branch_1"}),
    ("one", "gate", {"gate"}),
    ("okddip", "peer_1", {"peer_1"}),
    ("okddip", "leader", {"leader"}),
    ("okddip", "mix", {"mix_0", "mix_1", "mix_2"}),
]


@pytest.mark.parametrize(("method", "victim", "dead"), DEATHS)
def test_the_dead_are_told_and_the_others_go_on(method: str, victim: str, dead: set[str]) -> None:
    made = made_of_toys(method, 3)
    killed = own(made.cohort, victim)
    kill(killed)
    logits, terms, alive = made.cohort(made.images, made.labels)
    assert {name for name, flag in alive.items() if not flag} == dead
    for name, value in logits.items():
        assert bool(value.isfinite().all()) == (name not in dead), name
    for name, term in terms.items():
        learner, _, what = name.partition("/")
        if learner in dead or any(what.endswith(f"_from_{node}") for node in {victim, *dead}):
            assert term.item() == 0, name
        else:
            assert term.isfinite(), name
            assert term.item() != 0, name
    # What shares a trunk with the dead, or is looked at by a dead ensemble, is not poisoned.
    for name in dead & set(made.cohort.nodes):
        killed += own(made.cohort, name)
    check_the_living(made, killed)


# Who is left out of the formula: the network that dies. (The means of a peer go on.)
VICTIMS = {"pcl": "peer", "pcl_e": "peer", "one": "branch", "okddip": "peer"}


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_the_others_learn_as_without_its_links(method: str, number: int) -> None:
    """Terms, and gradients at every weight, equal the formula with the dead left out."""
    victim = f"{VICTIMS.get(method, 'student')}_{number}"
    made = make(method, 3)
    world = replace(world_of(made, 3, factor=1.0), dead=frozenset({victim}))
    pairs = paired(made, world)
    dead = {id(p) for module in own(made.cohort, victim) for p in module.parameters()}
    pairs = {key: pair for key, pair in pairs.items() if id(pair[0]) not in dead}
    expected, _ = TRANSCRIPTIONS[method](world)
    expected = {name: term for name, term in expected.items() if not name.startswith(f"{victim}/")}
    kill(own(made.cohort, victim))
    terms = made.cohort(made.images, made.labels).terms

    for name, term in terms.items():
        if name.startswith(f"{victim}/"):
            assert term.item() == 0, name
        else:
            torch.testing.assert_close(term, expected[name], atol=1e-10, rtol=0, msg=name)
    ours = gradients(total(terms), [pair[0] for pair in pairs.values()])
    theirs = gradients(total(expected), [pair[1] for pair in pairs.values()])
    for key, found, wanted in zip(pairs, ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0, msg=key)


ALL_DEAD = [("kdcl", "shared"), ("one", "gate"), ("pcl", "all_peers"), ("okddip", "mean")]


@pytest.mark.parametrize(("method", "ensemble"), ALL_DEAD)
def test_an_ensemble_of_the_dead_is_dead(method: str, ensemble: str) -> None:
    """It does not teach that all classes are alike."""
    made = made_of_toys(method, 2)
    for name in made.cohort.graph.node(ensemble).sources:
        kill(own(made.cohort, name))
    _, terms, alive = made.cohort(made.images, made.labels)
    assert not alive[ensemble]
    for name, term in terms.items():
        if name.endswith(f"from_{ensemble}") or name.startswith(f"{ensemble}/"):
            assert term.item() == 0, name


def test_the_last_of_two_peers_learns_alone() -> None:
    """Of DML_e with two students each other mean is of one student."""
    made = made_of_toys("dml_e", 2)
    kill([made.cohort.nodes["student_1"]])
    _, terms, alive = made.cohort(made.images, made.labels)
    assert {name for name, flag in alive.items() if not flag} == {"student_1", "others_0"}
    assert terms["student_0/kl_from_others"].item() == 0


@pytest.mark.parametrize("what", [torch.nan, torch.inf])
def test_one_bad_number_is_enough(what: float) -> None:
    made = made_of_toys("kd_ml", 2)
    with torch.no_grad():
        made.cohort.nodes["student_0"].classifier.bias[2] = what
    _, terms, alive = made.cohort(made.images, made.labels)
    assert [name for name, flag in alive.items() if not flag] == ["student_0"]
    assert terms["student_1/kl_from_student"].item() == 0
    assert terms["student_1/kl_from_teacher"].item() > 0
    check_the_living(made, [made.cohort.nodes["student_0"]])


@pytest.mark.parametrize("method", ["kd_ml", "pcl", "one", "okddip"])
def test_training_goes_on_without_the_dead(method: str) -> None:
    """With its own gradients dropped, as the loop does, the others' loss falls."""
    made = made_of_toys(method, 3)
    victim = f"{VICTIMS.get(method, 'student')}_1"
    kill(own(made.cohort, victim))
    groups = made.cohort.parameters_by_node()
    living = [p for name, group in groups.items() if name != victim for p in group]
    optimizer = torch.optim.SGD(living, lr=0.01)
    losses: list[Tensor] = []
    for step in range(5):
        loss = total(made.cohort(made.images, made.labels).terms)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        made.cohort.update_averages(step)
        losses.append(loss.detach())
    assert losses[-1] < losses[0]


def test_a_loss_that_is_no_number_hurts_its_learner_alone() -> None:
    """Here the learner's projection is broken, and all logits are still good."""
    method = """\
nodes:
  teacher: {network: teacher}
  student: {network: students}
links:
  - {from: teacher, to: student, loss: feature_mse, on: pooled}
  - {from: student, to: student, loss: kl}
deploy: {ensemble: student}
"""
    made = made_of_toys(method, 2)
    broken = made.cohort.projections["student_0/feature_mse_on_pooled_from_teacher:teacher"]
    kill([broken])
    terms = made.cohort(made.images, made.labels).terms
    assert [name for name, term in terms.items() if not term.isfinite()] == [
        "student_0/feature_mse_on_pooled_from_teacher"
    ]
    check_the_living(made, [made.cohort.nodes["student_0"], broken])


def broken_by(made: Made, victim: str) -> dict[str, Tensor]:
    """One bad batch: numbers of ``victim`` are infinite, its weights good. Gradients, and alive."""
    late = made.cohort.nodes[victim].stages[-1]
    hook = late.register_forward_hook(lambda *args: args[-1] * torch.inf)
    _, terms, alive = made.cohort(made.images, made.labels)
    hook.remove()
    made.cohort.zero_grad()
    total(terms).backward()
    return alive


@pytest.mark.parametrize("method", ["kd_ml", "pcl", "okddip", "sokd"])
def test_dead_gradients_are_dropped_and_the_others_kept(method: str) -> None:
    made = made_of_toys(method, 2)
    victim = f"{VICTIMS.get(method, 'student')}_1"
    alive = broken_by(made, victim)
    groups = made.cohort.parameters_by_node()
    assert not all(p.grad.isfinite().all() for p in groups[victim])
    before = {name: [p.grad.clone() for p in group] for name, group in groups.items()}
    made.cohort.drop_dead_gradients(alive)
    for name, group in groups.items():
        for parameter, was in zip(group, before[name], strict=True):
            if name == victim:
                assert not parameter.grad.any(), name
            else:
                assert bool(was.isfinite().all()), name
                assert torch.equal(parameter.grad, was), name
    # The trunk learns from those who live.
    if method in SHARED_TRUNK:
        assert all(gradient.any() for gradient in before["peer_trunk"])


def test_a_trunk_whose_members_are_all_dead_gets_no_gradient() -> None:
    made = made_of_toys("one", 2)
    kill(own(made.cohort, "branch_0") + own(made.cohort, "branch_1"))
    _, terms, alive = made.cohort(made.images, made.labels)
    total(terms).backward()
    trunk = made.cohort.parameters_by_node()["branch_trunk"]
    for parameter in trunk:
        parameter.grad = torch.full_like(parameter, torch.nan)
    made.cohort.drop_dead_gradients({**alive, "branch_0": torch.tensor(True)})
    assert all(parameter.grad.isnan().all() for parameter in trunk)
    made.cohort.drop_dead_gradients(alive)
    assert not any(parameter.grad.any() for parameter in trunk)


def test_a_mix_lives_while_one_of_its_members_does() -> None:
    """The mixes of all peers are of one module."""
    made = made_of_toys("okddip", 2)
    total(made.cohort(made.images, made.labels).terms).backward()
    module = made.cohort.parameters_by_node()["mix"]
    was = [parameter.grad.clone() for parameter in module]
    dead, living = torch.tensor(False), torch.tensor(True)
    made.cohort.drop_dead_gradients({"mix_0": dead, "mix_1": living})
    assert all(torch.equal(p.grad, w) for p, w in zip(module, was, strict=True))
    made.cohort.drop_dead_gradients({"mix_0": dead})  # of the other one nothing is told
    assert all(torch.equal(p.grad, w) for p, w in zip(module, was, strict=True))
    made.cohort.drop_dead_gradients({"mix_0": dead, "mix_1": dead})
    assert not any(parameter.grad.any() for parameter in module)


def test_in_turn_the_dead_do_not_move() -> None:
    """DML's algorithm 1: who is not alive has no gradient, and there is none at all of others."""
    text = load_method("dml").text.replace("update: simultaneous", "update: alternating")
    made = made_of_toys(text, 2)
    cohort = made.cohort
    with torch.no_grad():
        cohort.nodes["student_1"].classifier.bias[0] = torch.inf
    seen = cohort.look(made.images, learning=True)
    own_terms = cohort.terms(seen, made.labels, learner="student_1")
    total(own_terms).backward()
    cohort.drop_dead_gradients({"student_1": seen["student_1"].alive})
    groups = cohort.parameters_by_node()
    assert not any(p.grad.any() for p in groups["student_1"])
    assert all(p.grad is None for p in groups["student_0"])


def test_a_bad_batch_does_not_end_a_network() -> None:
    """After it, with its gradient dropped, it learns again."""
    made = made_of_toys("kd_ml", 2)
    parameters = [p for group in made.cohort.parameters_by_node().values() for p in group]
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    for _ in range(2):
        alive = broken_by(made, "student_1")
        made.cohort.drop_dead_gradients(alive)
        optimizer.step()
    outputs = made.cohort(made.images, made.labels)
    assert all(outputs.alive.values())
    total(outputs.terms).backward()
    assert all(p.grad.isfinite().all() for p in parameters)
