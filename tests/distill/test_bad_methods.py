"""Wrong methods: each is refused in one line that names the line to mend."""

from __future__ import annotations

import pytest

from medkd.distill.graph import expand
from medkd.distill.method import load_method, parse_method
from medkd.errors import MethodError
from tests.distill.hand_made import NEED_TWO
from tests.distill.texts import GOOD, RICH, changed


def refused(text: str, students: int | None = None) -> str:
    """The message with which a method is refused, read alone or for a number of students."""
    with pytest.raises(MethodError) as error:
        read(text, students)
    assert "\n" not in str(error.value)
    return str(error.value)


def read(text: str, students: int | None) -> None:
    method = parse_method(text, "bad")
    if students is not None:
        expand(method, students)


# What is refused as soon as it is read: old, new, and how the message starts.
REFUSED_IN_GOOD = [
    # names
    (
        "to: student, loss: kl, t",
        "to: studnt, loss: kl, t",
        "bad.yaml:5: unknown node 'studnt'. Did you mean 'student'?",
    ),
    ("from: teacher", "from: pupil", "bad.yaml:5: unknown node 'pupil'. Known: teacher, student."),
    ("{ensemble: student}", "{ensemble: pupils}", "bad.yaml:7: unknown node 'pupils'"),
    (
        "{network: teacher}",
        "{network: tutor}",
        "bad.yaml:2: 'nodes.teacher.network' (it is 'tutor'): input should be 'teacher', 'stu",
    ),
    (
        "loss: kl, temperature",
        "loss: k1, temperature",
        "bad.yaml:5: 'links.0.loss' (it is 'k1'): not one of kl, reverse_kl, js, mse, decoupled, ",
    ),
    (
        "deploy",
        "views: [teachr]\ndeploy",
        "bad.yaml:7: unknown node 'teachr'. Did you mean 'teacher'?",
    ),
    (
        "  student: {n",
        "  values: {network: student}\n  student: {n",
        "bad.yaml:3: 'values' cannot be a node's name",
    ),
    (
        "  student: {n",
        "  a-b: {network: student}\n  student: {n",
        "bad.yaml:3: 'a-b' cannot be a node's name",
    ),
    (
        "  student: {n",
        "  student_0: {network: student}\n  student: {n",
        "bad.yaml:3: 'student_0' is a member of the set 'student' already",
    ),
    # numbers
    (
        "temperature: 4",
        "temperature: 0",
        "bad.yaml:5: 'links.0.temperature' (it is 0): input should be greater than 0",
    ),
    (
        "temperature: 4",
        "temperature: -2",
        "bad.yaml:5: 'links.0.temperature' (it is -2): input should be greater than 0",
    ),
    (
        "temperature: 4",
        "weight: -1",
        "bad.yaml:5: 'links.0.weight' (it is -1): input should be greater than or equal to 0",
    ),
    ("temperature: 4", "weight: .nan", "bad.yaml:5: 'links.0.weight'"),
    ("temperature: 4", "weight: .inf", "bad.yaml:5: 'links.0.weight'"),
    ("temperature: 4", "temperature: .inf", "bad.yaml:5: 'links.0.temperature'"),
    (
        "{network: teacher}",
        "{network: teacher, supervised: -1}",
        "bad.yaml:2: 'nodes.teacher.supervised' (it is -1): input should be greater than or",
    ),
    # keys
    (
        "temperature: 4",
        "temprature: 4",
        "bad.yaml:5: unknown key 'links.0.temprature'. Did you mean 'temperature'?",
    ),
    (
        "{network: teacher}",
        "{network: teacher, frosen: true}",
        "bad.yaml:2: unknown key 'nodes.teacher.frosen'. Did you mean 'frozen'?",
    ),
    ("deploy:", "view: student\ndeploy:", "bad.yaml:7: unknown key 'view'. Did you mean 'views'?"),
    ("deploy:", "links: []\ndeploy:", "bad.yaml:7: the key 'links' stands twice (first on line 4)"),
    (
        "loss: kl, temperature: 4",
        "loss: kl, loss: js",
        "bad.yaml:5: the key 'links.0.loss' stands twice",
    ),
    (
        "  student: {network: students}",
        "  student: {network: students}\n  teacher: {network: student}",
        "bad.yaml:4: the key 'nodes.teacher' stands twice (first on line 2)",
    ),
    ("deploy: {ensemble: student}", "", "bad.yaml: the key 'deploy' is missing"),
    ("loss: kl, temperature", "temperature", "bad.yaml:5: the key 'links.0.loss' is missing"),
    ("nodes:", "nodes: [", "bad.yaml:3: not valid YAML"),
    # a loss and what it has and compares
    (
        "loss: kl, temperature: 4",
        "loss: mse, temperature: 4",
        "bad.yaml:5: 'links.0': the loss 'mse' has no 'temperature'",
    ),
    ("temperature: 4", "alpha: 4", "bad.yaml:5: 'links.0': the loss 'kl' has no 'alpha'"),
    (
        "loss: kl, temperature: 4",
        "loss: kl, on: stage -1",
        "bad.yaml:5: 'links.0': the loss 'kl' cannot compare 'stage -1'",
    ),
    (
        "loss: kl, temperature: 4",
        "loss: attention, on: pooled",
        "bad.yaml:5: 'links.0': the loss 'attention' cannot compare 'pooled'",
    ),
    (
        "loss: kl, temperature: 4",
        "loss: similarity, on: logits",
        "bad.yaml:5: 'links.0': the loss 'similarity' cannot compare 'logits'",
    ),
    (
        "loss: kl, temperature: 4",
        "loss: attention, on: {from: stage 0, to: logits}",
        "bad.yaml:5: 'links.0': the loss 'attention' cannot compare 'logits'",
    ),
    ("temperature: 4", "on: last stage", "bad.yaml:5: 'links.0.on"),
    # ramps
    (
        "temperature: 4",
        "ramp: {linear: 80}",
        "bad.yaml:5: 'links.0.ramp.linear' (it is 80): input should be a valid string",
    ),
    (
        "temperature: 4",
        "ramp: {linear: 80 days}",
        "bad.yaml:5: 'links.0.ramp': '80 days' is no length; write '80 epochs'",
    ),
    (
        "temperature: 4",
        "ramp: {linear: 0 epochs}",
        "bad.yaml:5: 'links.0.ramp': '0 epochs' must be above zero",
    ),
    (
        "temperature: 4",
        "ramp: {cosine: 300 of 80 epochs}",
        "bad.yaml:5: 'links.0.ramp': '300 of 80 epochs' must be above zero, and no longer",
    ),
    (
        "temperature: 4",
        "ramp: {}",
        "bad.yaml:5: 'links.0.ramp': a ramp is one of linear, exponential and cosine",
    ),
    (
        "temperature: 4",
        "ramp: {linear: 1 epoch, cosine: 1 epoch}",
        "bad.yaml:5: 'links.0.ramp': a ramp is one of linear, exponential and cosine",
    ),
    (
        "temperature: 4",
        "ramp: {sigmoid: 80 epochs}",
        "bad.yaml:5: unknown key 'links.0.ramp.sigmoid'. Known here: cosine, exponential, linear.",
    ),
    # learners and what they learn from
    (
        "from: teacher, to: student",
        "from: teacher, to: teacher",
        "bad.yaml:5: a link from 'teacher' to itself",
    ),
    (
        "from: teacher, to: student",
        "from: student_0, to: student_0",
        "bad.yaml:5: a link from 'student_0' to itself",
    ),
    (
        "{network: teacher}",
        "{network: teacher, supervised: 0}",
        "bad.yaml:2: the node 'teacher' learns from nothing",
    ),
    (
        "{network: teacher}",
        "{network: teacher, frozen: true}\n  mean: {mean_of: teacher}",
        "bad.yaml:3: 'teacher' has no weights to average",
    ),
    ("to: student, loss: kl, t", "to: student, pairs: own, loss: kl, t", "bad.yaml:5: "),
    (
        "  student: {n",
        "  extra: {network: teacher}\n  student: {n",
        "bad.yaml:3: two nodes take the network 'teacher'",
    ),
    (
        "  student: {n",
        "  extra: {network: students}\n  student: {n",
        "bad.yaml:4: two nodes take the network 'students'",
    ),
    # what ships
    ("{ensemble: student}", "{ensemble: teacher}", "bad.yaml:7: a teacher cannot ship"),
    ("{ensemble: student}", "{one: teacher}", "bad.yaml:7: a teacher cannot ship"),
    (
        "{ensemble: student}",
        "{one: student}",
        "bad.yaml:7: 'student' is a set, not one node. Name one member, such as 'student_0'.",
    ),
    (
        "{ensemble: student}",
        "{}",
        "bad.yaml:7: 'deploy': 'deploy' is one of ensemble, one and best_of",
    ),
    (
        "{ensemble: student}",
        "{ensemble: student, one: student_0}",
        "bad.yaml:7: 'deploy': 'deploy' is one of ensemble, one and best_of",
    ),
    # nodes
    (
        "{network: students}",
        "{}",
        "bad.yaml:3: 'nodes.student': needs just one of network, mean_of, ensemble_of, bridge_of",
    ),
    (
        "{network: students}",
        "{network: students, mean_of: teacher}",
        "bad.yaml:3: 'nodes.student': needs just one of",
    ),
    (
        "{network: students}",
        "{network: students, decay: 0.9}",
        "bad.yaml:3: 'nodes.student': 'decay' means nothing to a node of the kind 'network'",
    ),
    (
        "{network: students}",
        "{network: students, frozen: true}",
        "bad.yaml:3: 'nodes.student': only the teacher can be frozen",
    ),
    (
        "{network: teacher}",
        "{network: teacher, share: 1}",
        "bad.yaml:2: 'nodes.teacher': only a set can share its stages",
    ),
    ("{network: students}", "{network: students, share: -1}", "bad.yaml:3: 'nodes.student.share"),
    (
        "{network: teacher}",
        "{network: teacher, share_with: student}",
        "bad.yaml:2: 'nodes.teacher': 'share_with' is for a node with 'network: student'",
    ),
    (
        "{network: teacher}",
        "{network: teacher}\n  leader: {network: student, share_with: student}",
        "bad.yaml:3: 'student' shares no stages",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), REFUSED_IN_GOOD)
