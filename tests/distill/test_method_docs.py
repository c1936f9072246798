"""docs/methods.md says what the methods and the code say, and its formulas are the papers'."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.mathtext import MathTextParser

from medkd.distill.graph import expand
from medkd.distill.links import LOSSES
from medkd.distill.method import Method, load_method, method_names, parse_method
from medkd.distill.schema import MethodSpec

_ROOT = Path(__file__).resolve().parents[2]
_PAGE = _ROOT / "docs" / "methods.md"


@pytest.fixture(scope="module")
def docs() -> Iterator[ModuleType]:
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location(
        "docs_of_methods", _ROOT / "pipelines" / "docs" / "methods.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


@pytest.fixture(scope="module")
def page() -> str:
    return _PAGE.read_text(encoding="utf-8")


def test_the_page_is_what_the_methods_say(docs: ModuleType, page: str) -> None:
    assert docs.page() == page, "run: python pipelines/docs/methods.py"


def test_every_method_has_its_picture(page: str) -> None:
    shown = set(re.findall(r"!\[[^]]+\]\(([^)]+)\)", page))
    names = {*method_names(), "kd_from_means"}
    assert shown == {f"pictures/methods/{name}.svg" for name in names}
    files = {path.name for path in (_ROOT / "docs" / "pictures" / "methods").iterdir()}
    assert files == {f"{name}.svg" for name in names}
    for name in names:
        picture = (_PAGE.parent / f"pictures/methods/{name}.svg").read_text(encoding="utf-8")
        assert f"<!-- {name} -->" in picture


def test_pictures_are_drawn_where_one_says(docs: ModuleType, tmp_path: Path) -> None:
    written = docs.write_pictures(tmp_path / "pictures")
    assert sorted(path.stem for path in written) == sorted([*method_names(), "kd_from_means"])
    assert all(path.read_text(encoding="utf-8").startswith("<?xml") for path in written)


def test_a_method_without_a_note_is_an_error(
    docs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docs, "method_names", lambda: (*method_names(), "newcomer"))
    with pytest.raises(ValueError, match=r"method_notes\.py and the methods differ: newcomer"):
        docs.page()


def test_a_key_without_a_meaning_is_an_error(
    docs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = sys.modules["method_words"]
    monkeypatch.delitem(words._MEANINGS, ("LinkSpec", "temperature"))
    with pytest.raises(ValueError, match=r"LinkSpec\.temperature has no description"):
        docs.page()


def test_every_key_and_loss_is_told(page: str) -> None:
    schema = MethodSpec.model_json_schema()
    parts = [schema, *schema["$defs"].values()]
    for key in (key for part in parts for key in part["properties"]):
        assert f"\n| `{key}` |" in page
    assert len(re.findall(r"^\*\*`\w+`\*\* compares", page, re.M)) == len(LOSSES)


def test_links_within_the_page_lead_somewhere(page: str) -> None:
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
        for line in page.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= headings


def test_every_formula_is_tex(page: str) -> None:
    blocks = re.findall(r"```math\n(.*?)\n```", page, re.S)
    assert len(blocks) > 50
    lines = [line for block in blocks for line in _lines(block)]
    lines += re.findall(r"\$`(.*?)`\$", page)
    parser = MathTextParser("path")
    for line in lines:
        parser.parse(f"${line}$")


def _lines(block: str) -> list[str]:
    """Of an aligned block each line, without what aligns it: mathtext knows no such blocks."""
    kept = [line for line in block.splitlines() if not line.startswith((r"\begin", r"\end"))]
    return [line.removesuffix(r"\\").replace("&", "").strip() for line in kept]


def formulas(method: Method) -> dict[str, list[str]]:
    """Left side and terms of each loss, in letters as one would write them by hand."""
    from method_formulas import loss_formulas

    return {plain(f.left): [plain(term) for term in f.terms] for f in loss_formulas(method)}


def definitions(method: Method) -> list[str]:
    from method_formulas import node_formulas, ramp_formulas

    told = [formula for _, formula in node_formulas(method)] + ramp_formulas(method)
    return [plain(formula.tex) for formula in told]


def plain(tex: str) -> str:
    for command, letters in (
        (r"\mathcal{L}", "L"),
        (r"\bar{p}", "d(p)"),
        (r"\bar{F}", "d(F)"),
        (r"\cdot ", ""),
        (r" \left( ", "("),
        (r" \right)", ")"),
        (r"\, ", ""),
        (r"\neq", "!="),
        (r"\|", "||"),
        (r"\_", " "),
    ):
        tex = tex.replace(command, letters)
    tex = re.sub(r"\\mathrm\{([^}]*)\}", r"\1", tex)
    tex = re.sub(r"\\frac\{([^}]*)\}\{([^}]*)\}", r"\1/(\2)", tex)
    tex = re.sub(r"_\{(\w+(?: \w+)*)\}", r"_\1", tex)
    return re.sub(r"\\(\w)", r"\1", tex)


@pytest.mark.usefixtures("docs")
def test_formulas_of_kd_ml() -> None:
    assert formulas(load_method("kd_ml")) == {
        "L_teacher": ["CE(y, p_teacher)"],
        "L_student_k": [
            "CE(y, p_student_k)",
            "4^2 KL(d(p)^{(4)}_teacher || p^{(4)}_student_k)",
            "1/(K - 1) sum_{j != k} KL(d(p)_student_j || p_student_k)",
        ],
    }


@pytest.mark.usefixtures("docs")
def test_formulas_of_sokd() -> None:
    assert formulas(load_method("sokd")) == {
        "L_bridge": [
            "CE(y, p_bridge)",
            "4^2 KL(d(p)^{(4)}_teacher || p^{(4)}_bridge)",
            "1/(K) sum_j 4^2 KL(d(p)^{(4)}_student_j || p^{(4)}_bridge)",
        ],
        "L_student_k": [
            "CE(y, p_student_k)",
            "4^2 KL(d(p)^{(4)}_bridge || p^{(4)}_student_k)",
        ],
    }
    assert definitions(load_method("sokd")) == ["z_bridge = A(d(F)_teacher)"]


@pytest.mark.usefixtures("docs")
def test_formulas_of_pcl() -> None:
    assert formulas(load_method("pcl")) == {
        "L_peer_k": [
            "CE(y, p_peer_k)",
            "w 3^2 KL(d(p)^{(3)}_all peers || p^{(3)}_peer_k)",
            "w 1/(K - 1) sum_{j != k} 3^2 KL(d(p)^{(3)}_mean_j || p^{(3)}_peer_k)",
        ],
        "L_all peers": ["CE(y, p_all peers)"],
    }
    assert definitions(load_method("pcl"))[1:] == [
        "theta_mean_k leftarrow delta theta_mean_k + (1 - delta) theta_peer_k, "
        "quad delta = min(1 - 1/(g + 1), 0.999)",
        "w = exp(-5 (1 - t)^2), quad t = min(1, e / t_1), quad t_1 = 80/(300) E",
    ]


@pytest.mark.usefixtures("docs")
def test_a_target_that_is_not_detached_has_no_bar() -> None:
    told = formulas(load_method("okddip"))
    assert told["L_peer_k"][1] == "w 3^2 KL(p^{(3)}_mix_k || p^{(3)}_peer_k)"
    assert told["L_leader"][1] == "w 3^2 KL(d(p)^{(3)}_mean || p^{(3)}_leader)"


@pytest.mark.usefixtures("docs")
def test_members_that_links_name_have_formulas_of_their_own() -> None:
    told = formulas(load_method("learning_styles"))
    assert list(told) == ["L_teacher", "L_student_0", "L_student_1", "L_student_k"]
    assert told["L_student_0"][1] == "4^2 KL(d(p)^{(4)}_teacher || p^{(4)}_student_0)"
    assert told["L_student_1"][1:3] == [
        "7.8125 attention(d(F)^{(-1)}_teacher, F^{(-1)}_student_1)",
        "1/(K - 1) sum_{j != 1} KL(d(p)_student_j || p_student_1)",
    ]
    assert len(told["L_student_k"]) == 3


@pytest.mark.usefixtures("docs")
def test_weights_ensembles_and_means_of_ensembles() -> None:
    kdcl = load_method("kdcl")
    assert formulas(kdcl)["L_teacher"] == [
        "0.5 CE(y, p_teacher)",
        "0.5 4^2 KL(d(p)^{(4)}_shared || p^{(4)}_teacher)",
    ]
    assert definitions(kdcl) == ["z_shared = 1/(K + 1)(z_teacher + sum_j z_student_j)"]
    dml_e = definitions(load_method("dml_e"))
    assert dml_e == ["z_others_k = log(1/(K - 1) sum_{j != k} p_student_j)"]


def test_the_example_of_ones_own_method_is_sound(page: str) -> None:
    text = page.partition("## Write your own")[2].partition("```yaml\n")[2].partition("```")[0]
    method = parse_method(text, "kd_from_means")
    for students in (1, 2, 3):
        graph = expand(method, students)
        assert graph.node("means").sources == tuple(f"mean_{k}" for k in range(students))
        assert [link.targets for link in graph.links] == [("means",)] * students
        assert len(graph.deployed) == students
