"""Networks that do not fit a method are refused with its line; those that do are made to fit."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from medkd.distill.cohort import Cohort
from medkd.distill.graph import expand
from medkd.errors import MethodError
from medkd.networks.staged import Network, StagedNetwork
from medkd.tasks.classification import Classification
from tests.distill import naive
from tests.distill.hand_made import (
    SHARED_TRUNK,
    Made,
    batch,
    make,
    method_of,
    mixed,
    networks_for,
    steps,
    student,
    teacher,
    total,
    toy,
    whole,
)


def link(line: str) -> str:
    """A method of a teacher and students with one link, on line 5."""
    return f"""\
nodes:
  teacher: {{network: teacher}}
  student: {{network: students}}
links:
  - {{from: teacher, to: student, {line}}}
deploy: {{ensemble: student}}
"""


def nodes(line: str, of_peers: str = "") -> str:
    """A method of students alone, with one more node on line 3 and a link from it."""
    return f"""\
nodes:
  peer: {{network: students{of_peers}}}
  more: {line}
links:
  - {{from: more, to: peer, loss: kl}}
deploy: {{ensemble: peer}}
"""


def refused(method: str, networks: Mapping[str, Network], students: int = 2) -> str:
    graph = expand(method_of(method), students)
    with pytest.raises(MethodError) as error:
        Cohort(graph, networks, Classification())
    assert "\n" not in str(error.value)
    return str(error.value)


def of_toys(method: str, **others: Network) -> dict[str, Network]:
    """Toys for a method and two students, some of them replaced."""
    made = networks_for(method, 2, make_student=toy, make_teacher=toy)
    assert others.keys() <= made.keys()
    return {**made, **others}


BRIDGE = """\
nodes:
  teacher: {network: teacher, frozen: true}
  bridge: {bridge_of: teacher, from_stage: -1}
  student: {network: students}
links:
  - {from: teacher, to: bridge, loss: kl}
  - {from: bridge, to: student, loss: attention, on: stage -1}
