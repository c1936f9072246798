"""Means of weights: their decay, their buffers, and what they keep out of."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from medkd.distill.averages import WeightAverages, is_finite
from medkd.distill.graph import expand
from medkd.distill.method import load_method
from tests.distill.hand_made import Made, batch, make, steps, stir, total, toy

WARM = """\
nodes:
  student: {network: students}
  mean: {mean_of: student, decay: 0.999}
links:
  - {from: mean, to: student, pairs: others, loss: kl}
deploy: {ensemble: student}
"""
COLD = WARM.replace("decay: 0.999", "decay: 0.9, warm_start: false")


def made(text: str) -> Made:
    return make(text, 2, make_student=toy, make_teacher=toy)


@pytest.mark.parametrize(
    ("step", "decay"),
    [
        (0, 0.0),  # 1 - 1/1: the mean becomes its source
        (1, 0.5),  # 1 - 1/2
        (8, 8 / 9),
        (998, 1 - 1 / 999),
        (999, 0.999),  # 1 - 1/1000: here both rules agree
        (1000, 0.999),  # 1 - 1/1001 would be more
        (100_000, 0.999),
    ],
)
def test_decay_of_a_warm_start(step: int, decay: float) -> None:
    cohort = made(WARM).cohort
    before = copy.deepcopy(cohort.averages["mean_1"])
    cohort.update_averages(step)
    pairs = zip(
        cohort.averages["mean_1"].parameters(),
        before.parameters(),
        cohort.nodes["student_1"].parameters(),
        strict=True,
    )
    for now, was, source in pairs:
        torch.testing.assert_close(now, decay * was + (1 - decay) * source, atol=1e-12, rtol=0)


@pytest.mark.parametrize("step", [0, 1, 1000])
def test_decay_without_a_warm_start(step: int) -> None:
    cohort = made(COLD).cohort
    before = copy.deepcopy(cohort.averages["mean_0"])
    cohort.update_averages(step)
    pairs = zip(
        cohort.averages["mean_0"].parameters(),
        before.parameters(),
        cohort.nodes["student_0"].parameters(),
        strict=True,
    )
    for now, was, source in pairs:
        torch.testing.assert_close(now, 0.9 * was + 0.1 * source, atol=1e-12, rtol=0)


def test_a_warm_start_is_the_plain_mean_of_what_was() -> None:
    """Below the cap the decay 1 - 1/(g + 1) gives the mean of the weights after steps 0 to g."""
    cohort = made(WARM).cohort
    weight = cohort.nodes["student_0"].classifier.weight
    seen = []
    for step in range(6):
        with torch.no_grad():
            weight.copy_(torch.randn_like(weight))
        seen.append(weight.detach().clone())
        cohort.update_averages(step)
    mean = cohort.averages["mean_0"].classifier.weight
    torch.testing.assert_close(mean, torch.stack(seen).mean(0), atol=1e-12, rtol=0)


def test_before_the_first_update_a_mean_is_its_source() -> None:
    torch.manual_seed(0)
    nodes = nn.ModuleDict({f"peer_{k}": toy() for k in range(2)})
    averages = WeightAverages(expand(load_method("pcl"), 2), nodes)
    for k in range(2):
        expected = nodes[f"peer_{k}"].state_dict()
        found = averages[f"mean_{k}"].state_dict()
        torch.testing.assert_close(found, expected, atol=0, rtol=0)
        assert not {p.data_ptr() for p in averages[f"mean_{k}"].parameters()} & {
            p.data_ptr() for p in nodes[f"peer_{k}"].parameters()
        }


def test_buffers_are_copied_integers_too() -> None:
    """Counts of batches as they are, not averaged; statistics as the source has them."""
    one = made(WARM)
    before = int(one.cohort.nodes["student_0"].stem[1].num_batches_tracked)
    for _ in range(3):
        one.cohort(one.images, one.labels)
    one.cohort.update_averages(1000)
    for k in range(2):
        mean, source = one.cohort.averages[f"mean_{k}"], one.cohort.nodes[f"student_{k}"]
        counts = [b for n, b in mean.named_buffers() if n.endswith("num_batches_tracked")]
        assert [int(b) for b in counts] == [before + 3] * 4
        assert all(b.dtype == torch.int64 for b in counts)
        torch.testing.assert_close(
            dict(mean.named_buffers()), dict(source.named_buffers()), atol=0, rtol=0
        )


def test_means_of_peers_share_what_their_peers_share() -> None:
    cohort = make("pcl", 3, make_student=toy, make_teacher=toy).cohort
    means = [cohort.averages[f"mean_{k}"] for k in range(3)]
    peers = [cohort.nodes[f"peer_{k}"] for k in range(3)]
    for nodes in (means, peers):
        assert nodes[1].stem is nodes[0].stem is nodes[2].stem
        assert nodes[2].stages[0] is nodes[0].stages[0]
        assert nodes[2].stages[1] is nodes[0].stages[1]
        assert nodes[2].stages[2] is not nodes[0].stages[2]


def test_a_shared_trunk_is_averaged_once() -> None:
    """Thrice would be a decay of 1/8 in place of 1/2."""
    cohort = make("pcl", 3, make_student=toy, make_teacher=toy).cohort
    mean, source = cohort.averages["mean_0"].stem[0].weight, cohort.nodes["peer_0"].stem[0].weight
    expected = (mean.detach() + source.detach()) / 2
    cohort.update_averages(1)
    torch.testing.assert_close(mean.detach(), expected, atol=1e-14, rtol=0)


def test_means_of_different_decay_do_not_share() -> None:
    text = """\
