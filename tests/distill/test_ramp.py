"""Ramps at their start, middle and end, and in a training that is shorter than the source's."""

from __future__ import annotations

import math

import pytest
import torch

from medkd.distill.ramp import Moment, parse_ramp
from tests.distill.hand_made import make, total, toy

EPOCHS, STEPS_PER_EPOCH = 300, 10


def epoch(number: int, epochs: int = EPOCHS) -> Moment:
    """The start of an epoch."""
    return Moment(number, number * STEPS_PER_EPOCH, epochs, STEPS_PER_EPOCH)


def step(number: int, epochs: int = EPOCHS) -> Moment:
    return Moment(number // STEPS_PER_EPOCH, number, epochs, STEPS_PER_EPOCH)


# at 0, 1/4, 1/2, 3/4 and 1 of the length
SHAPES = {
    "linear": [0, 0.25, 0.5, 0.75, 1],
    "cosine": [0, (1 - math.sqrt(0.5)) / 2, 0.5, (1 + math.sqrt(0.5)) / 2, 1],
    "exponential": [math.exp(-5), math.exp(-45 / 16), math.exp(-5 / 4), math.exp(-5 / 16), 1],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_in_epochs(shape: str) -> None:
    ramp = parse_ramp(shape, "80 epochs")
    values = [ramp(epoch(e)) for e in (0, 20, 40, 60, 80)]
    assert values == pytest.approx(SHAPES[shape])
    assert ramp(epoch(299)) == 1
    assert ramp(epoch(79)) < 1


@pytest.mark.parametrize("shape", SHAPES)
def test_in_steps(shape: str) -> None:
    ramp = parse_ramp(shape, "80 steps")
    assert [ramp(step(s)) for s in (0, 20, 40, 60, 80)] == pytest.approx(SHAPES[shape])
    assert ramp(step(2999)) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_within_an_epoch_it_stands_still(shape: str) -> None:
    ramp = parse_ramp(shape, "80 epochs")
    assert ramp(Moment(40, 409, EPOCHS, STEPS_PER_EPOCH)) == ramp(epoch(40))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_share_of_a_shorter_training(shape: str) -> None:
    """80 of 300 epochs are 8 of 30; in steps likewise."""
    ramp = parse_ramp(shape, "80 of 300 epochs")
    assert [ramp(epoch(e, 30)) for e in (0, 2, 4, 6, 8)] == pytest.approx(SHAPES[shape])
    assert ramp(epoch(7, 30)) < 1
    # As written, in the training that the source had.
    assert ramp(epoch(40)) == pytest.approx(SHAPES[shape][2])
    # 300 steps of 30 epochs of 10: 80 of 3000 steps are 8.
    ramp = parse_ramp(shape, "80 of 3000 steps")
    assert [ramp(step(s, 30)) for s in (0, 2, 4, 6, 8)] == pytest.approx(SHAPES[shape])


def test_pcl_as_published() -> None:
    """exp(-5 (1 - e/80)^2), not divided by lambda = 1, which would keep it at nothing."""
    ramp = parse_ramp("exponential", "80 of 300 epochs")
    for e in (1, 10, 33, 79):
        assert ramp(epoch(e)) == pytest.approx(math.exp(-5 * (1 - e / 80) ** 2), rel=1e-12)


def test_a_ramp_of_less_than_an_epoch_ends_after_the_first() -> None:
    ramp = parse_ramp("linear", "80 of 300 epochs")
    assert [ramp(epoch(e, 3)) for e in (0, 1, 2)] == [0, 1, 1]


@pytest.mark.parametrize("text", ["1 epoch", "1 step", " 2.5 epochs ", "0.5 of 1 epoch"])
def test_good_texts(text: str) -> None:
    assert parse_ramp("linear", text).length > 0


@pytest.mark.parametrize(
    "text",
    ["80", "epochs", "80 hours", "-3 epochs", "80 of epochs", "80 epochs of 300", "", "1e3 steps"],
)
def test_bad_texts(text: str) -> None:
    with pytest.raises(ValueError, match="is no length; write '80 epochs'"):
        parse_ramp("linear", text)


@pytest.mark.parametrize("text", ["0 epochs", "0 steps", "300 of 80 epochs", "80 of 0 epochs"])
def test_bad_lengths(text: str) -> None:
    with pytest.raises(ValueError, match="must be above zero, and no longer than the whole"):
        parse_ramp("linear", text)


METHOD = """\
nodes:
  teacher: {network: teacher}
  student: {network: students}
links:
  - {from: teacher, to: student, loss: kl, weight: 0.5, ramp: {RAMP}}
  - {from: student, to: student, loss: kl}
deploy: {ensemble: student}
"""


@pytest.mark.parametrize(
    ("ramp", "moment", "factor"),
    [
        ("linear: 80 epochs", epoch(0), 0),
        ("linear: 80 epochs", epoch(20), 0.25),
        ("cosine: 80 steps", step(40), 0.5),
        ("exponential: 80 of 300 epochs", epoch(4, 30), math.exp(-5 / 4)),
        ("exponential: 80 epochs", epoch(80), 1),
    ],
)
def test_a_link_is_weighed_by_its_ramp(ramp: str, moment: Moment, factor: float) -> None:
    """And the others, and losses by labels, are not."""
    plain = make(METHOD.replace(", ramp: {RAMP}", ""), 2, make_student=toy, make_teacher=toy)
    made = make(METHOD.replace("RAMP", ramp), 2, make_student=toy, make_teacher=toy)
    made.cohort.set_moment(moment)
    terms = made.cohort(made.images, made.labels).terms
    for name, value in plain.cohort(plain.images, plain.labels).terms.items():
        expected = factor * value if name.endswith("kl_from_teacher") else value
        assert terms[name].item() == pytest.approx(expected.item(), rel=1e-12), name


def test_a_weight_of_zero_teaches_nothing() -> None:
    made = make(METHOD.replace("RAMP", "linear: 80 epochs"), 2, make_student=toy, make_teacher=toy)
    made.cohort.set_moment(epoch(0))
    terms = made.cohort(made.images, made.labels).terms
    parameters = list(made.cohort.nodes["student_0"].parameters())
    for gradient in torch.autograd.grad(terms["student_0/kl_from_teacher"], parameters):
        assert (gradient == 0).all()


def test_a_moment_can_come_again() -> None:
    """As when a run is resumed: nothing is kept from the moment before."""
    made = make(METHOD.replace("RAMP", "linear: 80 epochs"), 2, make_student=toy, make_teacher=toy)
    values = []
    for number in (20, 79, 20):
        made.cohort.set_moment(epoch(number))
        values.append(total(made.cohort(made.images, made.labels).terms).item())
    assert values[0] == values[2] != values[1]
