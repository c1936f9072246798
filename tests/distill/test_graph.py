"""Methods as YAML, and what they expand to."""

from __future__ import annotations

from pathlib import Path

import pytest

from medkd.distill.graph import Graph, expand
from medkd.distill.method import load_method, method_names, parse_method
from medkd.errors import MethodError
from tests.distill.hand_made import METHODS, NEED_TWO
from tests.distill.texts import GOOD, RICH, changed

# The methods that come with medkd.


def test_the_methods_that_there_are() -> None:
    assert method_names() == tuple(sorted(METHODS))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_short_and_tells_its_source(name: str) -> None:
    method = load_method(name)
    assert method.spec.description
    assert method.spec.source or name == "independent"
    assert len(method.text.splitlines()) <= 25
    comments = [line for line in method.text.splitlines() if line.startswith("#")]
    assert len(comments) >= 2


@pytest.mark.parametrize("students", [1, 2, 3, 5])
@pytest.mark.parametrize("name", METHODS)
def test_for_how_many_students(name: str, students: int) -> None:
    if students == 1 and name in NEED_TWO:
        with pytest.raises(MethodError, match=rf"^{name}\.yaml:\d+: "):
            expand(load_method(name), 1)
    else:
        assert expand(load_method(name), students).nodes


# What ships, by hand from each paper, for two students.
DEPLOYED = dict.fromkeys(METHODS, ("student_0", "student_1")) | {
    "pcl": ("peer_0",),
    "pcl_e": ("all_peers",),
    "one": ("branch_0",),
    "okddip": ("leader",),
}


@pytest.mark.parametrize("name", METHODS)
def test_what_ships(name: str) -> None:
    graph = expand(load_method(name), 2)
    assert graph.deployed == DEPLOYED[name]
    assert not graph.chosen_by_validation
    for node in graph.deployed:
        assert all(part.role != "teacher" for part in graph.made_of(node))


# What a method expands to.


def test_a_set_expands_to_all_pairs_and_never_to_itself() -> None:
    graph = expand(parse_method(GOOD, "good"), 3)
    assert [node.name for node in graph.nodes] == ["teacher", "student_0", "student_1", "student_2"]
    assert targets(graph) == {
        "student_0/kl_from_teacher": ("teacher",),
        "student_1/kl_from_teacher": ("teacher",),
        "student_2/kl_from_teacher": ("teacher",),
        "student_0/kl_from_student": ("student_1", "student_2"),
        "student_1/kl_from_student": ("student_0", "student_2"),
        "student_2/kl_from_student": ("student_0", "student_1"),
    }
    assert graph.deployed == ("student_0", "student_1", "student_2")


def targets(graph: Graph) -> dict[str, tuple[str, ...]]:
    return {link.name: link.targets for link in graph.links}


def test_every_kind_of_node() -> None:
    graph = expand(parse_method(RICH, "rich"), 2)
    nodes = {node.name: node for node in graph.nodes}
    assert {name: node.role for name, node in nodes.items()} == {
        "teacher": "teacher",
        "bridge": "bridge",
        "peer_0": "student",
        "peer_1": "student",
        "leader": "student",
        "mean_0": "mean",
        "mean_1": "mean",
        "gate": "ensemble",
        "mix_0": "ensemble",
        "mix_1": "ensemble",
        "others_0": "ensemble",
        "others_1": "ensemble",
        "all": "ensemble",
    }
    # Attention and means have no loss by labels, nor has what is frozen.
    supervised = {name for name, node in nodes.items() if node.supervised}
    assert supervised == {"bridge", "peer_0", "peer_1", "leader", "gate"}
    assert {name: node.view for name, node in nodes.items() if node.view} == {
        "peer_1": 1,
        "mean_1": 1,
    }
    assert graph.views == 2
    assert nodes["bridge"].sources == ("teacher",)
    assert nodes["mean_1"].sources == ("peer_1",)
    assert nodes["mix_1"].sources == ("peer_0", "peer_1")
    assert nodes["others_0"].sources == ("peer_1",)
    assert nodes["all"].sources == ("teacher", "peer_0", "peer_1")
    assert {nodes[n].trunk for n in ("peer_0", "peer_1", "leader")} == {"peer_trunk"}
    assert nodes["mean_0"].decay == 0.99
    assert nodes["mean_0"].warm_start
    assert targets(graph) == {
        "bridge/kl_from_teacher": ("teacher",),
        "peer_0/kl_from_mean": ("mean_1",),
        "peer_1/kl_from_mean": ("mean_0",),
        "peer_0/kl_from_mix": ("mix_0",),
        "peer_1/kl_from_mix": ("mix_1",),
        "peer_0/attention_on_stage-1_from_bridge": ("bridge",),
        "peer_1/attention_on_stage-1_from_bridge": ("bridge",),
        "leader/js_from_all": ("all",),
    }
    settings = {link.name: link.settings for link in graph.links}
    assert settings["leader/js_from_all"] == {"temperature": 2}
    assert settings["peer_0/kl_from_mean"] == {"temperature": 1}
    assert settings["peer_0/attention_on_stage-1_from_bridge"] == {}
    detached = {link.name for link in graph.links if not link.detach}
    assert detached == {"peer_0/kl_from_mix", "peer_1/kl_from_mix"}