nodes:
  peer: {network: students, share: all but last}
  slow: {mean_of: peer, decay: 0.9, warm_start: false}
  fast: {mean_of: peer, decay: 0.5, warm_start: false}
links:
  - {from: slow, to: peer, pairs: own, loss: kl}
  - {from: fast, to: peer, pairs: own, loss: kl}
deploy: {one: slow_1}
"""
    one = make(text, 2, make_student=toy, make_teacher=toy)
    expected = {}
    for name, decay in (("slow_1", 0.9), ("fast_1", 0.5)):
        was, source = one.cohort.averages[name], one.cohort.nodes["peer_1"]
        expected[name] = [
            decay * a.detach() + (1 - decay) * b.detach()
            for a, b in zip(was.parameters(), source.parameters(), strict=True)
        ]
    one.cohort.update_averages(0)
    for name, values in expected.items():
        found = [p.detach() for p in one.cohort.averages[name].parameters()]
        torch.testing.assert_close(found, values, atol=1e-14, rtol=0)
    logits = one.cohort(one.images).logits
    for name in expected:
        alone = copy.deepcopy(one.cohort.averages[name]).eval()
        torch.testing.assert_close(logits[name], alone(one.images), atol=1e-12, rtol=0)


def test_means_learn_nothing() -> None:
    one = make("pcl", 2, make_student=toy, make_teacher=toy)
    averages = list(one.cohort.averages.parameters())
    assert averages
    assert not any(p.requires_grad for p in averages)
    trained = {id(p) for group in one.cohort.parameters_by_node().values() for p in group}
    assert not trained & {id(p) for p in averages}
    outputs = one.cohort(one.images, one.labels)
    assert not outputs.logits["mean_0"].requires_grad
    total(outputs.terms).backward()
    assert all(p.grad is None for p in averages)


def test_means_follow_in_training() -> None:
    one = make("pcl", 2, make_student=toy, make_teacher=toy)
    steps(one.cohort, one.images, one.labels, 1, rate=0.1)  # step 0: each mean is its source
    for k in range(2):
        torch.testing.assert_close(
            one.cohort.averages[f"mean_{k}"].state_dict(),
            one.cohort.nodes[f"peer_{k}"].state_dict(),
            atol=0,
            rtol=0,
        )


def test_means_come_back_from_a_checkpoint() -> None:
    one, other = (make("pcl", 2, make_student=toy, make_teacher=toy, seed=s) for s in (0, 1))
    stir(one.cohort.averages)
    other.cohort.load_state_dict(one.cohort.state_dict())
    images, _ = batch(2, seed=5)
    for cohort in (one.cohort, other.cohort):
        cohort.eval()
    torch.testing.assert_close(
        other.cohort(images).logits, one.cohort(images).logits, atol=1e-12, rtol=0
    )


def broken(text_or_name: str, spoil: str, value: float) -> tuple[Made, dict[str, list[Tensor]]]:
    """A cohort in which one number of a source is bad, and what its means held before."""
    one = make(text_or_name, 2, make_student=toy, make_teacher=toy)
    with torch.no_grad():
        one.cohort.get_parameter(spoil).view(-1)[0] = value
    names = one.cohort.averages.networks
    return one, {n: [v.clone() for v in m.state_dict().values()] for n, m in names.items()}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("step", [0, 1, 1000])
def test_a_source_that_is_not_finite_leaves_its_mean_as_it_is(value: float, step: int) -> None:
    one, before = broken(WARM, "nodes.student_1.stages.0.0.weight", value)
    one.cohort.update_averages(step)
    now = {n: list(m.state_dict().values()) for n, m in one.cohort.averages.networks.items()}
    assert all(map(torch.equal, now["mean_1"], before["mean_1"]))
    # That of the other one goes on.
    decay = min(1 - 1 / (step + 1), 0.999)
    source = one.cohort.nodes["student_0"].classifier.weight
    was = before["mean_0"][-2]
    assert was.shape == source.shape
    found = one.cohort.averages["mean_0"].classifier.weight
    torch.testing.assert_close(found, decay * was + (1 - decay) * source, atol=1e-12, rtol=0)


DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_bad_number_among_many_is_found(value: float, device: str) -> None:
    """Wherever it stands: maxima of long rows of numbers were seen to lose a NaN."""
    layer = nn.Linear(1000, 1000).to(device)
    with torch.no_grad():
        layer.weight[0, 0] = 1e30
        assert is_finite(layer)
        for place in (0, 1, 7, 8, 123_457, 999_999):
            kept = layer.weight.view(-1)[place].clone()
            layer.weight.view(-1)[place] = value
            assert not is_finite(layer)
            layer.weight.view(-1)[place] = kept
        assert is_finite(layer)


def test_large_weights_are_finite() -> None:
    """Their squares would not be: 1e200 in float64."""
    one, _ = broken(COLD, "nodes.student_1.classifier.weight", 1e200)
    one.cohort.update_averages(0)
    assert one.cohort.averages["mean_1"].classifier.weight[0, 0].item() == pytest.approx(1e199)


def test_statistics_that_are_not_finite_are_kept_out_too() -> None:
    one, before = broken(WARM, "nodes.student_0.classifier.weight", 0.5)
    one.cohort.nodes["student_0"].stem[1].running_var[0] = torch.inf
    one.cohort.update_averages(1)
    now = list(one.cohort.averages["mean_0"].state_dict().values())
    assert all(map(torch.equal, now, before["mean_0"]))


def test_the_common_stages_of_means_go_on_while_one_source_is_finite() -> None:
    one, before = broken("pcl", "nodes.peer_1.classifier.weight", torch.nan)
    trunk = one.cohort.averages["mean_0"].stem[0].weight
    expected = (trunk.clone() + one.cohort.nodes["peer_0"].stem[0].weight) / 2
    one.cohort.update_averages(1)
    torch.testing.assert_close(trunk, expected.detach(), atol=1e-14, rtol=0)
    late = one.cohort.averages["mean_1"].classifier
    assert all(map(torch.equal, late.state_dict().values(), before["mean_1"][-2:]))
    one, before = broken("pcl", "nodes.peer_0.stem.0.weight", torch.nan)
    one.cohort.update_averages(1)
    for name, values in before.items():
        assert all(map(torch.equal, one.cohort.averages[name].state_dict().values(), values))