def test_a_wrong_graph_names_the_line(old: str, new: str, message: str) -> None:
    text = changed(GOOD, old, new)
    told = refused(text)
    assert told.startswith(message), told


REFUSED_IN_RICH = [
    # nobody learns who cannot
    (
        "from: teacher, to: bridge, loss: kl",
        "from: bridge, to: teacher, loss: kl",
        "bad.yaml:13: 'teacher' has nothing that could learn.",
    ),
    (
        "from: mean, to: peer, pairs",
        "from: peer, to: mean, pairs",
        "bad.yaml:14: 'mean' has nothing that could learn",
    ),
    (
        "from: all, to: leader",
        "from: leader, to: all",
        "bad.yaml:17: 'all' has nothing that could learn",
    ),
    (
        "from: mean, to: peer, pairs: others",
        "from: peer, to: mean_1",
        "bad.yaml:14: 'mean_1' has nothing that could learn",
    ),
    # what nodes are made of
    (
        "{mean_of: peer, decay: 0.99}",
        "{mean_of: gate}",
        "bad.yaml:6: 'gate' has no weights to average. Name a trained network.",
    ),
    (
        "{mean_of: peer, decay: 0.99}",
        "{mean_of: mean}",
        "bad.yaml:6: the node 'mean' is made of itself",
    ),
    (
        "{mean_of: peer, decay: 0.99}",
        "{mean_of: peer, decay: 1.0}",
        "bad.yaml:6: 'nodes.mean.decay' (it is 1.0): input should be less than 1",
    ),
    (
        "{ensemble_of: [teacher, peer], by: mean probabilities}",
        "{ensemble_of: [teacher, others], by: mean logits}\n  x: {ensemble_of: y, by: gate}\n"
        "  y: {ensemble_of: [x, peer], by: mean logits}",
        "bad.yaml:11: the node 'x' is made of itself. Break the circle.",
    ),
    (
        "{ensemble_of: peer, by: gate}",
        "{ensemble_of: mean, by: gate}",
        "bad.yaml:7: 'gate' needs networks",
    ),
    (
        "{ensemble_of: peer, by: gate}",
        "{ensemble_of: [teacher, peer], by: gate}",
        "bad.yaml:7: a gate looks at stages that its networks share, and they share none",
    ),
    (
        "{ensemble_of: peer, by: gate}",
        "{ensemble_of: peer}",
        "bad.yaml:7: 'nodes.gate': an ensemble needs 'by'",
    ),
    (
        "{ensemble_of: peer, by: gate}",
        "{ensemble_of: [], by: gate}",
        "bad.yaml:7: 'nodes.gate.ensemble_of'",
    ),
    (
        "{ensemble_of: peer, by: attention}",
        "{ensemble_of: [peer, leader], by: attention}",
        "bad.yaml:8: 'attention' needs one set",
    ),
    (
        "{ensemble_of: peer, by: attention}",
        "{ensemble_of: leader, by: attention}",
        "bad.yaml:8: 'attention' needs one set",
    ),
    (
        "{ensemble_of: peer, by: attention}",
        "{ensemble_of: peer_0, by: attention}",
        "bad.yaml:8: 'attention' needs one set",
    ),
    (
        "{ensemble_of: peer, by: mean logits, without: own}",
        "{ensemble_of: peer_0, by: mean logits, without: own}",
        "bad.yaml:9: 'without: own' needs one set",
    ),
    (
        "{ensemble_of: peer, by: mean logits, without: own}",
        "{ensemble_of: leader, by: mean logits, without: own}",
        "bad.yaml:9: 'without: own' needs one set",
    ),
    (
        "{ensemble_of: peer, by: gate}",
        "{ensemble_of: peer, by: gate, without: own}",
        "bad.yaml:7: 'nodes.gate': only means can leave a member out",
    ),
    ("{bridge_of: teacher}", "{bridge_of: peer}", "bad.yaml:3: 'peer' is no single network"),
    ("{bridge_of: teacher}", "{bridge_of: mean}", "bad.yaml:3: 'mean' is no single network"),
    (
        "{ensemble_of: [teacher, peer], by: mean probabilities}",
        "{ensemble_of: [teacher, peer], by: mean probabilities, supervised: 1}",
        "bad.yaml:10: 'nodes.all': has nothing that a loss by labels could change",
    ),
    # nothing of a teacher ships
    ("{one: leader}", "{one: all}", "bad.yaml:18: a teacher cannot ship"),
    ("{one: leader}", "{one: bridge}", "bad.yaml:18: a teacher cannot ship"),
    ("{one: leader}", "{one: mix}", "bad.yaml:18: 'mix' is a set, not one node"),
    # views are of networks
    ("views: peer", "views: gate", "bad.yaml:11: 'gate' takes no images of its own"),
    ("views: peer", "views: [peer, mean]", "bad.yaml:11: 'mean' takes no images of its own"),
    # in turn
    (
        "views: peer",
        "update: alternating",
        "bad.yaml:11: networks can only be updated in turn where they have nothing in common",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), REFUSED_IN_RICH)
