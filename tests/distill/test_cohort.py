"""The cohort's losses and gradients against naive float64 transcriptions of the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from medkd.distill.cohort import Cohort
from medkd.distill.graph import expand, load_method, parse_method
from medkd.errors import MethodError
from medkd.tasks.classification import supervised_loss

BATCH, FEATURES, CLASSES = 6, 12, 3


def small_network() -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES))
    return network.double()


def make(method: str, students: int) -> Cohort:
    torch.manual_seed(0)
    graph = expand(load_method(method), students)
    networks = {node.name: small_network() for node in graph.nodes}
    return Cohort(graph, networks, supervised_loss)


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    images = torch.randn(BATCH, 3, 2, 2, dtype=torch.float64)
    return images, torch.tensor([0, 1, 2, 0, 1, 1])


def softmax(row: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp(z / temperature) for z in row]
    return [e / sum(exponentials) for e in exponentials]


def naive_cross_entropy(logits: Tensor, labels: Tensor) -> float:
    rows = logits.tolist()
    losses = [
        -math.log(softmax(row, 1)[label]) for row, label in zip(rows, labels.tolist(), strict=True)
    ]
    return sum(losses) / len(losses)


def naive_kl(target: Tensor, learner: Tensor, temperature: float) -> float:
    """T^2 sum_c t log(t / s), averaged over the batch, in plain Python."""
    total = 0.0
    for t_row, s_row in zip(target.tolist(), learner.tolist(), strict=True):
        t, s = softmax(t_row, temperature), softmax(s_row, temperature)
        total += sum(a * math.log(a / b) for a, b in zip(t, s, strict=True))
    return temperature**2 * total / len(target)


def naive_gradient(target: Tensor, learner: Tensor, temperature: float) -> Tensor:
    """d/dz_s of T^2 KL = T (s - t) / N, worked out by hand."""
    t = torch.softmax(target / temperature, 1)
    s = torch.softmax(learner / temperature, 1)
    return temperature * (s - t) / len(target)


@pytest.mark.parametrize("students", [2, 3])
def test_kd_ml_losses_equal_the_formula(students: int) -> None:
    cohort = make("kd_ml", students)
    images, labels = batch()
    logits = cohort(images)
    terms = cohort.losses(logits, labels)

    expected = {"teacher/supervised": naive_cross_entropy(logits["teacher"], labels)}
    names = [f"student_{k}" for k in range(students)]
    for name in names:
        expected[f"{name}/supervised"] = naive_cross_entropy(logits[name], labels)
        expected[f"{name}/kl_from_teacher"] = naive_kl(logits["teacher"], logits[name], 4)
        others = [naive_kl(logits[o], logits[name], 1) for o in names if o != name]
        expected[f"{name}/kl_from_student"] = sum(others) / (students - 1)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value, abs=1e-10), name


def test_kd_ml_gradients_equal_the_formula() -> None:
    cohort = make("kd_ml", 3)
    images, labels = batch()
    logits = {name: value.detach().requires_grad_() for name, value in cohort(images).items()}
    torch.stack(list(cohort.losses(logits, labels).values())).sum().backward()

    one_hot = torch.nn.functional.one_hot(labels, CLASSES).double()
    supervised = {n: (torch.softmax(z, 1) - one_hot) / BATCH for n, z in logits.items()}
    torch.testing.assert_close(logits["teacher"].grad, supervised["teacher"], atol=1e-10, rtol=0)
    for k in range(3):
        name = f"student_{k}"
        others = [logits[f"student_{j}"] for j in range(3) if j != k]
        expected = (
            supervised[name]
            + naive_gradient(logits["teacher"], logits[name], 4)
            + sum(naive_gradient(o, logits[name], 1) for o in others) / 2
        )
        torch.testing.assert_close(logits[name].grad, expected.detach(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("method", ["kd_ml", "kd", "dml", "independent"])
def test_one_backward_equals_a_backward_per_network(method: str) -> None:
    cohort = make(method, 2)
    images, labels = batch()
    torch.stack(list(cohort.losses(cohort(images), labels).values())).sum().backward()
    joint = {name: p.grad.clone() for name, p in cohort.named_parameters()}

    for node in cohort.graph.nodes:
        cohort.zero_grad()
        terms = cohort.losses(cohort(images), labels)
        sum(v for k, v in terms.items() if k.startswith(f"{node.name}/")).backward()
        for name, parameter in cohort.nodes[node.name].named_parameters():
            torch.testing.assert_close(
                parameter.grad, joint[f"nodes.{node.name}.{name}"], atol=1e-12, rtol=0
            )


# Which link gives a gradient to which node, for two students.
RECEIPTS = {
    "kd_ml": {
        "student_0/kl_from_teacher": {"student_0"},
        "student_1/kl_from_teacher": {"student_1"},
        "student_0/kl_from_student": {"student_0"},
        "student_1/kl_from_student": {"student_1"},
    },
    "kd": {
        "student_0/kl_from_teacher": {"student_0"},
        "student_1/kl_from_teacher": {"student_1"},
    },
    "dml": {
        "student_0/kl_from_student": {"student_0"},
        "student_1/kl_from_student": {"student_1"},
    },
    "independent": {},
}


@pytest.mark.parametrize("method", sorted(RECEIPTS))
def test_who_receives_a_gradient(method: str) -> None:
    cohort = make(method, 2)
    images, labels = batch()
    expected = dict(RECEIPTS[method])
    expected |= {f"{node.name}/supervised": {node.name} for node in cohort.graph.nodes}
    terms = cohort.losses(cohort(images), labels)
    assert terms.keys() == expected.keys()
    for term in terms:
        cohort.zero_grad(set_to_none=True)
        cohort.losses(cohort(images), labels)[term].backward()
        receivers = {
            name
            for name, network in cohort.nodes.items()
            if any(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())
        }
        assert receivers == expected[term], term


@pytest.mark.parametrize("students", [2, 5])
def test_one_forward_per_network(students: int) -> None:
    cohort = make("kd_ml", students)
    calls: dict[str, int] = {}
    for name, network in cohort.nodes.items():
        network.register_forward_hook(
            lambda *_, name=name: calls.__setitem__(name, calls.get(name, 0) + 1)
        )
    images, labels = batch()
    cohort.losses(cohort(images), labels)
    assert calls == {"teacher": 1, **{f"student_{k}": 1 for k in range(students)}}


def test_a_perfect_copy_has_no_kl() -> None:
    cohort = make("kd_ml", 2)
    images, labels = batch()
    logits = cohort(images)
    same = dict.fromkeys(logits, logits["teacher"])
    terms = cohort.losses(same, labels)
    assert {k: v.item() for k, v in terms.items() if "kl" in k} == pytest.approx(
        {k: 0.0 for k in terms if "kl" in k}, abs=1e-12
    )


def test_losses_are_float32_under_autocast() -> None:
    cohort = make("kd_ml", 2).float()
    images, labels = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = cohort(images.float())
        terms = cohort.losses(logits, labels)
    assert {v.dtype for v in logits.values()} == {torch.float32}
    assert {v.dtype for v in terms.values()} == {torch.float32}


def test_weight_scales_a_term() -> None:
    text = load_method("kd_ml").text.replace("temperature: 4}", "temperature: 4, weight: 0.25}")
    images, labels = batch()
    plain = make("kd_ml", 2)
    graph = expand(parse_method(text, "lighter"), 2)
    lighter = Cohort(graph, dict(plain.nodes), supervised_loss)
    name = "student_0/kl_from_teacher"
    ratio = (
        lighter.losses(lighter(images), labels)[name] / plain.losses(plain(images), labels)[name]
    )
    assert ratio.item() == pytest.approx(0.25)


def test_networks_must_match_the_nodes() -> None:
    graph = expand(load_method("kd_ml"), 2)
    with pytest.raises(MethodError, match=r"the networks are \['teacher'\]"):
        Cohort(graph, {"teacher": small_network()}, supervised_loss)