def test_a_node_comes_after_those_that_it_is_made_of() -> None:
    text = """\
nodes:
  all: {ensemble_of: mean, by: mean logits}
  mean: {mean_of: student}
  student: {network: students}
links:
  - {from: all, to: student, loss: kl}
deploy: {one: all}
"""
    names = [node.name for node in expand(parse_method(text, "mine"), 2).nodes]
    assert names == ["student_0", "student_1", "mean_0", "mean_1", "all"]


def test_members_of_a_set_can_be_named() -> None:
    text = changed(GOOD, "from: teacher, to: student", "from: teacher, to: student_1")
    graph = expand(parse_method(text, "mine"), 2)
    assert "student_1/kl_from_teacher" in targets(graph)
    assert "student_0/kl_from_teacher" not in targets(graph)


def test_the_best_of_a_set_ships() -> None:
    text = changed(GOOD, "{ensemble: student}", "{best_of: student}")
    graph = expand(parse_method(text, "mine"), 3)
    assert graph.chosen_by_validation
    assert graph.deployed == ("student_0", "student_1", "student_2")


def test_every_node_and_link_knows_its_line() -> None:
    graph = expand(parse_method(RICH, "rich"), 2)
    assert graph.node("peer_1").where == "rich.yaml:4"
    assert graph.node("mix_0").where == "rich.yaml:8"
    assert [link.where for link in graph.links if link.learner == "peer_0"] == [
        "rich.yaml:14",
        "rich.yaml:15",
        "rich.yaml:16",
    ]


def test_a_method_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    method = load_method(str(path))
    assert method.name == "mine"
    assert targets(expand(method, 2)) == targets(expand(parse_method(GOOD, "mine"), 2))
    with pytest.raises(MethodError, match=r"absent\.yaml: no such file"):
        load_method(str(tmp_path / "absent.yaml"))
    path.write_text(changed(GOOD, "kl, temp", "kll, temp"))
    with pytest.raises(MethodError, match=rf"^{path}:5: 'links.0.loss'"):
        load_method(str(path))


def test_unknown_method() -> None:
    with pytest.raises(MethodError, match=r"unknown method 'kdml'. Did you mean 'kd_ml'\?"):
        load_method("kdml")


def test_one_for_all_the_others() -> None:
    """A member that teaches its set does not teach itself, and that is no fault."""
    text = changed(
        GOOD, "{from: student, to: student, loss: kl}", "{from: student_0, to: student, loss: kl}"
    )
    graph = expand(parse_method(text, "mine"), 3)
    assert {n: t for n, t in targets(graph).items() if "teacher" not in n} == {
        "student_1/kl_from_student_0": ("student_0",),
        "student_2/kl_from_student_0": ("student_0",),
    }


def test_the_same_link_on_other_features_is_another_link() -> None:
    text = changed(
        GOOD,
        "loss: kl, temperature: 4}",
        "loss: attention, on: stage 0}\n"
        "  - {from: teacher, to: student, loss: attention, on: stage 1}",
    )
    names = targets(expand(parse_method(text, "mine"), 2))
    assert "student_0/attention_on_stage0_from_teacher" in names
    assert "student_0/attention_on_stage1_from_teacher" in names


def test_one_way_without_detaching_is_allowed() -> None:
    text = changed(GOOD, "temperature: 4}", "temperature: 4, detach: false}")
    assert expand(parse_method(text, "mine"), 2).links


@pytest.mark.parametrize("name", ["kd_frozen", "cml", "sokd", "sokd_features"])
def test_what_is_frozen_is_trained_first_by_its_labels_alone(name: str) -> None:
    graph = expand(load_method(name), 3).first("teacher")
    (node,) = graph.nodes
    assert (node.name, node.role, node.frozen, node.supervised) == ("teacher", "teacher", False, 1)
    assert (graph.links, graph.views, graph.update) == ((), 1, "simultaneous")


def test_what_a_node_needs_to_predict() -> None:
    graph = expand(parse_method(RICH, "rich"), 2)
    needed = {node.name: {one.name for one in graph.made_of(node.name)} for node in graph.nodes}
    peers = {"peer_0", "peer_1"}
    assert needed == {
        "teacher": {"teacher"},
        "bridge": {"bridge", "teacher"},
        "peer_0": {"peer_0"},
        "peer_1": {"peer_1"},
        "leader": {"leader"},
        # Its weights are its own, though they follow those of the peer.
        "mean_0": {"mean_0"},
        "mean_1": {"mean_1"},
        "gate": {"gate", *peers},
        "mix_0": {"mix_0", *peers},
        "mix_1": {"mix_1", *peers},
        "others_0": {"others_0", "peer_1"},
        "others_1": {"others_1", "peer_0"},
        "all": {"all", "teacher", *peers},
    }