def test_a_wrong_node_names_the_line(old: str, new: str, message: str) -> None:
    told = refused(changed(RICH, old, new))
    assert told.startswith(message), told


def test_a_gate_without_shared_stages() -> None:
    text = load_method("one").text.replace(", share: all but last", "")
    told = refused(text)
    assert told.startswith("bad.yaml:8: a gate looks at stages that its networks share, and they")


# What is refused for a number of students.

REFUSED_FOR_ONE = {
    "kd_ml": "kd_ml.yaml:11: the link from 'student' to 'student' needs at least two students",
    "dml": "dml.yaml:10: the link from 'student' to 'student' needs at least two students",
    "dml_e": "dml_e.yaml:8: 'others' needs at least two students, and the experiment has one",
    "cml": "cml.yaml:12: the link from 'student' to 'student' needs at least two students",
    "pcl": "pcl.yaml:14: the link from 'mean' to 'peer' needs at least two students",
    "pcl_e": "pcl_e.yaml:12: the link from 'mean' to 'peer' needs at least two students",
    "learning_styles": "learning_styles.yaml:14: there is no 'student_1' among one student",
}


@pytest.mark.parametrize("name", NEED_TWO)
def test_peers_need_a_second_student(name: str) -> None:
    with pytest.raises(MethodError) as error:
        expand(load_method(name), 1)
    assert str(error.value).startswith(REFUSED_FOR_ONE[name]), error.value