deploy: {ensemble: student}
"""
CONCATENATED = nodes("{ensemble_of: peer, by: concatenated features}")
ATTENTION = nodes("{ensemble_of: peer, by: attention}").replace(
    "to: peer,", "to: peer, pairs: own,"
)
GATE = nodes("{ensemble_of: peer, by: gate}", ", share: all but last")

# method, networks that are not toys, and the message
MISFITS: list[tuple[str, dict[str, Network], str]] = [
    (
        link("loss: attention, on: stage 7"),
        {},
        "mine.yaml:5: 'student_0' has no 'stage 7', only 3 stages. Name one from 0 to 2, or from "
        "-3 to -1.",
    ),
    (link("loss: attention, on: stage -4"), {}, "mine.yaml:5: 'student_0' has no 'stage -4', only"),
    (
        link("loss: attention, on: {from: stage 3, to: stage 2}"),
        {},
        "mine.yaml:5: 'teacher' has no 'stage 3', only 3 stages",
    ),
    (
        link("loss: attention, on: stage 3"),
        {"student_0": student(), "teacher": student()},
        "mine.yaml:5: 'student_1' has no 'stage 3', only 3 stages",
    ),
    (
        link("loss: attention, on: stage -1"),
        {"teacher": whole()},
        "mine.yaml:5: 'teacher' has no stages, and 'stage -1' is compared. Choose a network with "
        "stages ('medkd networks' says which), or compare logits.",
    ),
    (
        link("loss: similarity, on: pooled"),
        {"student_1": whole()},
        "mine.yaml:5: 'student_1' has no stages, and 'pooled' is compared",
    ),
    (
        BRIDGE,
        {"teacher": whole(), "bridge": whole()},
        "mine.yaml:3: the bridge 'bridge' needs a network with stages, and 'teacher' has none",
    ),
    (
        BRIDGE.replace("from_stage: -1", "from_stage: 3"),
        {},
        "mine.yaml:3: there is no stage 3: the network has 3. Name a stage from 0 to 2",
    ),
    (
        BRIDGE.replace("on: stage -1", "on: stage 1"),
        {},
        "mine.yaml:7: 'bridge' has no 'stage 1', only 1 stages",
    ),
    (
        CONCATENATED,
        {"peer_0": whole()},
        "mine.yaml:3: 'peer_0' has no stages, and the method looks at them",
    ),
    (
        ATTENTION,
        {"peer_1": whole()},
        "mine.yaml:3: 'peer_1' has no stages, and the method looks at them",
    ),
    (
        ATTENTION,
        {"peer_1": toy(6)},
        "mine.yaml:3: attention compares pooled features of one width, and they have: peer_0 4, "
        "peer_1 6. Give all its members the same network.",
    ),
    (
        "pcl",
        {"peer_1": toy(6)},
        "pcl.yaml:8: the early stages of 'peer_1' are not like those of 'peer_0'. Networks that "
        "share stages must be of one architecture in train.students.",
    ),
    ("one", {"branch_1": student()}, "one.yaml:7: the early stages of 'branch_1' are not like"),
    ("okddip", {"leader": toy(5)}, "okddip.yaml:9: the early stages of 'leader' are not like"),
    ("one", {"branch_0": whole()}, "one.yaml:7: 'branch_0' has no stages, and the method looks"),
    (
        GATE.replace("all but last", "3"),
        {},
        "mine.yaml:2: 3 stages cannot be shared of 3. Leave each network at least its last stage.",
    ),
    (
        GATE.replace("all but last", "0"),
        {},
        "mine.yaml:3: a gate needs at least one shared stage. Share more stages.",
    ),
    (
        GATE.replace("loss: kl", "loss: similarity, on: pooled"),
        {},
        "mine.yaml:5: 'more' is an ensemble, it has logits alone. Compare logits.",
    ),
]


@pytest.mark.parametrize(("method", "others", "message"), MISFITS)
def test_a_misfit_names_the_line(method: str, others: dict[str, Network], message: str) -> None:
    told = refused(method, of_toys(method, **others))
    assert told.startswith(message), told


@pytest.mark.parametrize("students", [2, 3, 5])
@pytest.mark.parametrize("method", SHARED_TRUNK)
def test_mixed_students_cannot_share_stages(method: str, students: int) -> None:
    """A ResNet and a DenseNet have no early stages in common: told, not trained without."""
    networks = networks_for(method, students, mixed=mixed(students))
    told = refused(method, networks, students)
    if method == "okddip":  # which compares their pooled features before it looks at stages
        assert "attention compares pooled features of one width, and they have: peer_0" in told
        return
    peer = "branch" if method == "one" else "peer"
    assert f"the early stages of '{peer}_1' are not like those of '{peer}_0'. Networks that" in told


def test_a_loss_that_the_task_does_not_have() -> None:
    class Other(Classification):
        @property
        def link_losses(self):
            return {"mse": super().link_losses["mse"]}

    method = link("loss: kl, temperature: 4")
    with pytest.raises(MethodError, match=r"^mine.yaml:5: this task has no loss 'kl'. Choose an"):
        Cohort(expand(method_of(method), 2), of_toys(method), Other())


def test_different_widths_can_be_concatenated() -> None:
    torch.manual_seed(0)
    graph = expand(method_of(CONCATENATED), 2)
    cohort = Cohort(graph, of_toys(CONCATENATED, peer_1=toy(6)), Classification())
    assert cohort.ensembles["more"].classifier.in_features == 10
    images, labels = batch()
    assert steps(cohort, images.float(), labels, 2, rate=0.01)


def test_how_many_stages_are_shared() -> None:
    for share, expected in (("0", 0), ("1", 1), ("2", 2), ("all but last", 2)):
        method = CONCATENATED.replace("students}", f"students, share: {share}}}")
        cohort = make(method, 2, make_student=toy).cohort
        first, second = cohort.nodes["peer_0"], cohort.nodes["peer_1"]
        assert first.stem is second.stem
        same = [a is b for a, b in zip(first.stages, second.stages, strict=True)]
        assert same == [number < expected for number in range(3)], share


# Links on features: where each place is, and what projections do.


def places(network: StagedNetwork, images: Tensor) -> dict[str, Tensor]:
    """Every place that a link can name, of a network that is run here part by part."""
    state = network.stem((images - network.adapter.mean) / network.adapter.std)
    count = len(network.stages)
    found = {}
    for number, stage in enumerate(network.stages):
        state = stage(state)
        found[f"stage {number}"] = found[f"stage {number - count}"] = state
    found["pooled"] = network.pool(state)
    found["logits"] = network.classifier(found["pooled"])
    return found


def made_and_places(method: str) -> tuple[Made, list[dict[str, Tensor]]]:
    """Of teacher and two students."""
    made = make(method, 2, make_teacher=teacher)
    names = ("teacher", "student_0", "student_1")
    return made, [places(made.copies[name], made.images) for name in names]


@pytest.mark.parametrize("place", ["stage 0", "stage 1", "stage 3", "stage -1", "stage -4"])
def test_attention_at_a_stage(place: str) -> None:
    made, (target, *learners) = made_and_places(link(f"loss: attention, on: {place}"))
    terms = made.cohort(made.images, made.labels).terms
    for k, learner in enumerate(learners):
        name = f"student_{k}/attention_on_{place.replace(' ', '')}_from_teacher"
        expected = naive.attention(target[place].detach(), learner[place])
        torch.testing.assert_close(terms[name], expected, atol=1e-10, rtol=0)


def test_attention_of_maps_of_different_size() -> None:
    """Stage 0 is 32 px wide, stage 1 16 px: the larger is averaged."""
    made, (target, learner, _) = made_and_places(
        link("loss: attention, on: {from: stage 1, to: stage 0}")
    )
    terms = made.cohort(made.images, made.labels).terms
    expected = naive.attention(target["stage 1"].detach(), naive.pooled_to(learner["stage 0"], 16))
    found = terms["student_0/attention_on_stage0_from_teacher"]
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("place", ["stage -1", "pooled"])
def test_similarity_at_a_place(place: str) -> None:
    made, (target, learner, _) = made_and_places(link(f"loss: similarity, on: {place}"))
    terms = made.cohort(made.images, made.labels).terms
    name = f"student_0/similarity_on_{place.replace(' ', '')}_from_teacher"
    expected = naive.similarity(target[place].detach(), learner[place])
    torch.testing.assert_close(terms[name], expected, atol=1e-10, rtol=0)


def test_where_a_link_looks_if_it_does_not_say() -> None:
    defaults = {
        "kl": "logits",
        "mse": "logits",
        "attention": "stage -1",
        "similarity": "stage -1",
        "feature_mse": "stage -1",
        "contrastive": "pooled",
    }
    for loss, place in defaults.items():
        (one, *_) = expand(method_of(link(f"loss: {loss}")), 2).links
        assert (one.target_place, one.learner_place) == (place, place)


@pytest.mark.parametrize("place", ["stage -1", "stage 2", "pooled"])
def test_hints_through_a_projection(place: str) -> None:
    """The learner's features come to the target's width by a learned matrix without bias.

    It is the learner's: the optimizer gets it under that name, and nothing reaches the teacher.
    """
    made, (target, *learners) = made_and_places(link(f"loss: feature_mse, on: {place}"))
    terms = made.cohort(made.images, made.labels).terms
    for k, learner in enumerate(learners):
        name = f"student_{k}/feature_mse_on_{place.replace(' ', '')}_from_teacher"
        (weight,) = made.cohort.projections[f"{name}:teacher"].parameters()
        matrix = weight.detach().flatten(1).clone().requires_grad_()
        assert matrix.shape == (target[place].shape[1], learner[place].shape[1])
        projected = torch.einsum("ts,ns...->nt...", matrix, learner[place])
        expected = naive.feature_mse(target[place].detach(), projected)
        torch.testing.assert_close(terms[name], expected, atol=1e-10, rtol=0)

        own = list(made.cohort.nodes[f"student_{k}"].stem.parameters())
        theirs = list(made.copies[f"student_{k}"].stem.parameters())
        found = torch.autograd.grad(terms[name], [weight, *own], retain_graph=True)
        wanted = torch.autograd.grad(expected, [matrix, *theirs], retain_graph=True)
        torch.testing.assert_close(found[0].flatten(1), wanted[0], atol=1e-10, rtol=0)
        torch.testing.assert_close(found[1:], wanted[1:], atol=1e-10, rtol=0)
        groups = made.cohort.parameters_by_node()
        assert any(p is weight for p in groups[f"student_{k}"])
        made.cohort.zero_grad()
        terms[name].backward(retain_graph=True)
        assert all(p.grad is None or not p.grad.any() for p in groups["teacher"])


def test_contrast_through_two_projections() -> None:
    """Both sides come to a width of 128; the teacher's projection learns, the teacher does not."""
    made, (target, learner, _) = made_and_places(link("loss: contrastive"))
    terms = made.cohort(made.images, made.labels).terms
    name = "student_0/contrastive_on_pooled_from_teacher"
    ours, theirs = (p.detach() for p in made.cohort.projections[f"{name}:teacher"].parameters())
    assert ours.shape == (128, 32)
    assert theirs.shape == (128, 64)
    expected = naive.contrastive(
        target["pooled"].detach() @ theirs.T, learner["pooled"] @ ours.T, 0.07
    )
    torch.testing.assert_close(terms[name], expected, atol=1e-10, rtol=0)
    terms[name].backward()
    for projection in made.cohort.projections[f"{name}:teacher"].parameters():
        assert projection.grad is not None
        assert projection.grad.any()
    assert all(p.grad is None for p in made.cohort.nodes["teacher"].parameters())


