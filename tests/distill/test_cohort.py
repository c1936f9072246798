"""How a cohort learns: networks updated in turn, numbers, any number of students of any kind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from medkd.distill.cohort import Cohort
from medkd.distill.graph import expand
from medkd.distill.method import load_method
from medkd.errors import MethodError
from medkd.tasks.classification import Classification
from tests.distill.hand_made import (
    METHODS,
    MIXED,
    NUMBERS,
    Made,
    batch,
    make,
    mixed,
    networks_for,
    steps,
    student,
    total,
    toy,
    whole,
)
from tests.distill.naive import cross_entropy, kl


def made_of_toys(method: str, students: int) -> Made:
    return make(method, students, make_student=toy, make_teacher=toy)


# In turn: DML's algorithm 1.


def test_alternating_is_algorithm_1() -> None:
    """Predict with all; then for each network: its loss, its update, its prediction anew."""
    text = load_method("dml").text.replace("update: simultaneous", "update: alternating")
    made = make(text, 3)
    cohort, images, labels = made.cohort, made.images, made.labels
    assert cohort.graph.update == "alternating"
    networks = [made.copies[f"student_{k}"] for k in range(3)]
    rate = 0.5

    for _ in range(2):
        seen = cohort.look(images, learning=True)
        for k in range(3):
            terms = cohort.terms(seen, labels, learner=f"student_{k}")
            assert {name.split("/")[0] for name in terms} == {f"student_{k}"}
            descend(total(terms), list(cohort.nodes[f"student_{k}"].parameters()), rate)
            seen = cohort.look_again(seen, f"student_{k}", images)

        logits = [network(images) for network in networks]
        for k, network in enumerate(networks):
            others = [logits[j].detach() for j in range(3) if j != k]
            loss = cross_entropy(logits[k], labels)
            loss = loss + sum(kl(other, logits[k], 1) for other in others) / 2
            descend(loss, list(network.parameters()), rate)
            logits[k] = network(images)

    for k, network in enumerate(networks):
        torch.testing.assert_close(
            cohort.nodes[f"student_{k}"].state_dict(), network.state_dict(), atol=1e-10, rtol=0
        )


def test_in_turn_is_not_all_at_once() -> None:
    """The second network learns from what the first one thinks now."""
    text = load_method("dml").text.replace("update: simultaneous", "update: alternating")
    made = make(text, 2)
    cohort = made.cohort
    seen = cohort.look(made.images, learning=True)
    before = cohort.terms(seen, made.labels, learner="student_1")
    own = cohort.terms(seen, made.labels, learner="student_0")
    descend(total(own), list(cohort.nodes["student_0"].parameters()), 0.5)
    seen = cohort.look_again(seen, "student_0", made.images)
    after = cohort.terms(seen, made.labels, learner="student_1")
    assert after["student_1/supervised"] == before["student_1/supervised"]
    name = "student_1/kl_from_student"
    assert abs(after[name] - before[name]).item() > 1e-3


def descend(loss: Tensor, parameters: list[nn.Parameter], rate: float) -> None:
    gradients = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(rate * gradient)


# Numbers.


@pytest.mark.parametrize("method", METHODS)
def test_losses_are_float32_under_autocast(method: str) -> None:
    made = made_of_toys(method, 2)
    made.cohort.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = made.cohort(made.images.float(), made.labels)
    assert {logits.dtype for logits in outputs.logits.values()} == {torch.float32}
    assert {term.dtype for term in outputs.terms.values()} == {torch.float32}
    total(outputs.terms).backward()


@pytest.mark.parametrize("method", METHODS)
def test_every_name_is_said_once(method: str) -> None:
    made = made_of_toys(method, 3)
    logits, terms, alive = made.cohort(made.images, made.labels)
    names = [node.name for node in made.cohort.graph.nodes]
    assert sorted(logits) == sorted(alive) == sorted(names)
    assert {name.split("/")[0] for name in terms} <= set(names)
    assert all(term.shape == () for term in terms.values())


def test_a_perfect_copy_has_no_kl() -> None:
    torch.manual_seed(0)
    one = student()
    networks = {name: copy.deepcopy(one) for name in ("teacher", "student_0", "student_1")}
    cohort = Cohort(expand(load_method("kd_ml"), 2), networks, Classification()).double()
    terms = cohort(*batch()).terms
    assert sorted(terms) == [
        "student_0/kl_from_student",
        "student_0/kl_from_teacher",
        "student_0/supervised",
        "student_1/kl_from_student",
        "student_1/kl_from_teacher",
        "student_1/supervised",
        "teacher/supervised",
    ]
    for name, term in terms.items():
        if "kl" in name:
            assert term.item() == pytest.approx(0, abs=1e-12)


def test_a_weight_scales_a_term() -> None:
    text = load_method("kd_ml").text.replace("temperature: 4}", "temperature: 4, weight: 0.25}")
    plain, lighter = made_of_toys("kd_ml", 2), made_of_toys(text, 2)
    name = "student_0/kl_from_teacher"
    terms = [made.cohort(made.images, made.labels).terms for made in (plain, lighter)]
    assert terms[1][name].item() == pytest.approx(0.25 * terms[0][name].item())
    name = "student_0/kl_from_student"
    assert terms[1][name].item() == pytest.approx(terms[0][name].item())


def test_a_supervised_weight_scales_its_term() -> None:
    text = load_method("kd").text.replace(
        "{network: students}", "{network: students, supervised: 0}"
    )
    half = text.replace("{network: teacher}", "{network: teacher, supervised: 0.5}")
    plain, changed = made_of_toys("kd", 2), made_of_toys(half, 2)
    terms = [made.cohort(made.images, made.labels).terms for made in (plain, changed)]
    name = "teacher/supervised"
    assert terms[1][name].item() == pytest.approx(0.5 * terms[0][name].item())
    assert "student_0/supervised" not in terms[1]


# K.


@pytest.mark.parametrize(("method", "students"), NUMBERS)
def test_three_steps_with_students_of_a_kind(method: str, students: int) -> None:
    made = make(method, students)
    made.cohort.float()
    losses = steps(made.cohort, made.images.float(), made.labels, 3, rate=0.001)
    assert torch.tensor(losses).isfinite().all()
    assert losses[2] < losses[0]


@pytest.mark.parametrize(
    ("method", "students"),
    [(m, k) if k == 3 else pytest.param(m, k, marks=pytest.mark.slow) for m, k in MIXED],
)
def test_three_steps_with_mixed_students(method: str, students: int) -> None:
    torch.manual_seed(0)
    graph = expand(load_method(method), students)
    networks = networks_for(method, students, mixed=mixed(students))
    cohort = Cohort(graph, networks, Classification()).train()
    images, labels = batch(graph.views)
    before = copy.deepcopy(cohort.parameters_by_node())
    losses = steps(cohort, images.float(), labels, 3, rate=0.001)
    assert torch.tensor(losses).isfinite().all()
    for name, parameters in cohort.parameters_by_node().items():
        assert all(p.isfinite().all() for p in parameters), name
        moved = [not torch.equal(a, b) for a, b in zip(parameters, before[name], strict=True)]
        assert sum(moved) > 0.9 * len(moved), name


@pytest.mark.parametrize("method", ["independent", "kd", "kd_frozen", "kd_ml", "dml", "kdcl"])
def test_networks_without_stages_can_compare_logits(method: str) -> None:
    made = make(method, 2, make_student=whole, make_teacher=whole)
    losses = steps(made.cohort, made.images, made.labels, 3, rate=0.1)
    assert losses[2] < losses[0]


def test_networks_must_be_those_of_the_method() -> None:
    graph = expand(load_method("sokd"), 1)
    with pytest.raises(MethodError) as error:
        Cohort(graph, {"teacher": toy()}, Classification())
    assert str(error.value) == (
        "sokd: the method needs the networks ['bridge', 'student_0', 'teacher'], and has "
        "['teacher']. Give each of its networks and bridges one."
    )