def test_a_member_that_is_not_there() -> None:
    text = changed(GOOD, "from: teacher, to: student", "from: teacher, to: student_4")
    assert refused(text, 3) == (
        "bad.yaml:5: there is no 'student_4' among 3 students. Add students to train.students, or "
        "name another one."
    )
    text = changed(GOOD, "{ensemble: student}", "{one: student_4}")
    assert refused(text, 3).startswith("bad.yaml:7: there is no 'student_4' among 3 students")


def test_a_link_that_stands_twice_is_refused() -> None:
    twice = changed(GOOD, "links:\n", "links:\n  - {from: teacher, to: student, loss: kl}\n")
    assert refused(twice, 2).startswith(
        "bad.yaml:6: the link from 'teacher' to 'student_0' stands twice. Keep one"
    )


CIRCLES = [
    (
        "{from: student, to: student, loss: kl}",
        "{from: student, to: student, loss: kl, detach: false}",
        "bad.yaml:6: gradients would flow in a circle through 'student_",
    ),
    (
        "{from: student, to: student, loss: kl}",
        "{from: teacher, to: student, loss: js, detach: false}\n"
        "  - {from: student, to: teacher, loss: js, detach: false}",
        "bad.yaml:6: gradients would flow in a circle through 'teacher'",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), CIRCLES)
def test_gradients_in_a_circle_are_refused(old: str, new: str, message: str) -> None:
    told = refused(changed(GOOD, old, new), 2)
    assert told.startswith(message), told
