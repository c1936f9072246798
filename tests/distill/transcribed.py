"""Every method's loss written out from its paper's formula, one function a method.

The networks are run part by part here, and the losses are those of :mod:`tests.distill.naive`;
nothing is taken from :mod:`medkd.distill`. ``d`` detaches, as in the formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from medkd.networks.staged import StagedNetwork
from tests.distill.naive import (
    attention,
    cross_entropy,
    kl,
    kl_of_probabilities,
    softmax,
)

BATCH_NORM_EPSILON = 1e-5


class Run(NamedTuple):
    """What a network made of a batch."""

    logits: Tensor
    pooled: Tensor
    last_map: Tensor


@dataclass
class World:
    """What a formula speaks of.

    Attributes:
        networks: by the node's name, with a whole network for a bridge. Peers that share a trunk
            have it in common.
        means: by the node's name, averages of weights, in evaluation mode.
        ensemble: weights of the ensemble that learns, by their name in its module.
        views: an augmentation of the batch for each learner; or one alone.
        labels: of the images.
        students: how many there are, K.
        w: the ramp's factor at this moment.
        dead: nodes that are left out: they teach nothing, and ensembles are those of the others.
    """

    networks: Mapping[str, StagedNetwork]
    means: Mapping[str, StagedNetwork]
    ensemble: Mapping[str, Tensor]
    views: list[Tensor]
    labels: Tensor
    students: int
    w: float
    dead: frozenset[str] = frozenset()

    def others(self, name: str, k: int) -> list[str]:
        """All living ones of a set but number k."""
        return self.living([f"{name}_{j}" for j in range(self.students) if j != k])

    def living(self, names: list[str]) -> list[str]:
        return [name for name in names if name not in self.dead]

    def run(self, name: str, view: int = 0) -> Run:
        network = self.networks[name] if name in self.networks else self.means[name]
        state = before_stages(network, self.views[view])
        for stage in network.stages:
            state = stage(state)
        return finish(network, state)

    def ce(self, logits: Tensor) -> Tensor:
        return cross_entropy(logits, self.labels)


def before_stages(network: StagedNetwork, images: Tensor) -> Tensor:
    return network.stem((images - network.adapter.mean) / network.adapter.std)


def finish(network: StagedNetwork, state: Tensor) -> Run:
    pooled = network.pool(state)
    return Run(network.classifier(pooled), pooled, state)


def run_trunk(network: StagedNetwork, views: list[Tensor]) -> tuple[Tensor, ...]:
    """All stages but the last, once, over the images of all views together."""
    state = before_stages(network, torch.cat(views))
    for stage in list(network.stages)[:-1]:
        state = stage(state)
    return torch.split(state, len(views[0]))


def d(logits: Tensor) -> Tensor:
    return logits.detach()


def add(values: list[Tensor]) -> Tensor:
    return sum(values, start=torch.zeros((), dtype=torch.float64))


def mean(values: list[Tensor]) -> Tensor:
    return sum(values) / len(values)


Terms = dict[str, Tensor]
Logits = dict[str, Tensor]


def _teacher_and_students(world: World) -> dict[str, Run]:
    names = [f"student_{k}" for k in range(world.students)]
    if "teacher" in world.networks:
        names = ["teacher", *names]
    return {name: world.run(name) for name in names}


def _supervised(world: World, runs: Mapping[str, Run]) -> Terms:
    return {f"{name}/supervised": world.ce(run.logits) for name, run in runs.items()}


def _mutual(world: World, runs: Mapping[str, Run], k: int) -> Tensor:
    """1/(K-1) sum over l != k of KL(d(p_l) || p_k)."""
    own = runs[f"student_{k}"].logits
    losses = [kl(d(runs[other].logits), own, 1) for other in world.others("student", k)]
    return add(losses) / (world.students - 1)


def independent(world: World) -> tuple[Terms, Logits]:
    """L = CE, of teacher and students."""
    runs = _teacher_and_students(world)
    return _supervised(world, runs), _logits(runs)


def kd(world: World) -> tuple[Terms, Logits]:
    """L_t = CE; L_k = CE + T^2 KL(d(p_t) || p_k), T = 4."""
    runs = _teacher_and_students(world)
    terms = _supervised(world, runs)
    for k in range(world.students):
        student = runs[f"student_{k}"].logits
        terms[f"student_{k}/kl_from_teacher"] = kl(d(runs["teacher"].logits), student, 4)
    return terms, _logits(runs)


def kd_frozen(world: World) -> tuple[Terms, Logits]:
    """L_k as in KD; the teacher has no loss."""
    world.networks["teacher"].eval()
    terms, logits = kd(world)
    del terms["teacher/supervised"]
    return terms, logits


def kd_ml(world: World) -> tuple[Terms, Logits]:
    """L_k = CE + 4^2 KL(d(p_t) || p_k) + 1/(K-1) sum over j != k of KL(d(p_j) || p_k)."""
    runs = _teacher_and_students(world)
    terms = _supervised(world, runs)
    for k in range(world.students):
        student = runs[f"student_{k}"].logits
        terms[f"student_{k}/kl_from_teacher"] = kl(d(runs["teacher"].logits), student, 4)
        terms[f"student_{k}/kl_from_student"] = _mutual(world, runs, k)
    return terms, _logits(runs)


def cml(world: World) -> tuple[Terms, Logits]:
    """KD+ML whose teacher is frozen."""
    world.networks["teacher"].eval()
    terms, logits = kd_ml(world)
    del terms["teacher/supervised"]
    return terms, logits


def dml(world: World) -> tuple[Terms, Logits]:
    """L_k = CE + 1/(K-1) sum over l != k of KL(d(p_l) || p_k)."""
    runs = _teacher_and_students(world)
    terms = _supervised(world, runs)
    for k in range(world.students):
        terms[f"student_{k}/kl_from_student"] = _mutual(world, runs, k)
    return terms, _logits(runs)


def dml_e(world: World) -> tuple[Terms, Logits]:
    """L_k = CE + KL(d(mean over l != k of p_l) || p_k): the mean of probabilities."""
    runs = _teacher_and_students(world)
    terms, logits = _supervised(world, runs), _logits(runs)
    for k in range(world.students):
        target = _mean_probabilities([d(runs[o].logits) for o in world.others("student", k)])
        terms[f"student_{k}/kl_from_others"] = kl_of_probabilities(
            target, runs[f"student_{k}"].logits
        )
        logits[f"others_{k}"] = torch.stack([torch.stack(row).log() for row in target])
    return terms, logits


def _mean_probabilities(logits: list[Tensor]) -> list[list[Tensor]]:
    images, classes = logits[0].shape
    all_of_them = [[softmax(row) for row in one] for one in logits]
    return [
        [mean([one[n][c] for one in all_of_them]) for c in range(classes)] for n in range(images)
    ]


def _sokd(world: World) -> tuple[dict[str, Run], Terms]:
    """A: the last stage and head of a fresh teacher, after d(the frozen teacher's features)."""
    teacher, bridge = world.networks["teacher"].eval(), world.networks["bridge"]
    state = before_stages(teacher, world.views[0])
    for stage in list(teacher.stages)[:-1]:
        state = stage(state)
    runs = {
        "teacher": finish(teacher, teacher.stages[-1](state)),
        "bridge": finish(bridge, bridge.stages[-1](d(state))),
    }
    runs |= {f"student_{k}": world.run(f"student_{k}") for k in range(world.students)}
    learners = {name: run for name, run in runs.items() if name != "teacher"}
    terms = _supervised(world, learners)
    terms["bridge/kl_from_teacher"] = kl(d(runs["teacher"].logits), runs["bridge"].logits, 4)
    return runs, terms


def sokd(world: World) -> tuple[Terms, Logits]:
    """L_A = CE + T^2 KL(d(p_t) || p_A) + T^2 KL(d(p_s) || p_A), of several students the mean;
    L_s = CE + T^2 KL(d(p_A) || p_s); T = 4."""
    runs, terms = _sokd(world)
    bridge = runs["bridge"].logits
    names = [f"student_{k}" for k in range(world.students)]
    losses = [kl(d(runs[name].logits), bridge, 4) for name in world.living(names)]
    terms["bridge/kl_from_student"] = add(losses) / len(names)
    for name in names:
        terms[f"{name}/kl_from_bridge"] = kl(d(bridge), runs[name].logits, 4)
    return terms, _logits(runs)


def sokd_features(world: World) -> tuple[Terms, Logits]:
    """Between A and the students attention transfer of the last map, times 500 / 64."""
    runs, terms = _sokd(world)
    bridge = runs["bridge"].last_map
    names = [f"student_{k}" for k in range(world.students)]
    losses = [attention(d(runs[name].last_map), bridge) for name in world.living(names)]
    terms["bridge/attention_on_stage-1_from_student"] = 500 / 64 * add(losses) / len(names)
    for name in names:
        loss = attention(d(bridge), runs[name].last_map)
        terms[f"{name}/attention_on_stage-1_from_bridge"] = 500 / 64 * loss
    return terms, _logits(runs)


def pcl(world: World) -> tuple[Terms, Logits]:
    """L = CE(z_ens) + sum over j of [ CE_j + w T^2 KL(d(p_ens) || p_j)
    + w/(m-1) sum over l != j of T^2 KL(d(p_mean_l) || p_j) ], T = 3."""
    m = world.students
    states = run_trunk(world.networks["peer_0"], world.views)
    peers = []
    for k in range(m):
        network = world.networks[f"peer_{k}"]
        peers.append(finish(network, network.stages[-1](states[k])))
    # Of one that is left out the classifier sees zeros.
    features = [
        torch.zeros_like(peer.pooled) if f"peer_{k}" in world.dead else peer.pooled
        for k, peer in enumerate(peers)
    ]
    features = torch.cat(features, dim=1)
    ensemble = features @ world.ensemble["classifier.weight"].T + world.ensemble["classifier.bias"]
    means = {f"mean_{k}": world.run(f"mean_{k}", view=k).logits for k in range(m)}
    terms = {"all_peers/supervised": world.ce(ensemble)}
    for j, peer in enumerate(peers):
        terms[f"peer_{j}/supervised"] = world.ce(peer.logits)
        terms[f"peer_{j}/kl_from_all_peers"] = world.w * kl(d(ensemble), peer.logits, 3)
        losses = [kl(d(means[other]), peer.logits, 3) for other in world.others("mean", j)]
        terms[f"peer_{j}/kl_from_mean"] = world.w / (m - 1) * add(losses)
    logits = {f"peer_{k}": peer.logits for k, peer in enumerate(peers)}
    return terms, logits | means | {"all_peers": ensemble}


def one(world: World) -> tuple[Terms, Logits]:
    """L = CE(z_gate) + sum over j of [ CE_j + w T^2 KL(d(p_gate) || p_j) ], T = 3.

    Gate: mean over the shared map, linear, batch norm, ReLU, softmax over the branches.
    """
    (shared,) = run_trunk(world.networks["branch_0"], world.views)
    branches = []
    for k in range(world.students):
        network = world.networks[f"branch_{k}"]
        branches.append(finish(network, network.stages[-1](shared)).logits)
    scores = shared.mean(dim=(2, 3)) @ world.ensemble["linear.weight"].T
    centred = scores - scores.mean(dim=0)
    normed = centred / torch.sqrt((centred**2).mean(dim=0) + BATCH_NORM_EPSILON)
    normed = normed * world.ensemble["norm.weight"] + world.ensemble["norm.bias"]
    rectified = torch.where(normed > 0, normed, torch.zeros_like(normed))
    # Of those that are left out there is no weight: the softmax is over the others.
    kept = [k for k in range(world.students) if f"branch_{k}" not in world.dead]
    rows = []
    for n in range(len(shared)):
        shares = softmax(torch.stack([rectified[n, k] for k in kept]))
        rows.append(sum(share * branches[k][n] for share, k in zip(shares, kept, strict=True)))
    gate = torch.stack(rows)
    terms = {"gate/supervised": world.ce(gate)}
    for k, branch in enumerate(branches):
        terms[f"branch_{k}/supervised"] = world.ce(branch)
        terms[f"branch_{k}/kl_from_gate"] = world.w * kl(d(gate), branch, 3)
    return terms, {f"branch_{k}": z for k, z in enumerate(branches)} | {"gate": gate}


def okddip(world: World) -> tuple[Terms, Logits]:
    """L = sum over i of [ CE_i + w T^2 KL(p_mix_i || p_i) ] + CE_leader
    + w T^2 KL(d(p_mean) || p_leader), T = 3; the mix is not detached.

    mix_i = sum over j of a_ij z_j, a_i the softmax over j of (A h_i) . (B h_j).
    """
    names = [f"peer_{k}" for k in range(world.students)]
    (shared,) = run_trunk(world.networks["peer_0"], world.views)
    runs = {}
    for name in (*names, "leader"):
        network = world.networks[name]
        runs[name] = finish(network, network.stages[-1](shared))
    terms = _supervised(world, runs)
    logits = _logits(runs)
    kept = world.living(names)
    for i, name in enumerate(names):
        rows = []
        for n in range(len(shared)):
            query = world.ensemble["learner.weight"] @ runs[name].pooled[n]
            scores = [query @ (world.ensemble["teacher.weight"] @ runs[j].pooled[n]) for j in kept]
            shares = softmax(torch.stack(scores))
            rows.append(sum(a * runs[j].logits[n] for a, j in zip(shares, kept, strict=True)))
        logits[f"mix_{i}"] = torch.stack(rows)
        terms[f"{name}/kl_from_mix"] = world.w * kl(logits[f"mix_{i}"], runs[name].logits, 3)
    logits["mean"] = mean([runs[name].logits for name in kept])
    leader = runs["leader"].logits
    terms["leader/kl_from_mean"] = world.w * kl(d(logits["mean"]), leader, 3)
    return terms, logits


def kdcl(world: World) -> tuple[Terms, Logits]:
    """L_k = 0.5 CE + 0.5 T^2 KL(d(p_shared) || p_k), T = 4, of every network, teacher too."""
    names = ["teacher", *(f"student_{k}" for k in range(world.students))]
    logits = {name: world.run(name, view=number).logits for number, name in enumerate(names)}
    shared = mean([logits[name] for name in world.living(names)])
    terms = {}
    for name in names:
        terms[f"{name}/supervised"] = 0.5 * world.ce(logits[name])
        terms[f"{name}/kl_from_shared"] = 0.5 * kl(d(shared), logits[name], 4)
    return terms, logits | {"shared": shared}


def learning_styles(world: World) -> tuple[Terms, Logits]:
    """L_0 = CE + 4^2 KL(d(p_t) || p_0) + exchange; L_1 = CE + w AT(d(F_t), F_1) + exchange;
    exchange: the mean over the others of KL(d(p_j) || p_k) and of w AT(d(F_j), F_k);
    w = 500 / 64."""
    runs = _teacher_and_students(world)
    terms = _supervised(world, runs)
    students = [runs[f"student_{k}"] for k in range(world.students)]
    terms["student_0/kl_from_teacher"] = kl(d(runs["teacher"].logits), students[0].logits, 4)
    terms["student_1/attention_on_stage-1_from_teacher"] = (
        500 / 64 * attention(d(runs["teacher"].last_map), students[1].last_map)
    )
    for k, student in enumerate(students):
        terms[f"student_{k}/kl_from_student"] = _mutual(world, runs, k)
        others = [runs[other].last_map for other in world.others("student", k)]
        losses = [attention(d(other), student.last_map) for other in others]
        terms[f"student_{k}/attention_on_stage-1_from_student"] = (
            500 / 64 * add(losses) / (world.students - 1)
        )
    return terms, _logits(runs)


def _logits(runs: Mapping[str, Run]) -> Logits:
    return {name: run.logits for name, run in runs.items()}


TRANSCRIPTIONS: dict[str, Callable[[World], tuple[Terms, Logits]]] = {
    "independent": independent,
    "kd": kd,
    "kd_frozen": kd_frozen,
    "kd_ml": kd_ml,
    "dml": dml,
    "dml_e": dml_e,
    "cml": cml,
    "sokd": sokd,
    "sokd_features": sokd_features,
    "pcl": pcl,
    "pcl_e": pcl,
    "one": one,
    "okddip": okddip,
    "kdcl": kdcl,
    "learning_styles": learning_styles,
}


def tie(networks: Mapping[str, StagedNetwork], names: list[str]) -> None:
    """Give peers one trunk: all but the last stage of the first of them."""
    first = networks[names[0]]
    for name in names[1:]:
        networks[name].stem = first.stem
        stages = [*list(first.stages)[:-1], networks[name].stages[-1]]
        networks[name].stages = nn.ModuleList(stages)
