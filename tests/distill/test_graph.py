"""Methods as YAML: what they expand to, and what is refused with the line to mend."""

from __future__ import annotations

import pytest

from medkd.distill.graph import expand
from medkd.distill.method import load_method, method_names, parse_method
from medkd.errors import MethodError

GOOD = """\
nodes:
  teacher: {network: teacher}
  student: {network: students}
links:
  - {from: teacher, to: student, loss: kl, temperature: 4}
  - {from: student, to: student, loss: kl}
deploy: {ensemble: student}
"""


def test_every_method_loads_and_is_short() -> None:
    assert method_names() == ("dml", "independent", "kd", "kd_ml")
    for name in method_names():
        method = load_method(name)
        assert method.spec.description
        assert len(method.text.splitlines()) <= 25
        expand(method, 2)


def test_a_set_expands_to_all_pairs_and_never_to_itself() -> None:
    graph = expand(parse_method(GOOD, "good"), 3)
    assert [node.name for node in graph.nodes] == ["teacher", "student_0", "student_1", "student_2"]
    links = {link.name: link.targets for link in graph.links}
    assert links == {
        "student_0/kl_from_teacher": ("teacher",),
        "student_1/kl_from_teacher": ("teacher",),
        "student_2/kl_from_teacher": ("teacher",),
        "student_0/kl_from_student": ("student_1", "student_2"),
        "student_1/kl_from_student": ("student_0", "student_2"),
        "student_2/kl_from_student": ("student_0", "student_1"),
    }
    assert graph.deployed == ("student_0", "student_1", "student_2")


def test_a_method_from_a_file(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    assert load_method(str(path)).name == "mine"
    with pytest.raises(MethodError, match=r"absent\.yaml: no such file"):
        load_method(str(tmp_path / "absent.yaml"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "to: student, loss: kl, t",
            "to: studnt, loss: kl, t",
            r"bad.yaml:5: unknown node 'studnt'. Did you mean 'student'\?",
        ),
        ("from: teacher", "from: pupil", r"bad.yaml:5: unknown node 'pupil'. Known here: teacher"),
        (
            "temperature: 4",
            "temperature: 0",
            r"bad.yaml:5: 'links.0.temperature' \(it is 0\): input should be greater than 0",
        ),
        (
            "temperature: 4",
            "weight: -1",
            r"bad.yaml:5: 'links.0.weight' \(it is -1\): input should be greater than or",
        ),
        (
            "temperature: 4",
            "temprature: 4",
            r"bad.yaml:5: unknown key 'links.0.temprature'. Did you mean 'temperature'\?",
        ),
        ("loss: kl, temperature", "loss: l3, temperature", r"bad.yaml:5: 'links.0.loss'"),
        ("{ensemble: student}", "{ensemble: teacher}", r"bad.yaml:7: a teacher cannot ship"),
        ("{ensemble: student}", "{ensemble: pupils}", r"bad.yaml:7: unknown node 'pupils'"),
        (
            "from: teacher, to: student",
            "from: teacher, to: teacher",
            r"bad.yaml:5: a link from 'teacher' to itself",
        ),
        (
            "{network: teacher}",
            "{network: teacher, supervised: 0}",
            r"bad.yaml:2: the node 'teacher' learns from nothing",
        ),
        (
            "  student: {n",
            "  extra: {network: teacher}\n  student: {n",
            r"bad.yaml:2: two nodes take the network 'teacher'",
        ),
        ("deploy:", "links: []\ndeploy:", r"bad.yaml:7: the key 'links' stands twice"),
        ("nodes:", "nodes: [", r"bad.yaml:\d+: not valid YAML"),
    ],
)
def test_a_wrong_graph_names_the_line(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(MethodError) as error:
        parse_method(GOOD.replace(old, new, 1), "bad")
    assert error.match("^" + message)
    assert "\n" not in str(error.value)


def test_peers_need_a_second_student() -> None:
    with pytest.raises(MethodError, match=r"good.yaml:6: .* needs at least two students"):
        expand(parse_method(GOOD, "good"), 1)
    assert expand(load_method("kd"), 1).deployed == ("student_0",)


def test_a_link_that_stands_twice_is_refused() -> None:
    twice = GOOD.replace(
        "links:\n", "links:\n  - {from: teacher, to: student, loss: kl, temperature: 1}\n"
    )
    with pytest.raises(MethodError, match=r"twice.yaml:5: .* stands twice"):
        expand(parse_method(twice, "twice"), 2)


def test_unknown_method() -> None:
    with pytest.raises(MethodError, match=r"unknown method 'kdml'. Did you mean 'kd_ml'\?"):
        load_method("kdml")
