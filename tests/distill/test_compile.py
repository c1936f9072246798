"""A compiled cohort gives the same terms and gradients, in one graph without a break.

A break would come from a look at a value on the host; so a whole graph says, too, that a step does
not wait for its device.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medkd.distill.cohort import Cohort, Outputs
from medkd.distill.ramp import Moment
from medkd.networks.staged import StagedNetwork
from tests.distill.hand_made import (
    METHODS,
    MIXED,
    NUMBERS,
    Made,
    make,
    mixed,
    networks_for,
    total,
    toy,
)
from tests.distill.test_new_method import IDEAS


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


def gradients(cohort: Cohort, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    cohort.zero_grad(set_to_none=True)
    total(terms).backward()
    return {n: p.grad.clone() for n, p in cohort.named_parameters() if p.grad is not None}


def compare(made: Made, run: Callable[[Tensor, Tensor], Outputs], tolerance: float) -> None:
    """Two steps at two moments of training: nothing is compiled in that changes."""
    cohort, images, labels = made.cohort, made.images, made.labels
    for epoch in (1, 2):
        cohort.set_moment(Moment(epoch=epoch, step=epoch, epochs=30, steps_per_epoch=1))
        torch.manual_seed(epoch)  # EfficientNets drop at random
        plain = cohort(images, labels)
        expected = gradients(cohort, plain.terms)
        torch.manual_seed(epoch)
        compiled = run(images, labels)
        found = gradients(cohort, compiled.terms)
        assert compiled.terms.keys() == plain.terms.keys()
        close = {"atol": tolerance, "rtol": tolerance}
        torch.testing.assert_close(compiled.logits, plain.logits, **close)
        torch.testing.assert_close(compiled.terms, plain.terms, **close)
        torch.testing.assert_close(found, expected, **close)
        torch.testing.assert_close(compiled.alive, plain.alive)


def short() -> StagedNetwork:
    """Two stages: what takes long here is tracing."""
    return toy(stages=2)


def made_short(method: str, students: int) -> Made:
    return make(method, students, make_student=short, make_teacher=short)


def whole_graph(made: Made) -> Callable[[Tensor, Tensor], Outputs]:
    return torch.compile(made.cohort, backend="aot_eager", fullgraph=True)


# Of each kind of node and link one that is quick; the others take as long and add no kind.
QUICK = ("kd_ml", "dml_e", "sokd_features", "pcl", "one", "okddip", "kdcl")


@pytest.mark.parametrize(
    "method", [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]
)
def test_a_compiled_cohort_computes_the_same(method: str) -> None:
    made = made_short(method, 2)
    compare(made, whole_graph(made), 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "students"), [(m, k) for m, k in NUMBERS if k != 2])
def test_for_other_numbers_of_students(method: str, students: int) -> None:
    made = made_short(method, students)
    compare(made, whole_graph(made), 1e-10)


def test_losses_on_features_and_projections() -> None:
    made = made_short(IDEAS["two losses at once"].replace("stage 2", "stage 0"), 1)
    compare(made, whole_graph(made), 1e-10)


def test_the_dead_are_cut_out_of_a_compiled_cohort() -> None:
    made = made_short("pcl", 2)
    compiled = whole_graph(made)
    assert all(compiled(made.images, made.labels).alive.values())
    with torch.no_grad():
        made.cohort.nodes["peer_1"].classifier.weight.fill_(torch.nan)
        made.cohort.nodes["peer_1"].stages[-1][0].weight.fill_(torch.nan)
    _, terms, alive = compiled(made.images, made.labels)
    assert [name for name, flag in alive.items() if not flag] == ["peer_1"]
    for name, gradient in gradients(made.cohort, terms).items():
        assert gradient.isfinite().all() or name.startswith("nodes.peer_1."), name


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_real_networks(method: str) -> None:
    made = make(method, 2)
    compare(made, whole_graph(made), 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "students"), MIXED)
def test_mixed_networks(method: str, students: int) -> None:
    torch.manual_seed(0)
    networks = networks_for(method, students, mixed=mixed(students))
    made = make(method, students, networks=networks)
    # Logits of a DenseNet that was stirred are in the tens.
    compare(made, whole_graph(made), 1e-8)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("method", METHODS)
def test_inductor(method: str) -> None:
    made = made_short(method, 2)
    compare(made, torch.compile(made.cohort, fullgraph=True), 1e-8)
