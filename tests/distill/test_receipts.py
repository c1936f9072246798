"""Who gets a gradient from which term: a table for every method, by hand from its paper.

A network has a body and a head (its classifier). Peers that share a trunk have it as an owner of
its own, and their body is the last stage. Whoever is not named gets exactly zero.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medkd.distill.cohort import Cohort
from tests.distill.hand_made import METHODS, SHARED_TRUNK, make

Table = dict[str, set[str]]


def net(*names: str) -> set[str]:
    """All of a network that shares nothing."""
    return {part for name in names for part in (f"{name} body", f"{name} head")}


def body(*names: str) -> set[str]:
    return {f"{name} body" for name in names}


def peers(*names: str) -> set[str]:
    """All of networks with a common trunk."""
    return {"trunk"} | net(*names)


LABELS_OF_STUDENTS: Table = {
    "student_0/supervised": net("student_0"),
    "student_1/supervised": net("student_1"),
}
LABELS: Table = {"teacher/supervised": net("teacher"), **LABELS_OF_STUDENTS}
FROM_TEACHER: Table = {
    "student_0/kl_from_teacher": net("student_0"),
    "student_1/kl_from_teacher": net("student_1"),
}
MUTUAL: Table = {
    "student_0/kl_from_student": net("student_0"),
    "student_1/kl_from_student": net("student_1"),
}
PCL: Table = {
    "peer_0/supervised": peers("peer_0"),
    "peer_1/supervised": peers("peer_1"),
    # The ensemble's classifier looks at pooled features, and so reaches every body but no head.
    "all_peers/supervised": {"all_peers", "trunk", *body("peer_0", "peer_1")},
    "peer_0/kl_from_all_peers": peers("peer_0"),
    "peer_1/kl_from_all_peers": peers("peer_1"),
    "peer_0/kl_from_mean": peers("peer_0"),
    "peer_1/kl_from_mean": peers("peer_1"),
}

# For two students.
RECEIPTS: dict[str, Table] = {
    "independent": LABELS,
    "kd": LABELS | FROM_TEACHER,
    "kd_frozen": LABELS_OF_STUDENTS | FROM_TEACHER,
    "kd_ml": LABELS | FROM_TEACHER | MUTUAL,
    "dml": LABELS_OF_STUDENTS | MUTUAL,
    "dml_e": LABELS_OF_STUDENTS
    | {
        "student_0/kl_from_others": net("student_0"),
        "student_1/kl_from_others": net("student_1"),
    },
    "cml": LABELS_OF_STUDENTS | FROM_TEACHER | MUTUAL,
    "sokd": LABELS_OF_STUDENTS
    | {
        "bridge/supervised": net("bridge"),
        "bridge/kl_from_teacher": net("bridge"),
        "bridge/kl_from_student": net("bridge"),
        "student_0/kl_from_bridge": net("student_0"),
        "student_1/kl_from_bridge": net("student_1"),
    },
    "sokd_features": LABELS_OF_STUDENTS
    | {
        "bridge/supervised": net("bridge"),
        "bridge/kl_from_teacher": net("bridge"),
        # Maps lie before the head.
        "bridge/attention_on_stage-1_from_student": body("bridge"),
        "student_0/attention_on_stage-1_from_bridge": body("student_0"),
        "student_1/attention_on_stage-1_from_bridge": body("student_1"),
    },
    "pcl": PCL,
    "pcl_e": PCL,
    "one": {
        "branch_0/supervised": peers("branch_0"),
        "branch_1/supervised": peers("branch_1"),
        "gate/supervised": {"gate", *peers("branch_0", "branch_1")},
        "branch_0/kl_from_gate": peers("branch_0"),
        "branch_1/kl_from_gate": peers("branch_1"),
    },
    "okddip": {
        "peer_0/supervised": peers("peer_0"),
        "peer_1/supervised": peers("peer_1"),
        "leader/supervised": peers("leader"),
        # The mix is not detached: attention learns, and so do the peers that are mixed.
        "peer_0/kl_from_mix": {"mix", *peers("peer_0", "peer_1")},
        "peer_1/kl_from_mix": {"mix", *peers("peer_0", "peer_1")},
        "leader/kl_from_mean": peers("leader"),
    },
    "kdcl": LABELS
    | {
        "teacher/kl_from_shared": net("teacher"),
        "student_0/kl_from_shared": net("student_0"),
        "student_1/kl_from_shared": net("student_1"),
    },
    "learning_styles": LABELS
    | {
        "student_0/kl_from_teacher": net("student_0"),
        "student_1/attention_on_stage-1_from_teacher": body("student_1"),
    }
    | MUTUAL
    | {
        "student_0/attention_on_stage-1_from_student": body("student_0"),
        "student_1/attention_on_stage-1_from_student": body("student_1"),
    },
}

# Under which names the optimizer gets the parameters.
TRAINED = {
    "independent": {"teacher", "student_0", "student_1"},
    "kd": {"teacher", "student_0", "student_1"},
    "kd_frozen": {"student_0", "student_1"},
    "kd_ml": {"teacher", "student_0", "student_1"},
    "dml": {"student_0", "student_1"},
    "dml_e": {"student_0", "student_1"},
    "cml": {"student_0", "student_1"},
    "sokd": {"bridge", "student_0", "student_1"},
    "sokd_features": {"bridge", "student_0", "student_1"},
    "pcl": {"peer_trunk", "peer_0", "peer_1", "all_peers"},
    "pcl_e": {"peer_trunk", "peer_0", "peer_1", "all_peers"},
    "one": {"branch_trunk", "branch_0", "branch_1", "gate"},
    "okddip": {"peer_trunk", "peer_0", "peer_1", "leader", "mix"},
    "kdcl": {"teacher", "student_0", "student_1"},
    "learning_styles": {"teacher", "student_0", "student_1"},
}


def owners(cohort: Cohort, *, shared: bool) -> dict[str, list[nn.Parameter]]:
    """Every parameter of a cohort under its owner, frozen ones too."""
    found: dict[str, list[nn.Parameter]] = {}
    for name, node in cohort.nodes.items():
        stages = list(node.stages)
        bodies = [*stages, node.pool]
        if shared:
            early = [node.stem, *stages[:-1]]
            found["trunk"] = [p for module in early for p in module.parameters()]
            bodies = [stages[-1], node.pool]
        elif hasattr(node, "stem"):
            bodies = [node.stem, *bodies]
        found[f"{name} body"] = [p for module in bodies for p in module.parameters()]
        found[f"{name} head"] = list(node.classifier.parameters())
    for name, module in cohort.ensembles.items():
        found[name] = list(module.parameters())
    for name, average in cohort.averages.networks.items():
        found[name] = list(average.parameters())
    return found


@pytest.mark.parametrize("method", METHODS)
def test_who_gets_a_gradient(method: str) -> None:
    made = make(method, 2)
    cohort, table = made.cohort, RECEIPTS[method]
    parts = owners(cohort, shared=method in SHARED_TRUNK)
    assert {id(p) for part in parts.values() for p in part} == {id(p) for p in cohort.parameters()}
    terms = cohort(made.images, made.labels).terms
    assert terms.keys() == table.keys()
    for name, term in terms.items():
        cohort.zero_grad(set_to_none=True)
        term.backward(retain_graph=True)
        for owner, parameters in parts.items():
            for parameter in parameters:
                gradient = parameter.grad
                if owner in table[name]:
                    assert gradient is not None, f"{name}: nothing for {owner}"
                    assert gradient.abs().max() > 0, f"{name}: zero for {owner}"
                else:
                    # Exactly: not small, zero.
                    assert gradient is None or not gradient.any(), f"{name}: reaches {owner}"


@pytest.mark.parametrize("method", METHODS)
def test_three_students_as_two(method: str) -> None:
    """The third is to the first what the second is: nobody but the learner of a plain link."""
    made = make(method, 3)
    parts = owners(made.cohort, shared=method in SHARED_TRUNK)
    for name, term in made.cohort(made.images, made.labels).terms.items():
        learner = name.split("/")[0]
        if learner not in made.cohort.nodes or name.endswith("from_mix"):
            continue
        made.cohort.zero_grad(set_to_none=True)
        term.backward(retain_graph=True)
        reached = {
            owner
            for owner, parameters in parts.items()
            if any(p.grad is not None and bool(p.grad.any()) for p in parameters)
        }
        whole = {"trunk"} if method in SHARED_TRUNK else set()
        whole |= body(learner) if "attention" in name else net(learner)
        assert reached == whole, name


@pytest.mark.parametrize("method", METHODS)
def test_the_optimizer_gets_every_parameter_that_learns_once(method: str) -> None:
    cohort = make(method, 2).cohort
    groups = cohort.parameters_by_node()
    assert groups.keys() == TRAINED[method]
    given = [id(p) for group in groups.values() for p in group]
    assert len(given) == len(set(given))
    assert set(given) == {id(p) for p in cohort.parameters() if p.requires_grad}
    parts = owners(cohort, shared=method in SHARED_TRUNK)
    for group, parameters in groups.items():
        wanted = {
            owner
            for owner in parts
            if owner.split()[0] == group or (owner == "trunk" and group.endswith("_trunk"))
        }
        assert {id(p) for p in parameters} == {id(p) for o in wanted for p in parts[o]}


@pytest.mark.parametrize("method", METHODS)
def test_nothing_learns_in_evaluation(method: str) -> None:
    made = make(method, 2)
    made.cohort.eval()
    images = made.images[0] if made.images.ndim == 5 else made.images
    with torch.no_grad():
        outputs = made.cohort(images)
    assert outputs.terms == {}
    assert not any(logits.requires_grad for logits in outputs.logits.values())


def test_a_bridge_pulls_at_no_teacher() -> None:
    """One that is trained beside it, too: the bridge gets the teacher's features detached."""
    text = """\
nodes:
  teacher: {network: teacher}
  bridge: {bridge_of: teacher}
  student: {network: students}
links:
  - {from: bridge, to: student, loss: kl}
deploy: {ensemble: student}
"""
    made = make(text, 1)
    terms = made.cohort(made.images, made.labels).terms
    terms["bridge/supervised"].backward()
    reached = {
        owner
        for owner, parameters in owners(made.cohort, shared=False).items()
        if any(p.grad is not None and bool(p.grad.any()) for p in parameters)
    }
    assert reached == net("bridge")
