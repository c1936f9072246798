"""Every method's losses and gradients equal a naive float64 transcription, to 1e-10."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from medkd.distill.method import method_names
from medkd.distill.ramp import Moment
from medkd.tasks.classification import Classification
from tests.distill.hand_made import METHODS, SHARED_TRUNK, Made, make, total
from tests.distill.transcribed import TRANSCRIPTIONS, World, tie

# Half-way through a ramp of 80 of 300 epochs.
MOMENT = Moment(epoch=40, step=400, epochs=300, steps_per_epoch=10)
FACTOR = math.exp(-5 / 4)


def world_of(made: Made, students: int, factor: float = FACTOR) -> World:
    """The same networks and weights as a cohort's, as the transcriptions take them."""
    networks = made.copies
    sharing = [node.name for node in made.cohort.graph.nodes if node.trunk]
    if sharing:
        tie(networks, sharing)
    modules = list(made.cohort.ensembles.values())
    weights = dict(modules[0].named_parameters()) if modules else {}
    return World(
        networks=networks,
        means={n: copy.deepcopy(m).eval() for n, m in made.cohort.averages.networks.items()},
        ensemble={n: w.detach().clone().requires_grad_() for n, w in weights.items()},
        views=list(made.images) if made.images.ndim == 5 else [made.images],
        labels=made.labels,
        students=students,
        w=factor,
    )


def paired(made: Made, world: World) -> dict[str, tuple[Tensor, Tensor]]:
    """Every parameter of the cohort beside that of the transcription."""
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name, node in made.cohort.nodes.items():
        theirs: nn.Module = world.networks[name]
        if name == "bridge":
            network = world.networks[name]
            theirs = nn.ModuleList([network.stages[-1], network.pool, network.classifier])
        for (key, ours), own in zip(node.named_parameters(), theirs.parameters(), strict=True):
            pairs[f"{name}.{key}"] = (ours, own)
    for name, module in made.cohort.ensembles.items():
        for key, ours in module.named_parameters():
            pairs[f"{name}.{key}"] = (ours, world.ensemble[key])
    for key, (ours, theirs) in pairs.items():
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0, msg=key)
    return {key: pair for key, pair in pairs.items() if pair[0].requires_grad}


def gradients(term: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def test_every_method_is_transcribed() -> None:
    assert set(METHODS) == set(TRANSCRIPTIONS) == set(method_names())


@pytest.mark.parametrize("students", [2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_terms_and_gradients_equal_the_formula(method: str, students: int) -> None:
    made = make(method, students)
    made.cohort.set_moment(MOMENT)
    world = world_of(made, students)
    expected, expected_logits = TRANSCRIPTIONS[method](world)
    logits, terms, alive = made.cohort(made.images, made.labels)

    assert logits.keys() == expected_logits.keys() == alive.keys()
    torch.testing.assert_close(logits, expected_logits, atol=1e-10, rtol=0)
    assert all(bool(flag) for flag in alive.values())
    assert terms.keys() == expected.keys()
    pairs = paired(made, world)
    ours, theirs = ([pair[side] for pair in pairs.values()] for side in (0, 1))
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name], atol=1e-10, rtol=0, msg=name)
        assert term.item() > 1e-6, f"{name} says nothing here"
        for key, found, wanted in zip(
            pairs, gradients(term, ours), gradients(expected[name], theirs), strict=True
        ):
            torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0, msg=f"{name} at {key}")


@pytest.mark.parametrize("method", METHODS)
def test_one_backward_over_all_terms(method: str) -> None:
    """The gradient that a step leaves in each parameter is that of the summed formula."""
    made = make(method, 2)
    world = world_of(made, 2, factor=1.0)  # without a moment a ramp has ended
    pairs = paired(made, world)
    total(made.cohort(made.images, made.labels).terms).backward()
    total(TRANSCRIPTIONS[method](world)[0]).backward()
    for key, (ours, theirs) in pairs.items():
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-10, rtol=0, msg=key)
        assert ours.grad.abs().max() > 0, key


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(SHARED_TRUNK)))
def test_one_backward_equals_a_backward_for_each_node(method: str) -> None:
    """Where every target is detached and nothing is shared, a node learns by its own terms."""
    made = make(method, 3)
    terms = made.cohort(made.images, made.labels).terms
    for owner, parameters in made.cohort.parameters_by_node().items():
        own = total({name: term for name, term in terms.items() if name.startswith(f"{owner}/")})
        alone = torch.autograd.grad(own, parameters, retain_graph=True)
        together = torch.autograd.grad(total(terms), parameters, retain_graph=True)
        torch.testing.assert_close(alone, together, atol=1e-12, rtol=0)


def test_weights_of_classes_and_smoothing_reach_every_supervised_term() -> None:
    made = make("pcl", 2)
    weights, smoothing = (1.0, 2.0, 0.5), 0.1
    made.cohort.task = Classification(weights, smoothing)
    logits, terms, _ = made.cohort(made.images, made.labels)
    for name in ("all_peers", "peer_0", "peer_1"):
        above = below = torch.zeros((), dtype=torch.float64)
        for row, label in zip(logits[name], made.labels.tolist(), strict=True):
            logs = [z - torch.logsumexp(row, 0) for z in row]
            for c, log in enumerate(logs):
                share = smoothing / 3 + (1 - smoothing) * (c == label)
                above = above - weights[c] * share * log
            below = below + weights[label]
        torch.testing.assert_close(terms[f"{name}/supervised"], above / below, atol=1e-10, rtol=0)
