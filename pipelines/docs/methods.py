"""Write docs/methods.md and the drawings in it, from the methods' files and the code.

    python pipelines/docs/methods.py

What is written by hand stands in methods_template.md and method_notes.py beside this file.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parents[1])]

from method_formulas import Formula, loss_formulas, node_formulas, ramp_formulas  # noqa: E402
from method_notes import NOTES  # noqa: E402
from method_words import linked, losses, words_of_a_file  # noqa: E402

from medkd.distill.describe import shared_words  # noqa: E402
from medkd.distill.drawing import write_drawing  # noqa: E402
from medkd.distill.method import Method, is_set, load_method, method_names  # noqa: E402
from medkd.files import write_bytes, write_text  # noqa: E402

PAGE = _HERE.parents[1] / "docs" / "methods.md"
PICTURES = PAGE.parent / "pictures" / "methods"
OWN = _HERE / "kd_from_means.yaml"


def methods_shown() -> list[Method]:
    """Every method that comes along, in the order of the page.

    Raises:
        ValueError: a method has no note, or a note has no method.
    """
    if set(NOTES) != set(method_names()):
        different = ", ".join(sorted(set(NOTES) ^ set(method_names())))
        raise ValueError(f"method_notes.py and the methods differ: {different}")
    return [load_method(name) for name in NOTES]


def page() -> str:
    """The text of docs/methods.md."""
    methods = methods_shown()
    own = load_method(str(OWN))
    parts = {
        "overview": _overview(methods),
        "methods": "\n\n".join(_section(method) for method in methods),
        "losses": losses(),
        "words": words_of_a_file(),
        "own_file": own.text,
        "own": _computed(own),
    }
    text = (_HERE / "methods_template.md").read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(f"%%{name}%%", part)
    return text


def write_pictures(folder: Path) -> list[Path]:
    """Draw every method of the page to ``folder`` as SVG; returns the files."""
    pictures = []
    with tempfile.TemporaryDirectory() as scratch:
        for method in (*methods_shown(), load_method(str(OWN))):
            svg, _ = write_drawing(method, Path(scratch))
            pictures.append(folder / svg.name)
            write_bytes(pictures[-1], svg.read_bytes())
    return pictures


def main() -> None:
    """Write page and pictures."""
    write_text(PAGE, page())
    for picture in write_pictures(PICTURES):
        print(picture)
    print(PAGE)


def _overview(methods: list[Method]) -> str:
    lines = ["| method | what it does | source |", "|---|---|---|"]
    for method in methods:
        spec = method.spec
        lines.append(
            f"| [`{method.name}`](#{method.name}) | {spec.description} | {linked(spec.source)} |"
        )
    return "\n".join(lines)


def _source(method: Method) -> str:
    source = method.spec.source
    return f"Source: {linked(source)}." if source else ""


def _section(method: Method) -> str:
    return "\n\n".join(
        [
            f"### {method.name}",
            f"{_sentence(method.spec.description)} {_source(method)}".strip(),
            NOTES[method.name].strip(),
            _computed(method),
            f"```yaml\n{method.text.rstrip()}\n```",
        ]
    )


def _computed(method: Method) -> str:
    """Drawing, formulas, and what ships."""
    spec = method.spec
    parts = [f"![Drawing of {method.name}](pictures/methods/{method.name}.svg)"]
    parts += _told_of_networks(method)
    for formula in loss_formulas(method):
        if formula.remark:
            parts.append(f"For {formula.remark}:")
        parts.append(_shown(formula))
    for words, formula in node_formulas(method):
        parts += [words, _shown(formula)]
    for formula in ramp_formulas(method):
        parts += ["The weight grows:", _shown(formula)]
    if spec.views:
        names = _listed([f"`{name}`" for name in spec.views])
        means = any(node.mean_of for node in spec.nodes.values())
        parts.append(
            f"Every node of {names} sees an augmentation of its own"
            + ("; a mean sees that of what it averages." if means else ".")
        )
    parts.append(f"**Ships:** {_ships(method)}")
    return "\n\n".join(parts)


def _told_of_networks(method: Method) -> list[str]:
    """What is frozen, and what is shared."""
    told = []
    for name, node in method.spec.nodes.items():
        if node.frozen:
            told.append(
                f"`{name}` was trained beforehand, by its cross-entropy alone; it stays as it is, "
                "in evaluation mode."
            )
        if node.share is not None:
            with_it = [n for n, other in method.spec.nodes.items() if other.share_with == name]
            names = _listed([f"`{n}`" for n in (name, *with_it)])
            told.append(f"All networks of {names} have {shared_words(node.share)} in common.")
    return told


def _shown(formula: Formula) -> str:
    return f"```math\n{formula.tex}\n```"


def _ships(method: Method) -> str:
    deploy, spec = method.spec.deploy, method.spec
    assert deploy.node is not None
    if deploy.rule == "one":
        return f"`{deploy.node}` alone."
    if deploy.rule == "best_of":
        return f"the node of `{deploy.node}` that does best on validation data."
    if not is_set(deploy.node, spec):
        return f"`{deploy.node}`."
    return (
        f"all of `{deploy.node}`, as the mean of their probabilities, "
        f"$`\\frac{{1}}{{K}} \\sum_j p_{{\\mathrm{{{deploy.node}}}_j}}`$."
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


if __name__ == "__main__":
    main()