def test_features_of_means_bridges_and_shared_stages() -> None:
    """Whatever has stages can be looked at, in stages that are shared too."""
    method = """\
nodes:
  teacher: {network: teacher, frozen: true}
  bridge: {bridge_of: teacher, from_stage: -2}
  peer: {network: students, share: all but last}
  mean: {mean_of: peer}
links:
  - {from: mean, to: peer, pairs: others, loss: attention, on: stage 1}
  - {from: mean, to: peer, pairs: own, loss: similarity, on: pooled}
  - {from: bridge, to: peer, loss: attention, on: {from: stage 0, to: stage -2}}
  - {from: peer, to: bridge, loss: attention, on: {from: stage 2, to: stage -2}}
deploy: {ensemble: peer}
"""
    made = make(method, 2)
    peers = [made.copies[f"peer_{k}"] for k in range(2)]
    peers[1].stem = peers[0].stem
    for number in range(3):
        peers[1].stages[number] = peers[0].stages[number]
    seen = [places(peer, made.images) for peer in peers]
    averages = [made.cohort.averages[f"mean_{k}"].eval() for k in range(2)]
    means = [places(average, made.images) for average in averages]
    frozen = places(made.copies["teacher"].eval(), made.images)
    bridge = made.copies["bridge"].stages[2](frozen["stage 1"])
    terms = made.cohort(made.images, made.labels).terms
    expected = {
        "peer_0/attention_on_stage1_from_mean": naive.attention(
            means[1]["stage 1"], seen[0]["stage 1"]
        ),
        "peer_1/similarity_on_pooled_from_mean": naive.similarity(
            means[1]["pooled"], seen[1]["pooled"]
        ),
        "peer_0/attention_on_stage-2_from_bridge": naive.attention(bridge, seen[0]["stage 2"]),
        "bridge/attention_on_stage-2_from_peer": (
            naive.attention(seen[0]["stage 2"], bridge)
            + naive.attention(seen[1]["stage 2"], bridge)
        )
        / 2,
    }
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, atol=1e-10, rtol=0, msg=name)
    assert len(terms) == 3 + 2 * 3 + 1
    total(terms).backward()
