"""Drawings: nothing lies over anything else, everything is said, and any process can draw."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.transforms import Bbox
from PIL import Image

from medkd.distill.drawing import draw_method, write_drawing
from medkd.distill.drawing_layout import Box, Wire, place, rows_of
from medkd.distill.method import Method, load_method, method_names, parse_method
from medkd.errors import OutputError

TANGLE = """\
nodes:
  teacher: {network: teacher, frozen: true}
  bridge: {bridge_of: teacher, from_stage: -2}
  peer: {network: students, share: 2}
  leader: {network: student, share_with: peer, supervised: 0.25}
  second: {network: student}
  mean: {mean_of: peer, decay: 0.99, warm_start: false}
  everyone: {ensemble_of: [peer, leader, teacher, bridge], by: mean logits}
  some: {ensemble_of: [peer_0, peer_1], by: mean probabilities}
  gate: {ensemble_of: peer, by: gate}
links:
  - {from: teacher, to: peer, loss: dist, temperature: 4, weight: 0.3}
  - {from: teacher, to: bridge, loss: feature_mse, on: {from: stage -2, to: stage -1}}
  - {from: peer, to: bridge, loss: kl}
  - {from: bridge, to: peer, loss: decoupled, temperature: 4, alpha: 2}
  - {from: peer, to: peer, loss: kl, weight: 0.5}
  - {from: peer, to: peer, loss: attention, on: stage -1}
  - {from: peer, to: peer, loss: contrastive}
  - {from: peer, to: leader, loss: kl, temperature: 3, ramp: {cosine: 20 epochs}}
  - {from: leader, to: peer_0, loss: mse}
  - {from: everyone, to: leader, loss: kl}
  - {from: some, to: peer, loss: kl, detach: false}
  - {from: gate, to: peer, loss: kl}
  - {from: mean, to: peer, loss: kl, pairs: others}
  - {from: mean, to: gate, loss: kl}
  - {from: second, to: peer, loss: js, temperature: 2}
deploy: {one: leader}
"""
MEANS = """\
nodes:
  student: {network: students}
  mean: {mean_of: student}
  all_means: {ensemble_of: mean, by: mean probabilities}
links:
  - {from: all_means, to: student, loss: kl, temperature: 2, ramp: {linear: 1000 steps}}
update: simultaneous
deploy: {best_of: mean}
"""


def method_called(name: str) -> Method:
    texts = {"tangle": TANGLE, "means": MEANS}
    return parse_method(texts[name], name) if name in texts else load_method(name)


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def boxes_of(figure: Figure) -> tuple[list[Bbox], list[Bbox]]:
    """Where texts and filled boxes are, in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    patches = [p for p in figure.axes[0].patches if isinstance(p, FancyBboxPatch)]
    return texts, [patch.get_window_extent(renderer) for patch in patches]


def meet(a: Bbox, b: Bbox) -> bool:
    # Lines of text may touch: the extent of a font is taller than its letters.
    overlap = Bbox.intersection(a, b)
    return overlap is not None and overlap.width > 1 and overlap.height > 3


def contains(outer: Bbox, inner: Bbox) -> bool:
    return bool(
        outer.x0 <= inner.x0 + 1
        and outer.x1 >= inner.x1 - 1
        and outer.y0 <= inner.y0 + 2
        and outer.y1 >= inner.y1 - 2
    )


@pytest.mark.parametrize("name", [*method_names(), "tangle", "means"])
def test_no_text_lies_over_another_text_or_the_edge_of_a_box(name: str) -> None:
    figure = draw_method(method_called(name))
    texts, boxes = boxes_of(figure)
    told = words(figure)
    page = figure.bbox
    for number, text in enumerate(texts):
        assert contains(page, text), told[number]
        for box in boxes:
            assert not meet(text, box) or contains(box, text), told[number]
    for (i, a), (j, b) in combinations(enumerate(texts), 2):
        assert not meet(a, b), (told[i], told[j])


@pytest.mark.parametrize("name", method_names())
def test_a_drawing_says_every_node_and_link(name: str) -> None:
    method = load_method(name)
    figure = draw_method(method)
    told = words(figure)
    assert set(method.spec.nodes) <= set(told)
    assert sum("ships" in line for line in told) == 1
    for link in method.spec.links:
        assert any(link.loss in line for line in told)
    heads = [
        patch
        for patch in figure.axes[0].patches
        if isinstance(patch, FancyArrowPatch) and patch.get_linestyle() in ("solid", "-")
    ]
    assert len(heads) == len(method.spec.links)
    assert figure.get_size_inches()[0] <= 9


def test_the_words_of_okddip() -> None:
    told = words(draw_method(load_method("okddip")))
    assert told.count("kl, T = 3") == 2
    assert told.count("not detached") == 1
    assert told.count("exponential ramp,") == 2
    assert "each from its own" in told
    assert "shares stages with peer" in told
    assert told.count("× K") == 2
    assert told.count("CE") == 2


def test_weights_are_said_where_they_are_not_one() -> None:
    told = words(draw_method(load_method("kdcl")))
    assert told.count("0.5 CE") == 2
    assert told.count("0.5 × kl, T = 4") == 2
    assert "its own view" in told


def test_networks_that_are_updated_in_turn() -> None:
    text = load_method("dml").text.replace("update: simultaneous", "update: alternating")
    told = words(draw_method(parse_method(text, "dml")))
    assert any("updated in turn" in line for line in told)


def test_rows_have_the_teacher_on_top_and_students_below() -> None:
    assert rows_of(load_method("sokd").spec) == {"student": 0, "bridge": 1, "teacher": 2}
    assert rows_of(load_method("okddip").spec) == {"peer": 0, "leader": 0, "mix": 1, "mean": 1}
    assert rows_of(method_called("means").spec) == {"student": 0, "mean": 1, "all_means": 2}
    # A link between two means of one row would run through it.
    assert rows_of(method_called("tangle").spec)["gate"] == 2


def test_wires_are_straight_where_boxes_can_be_placed_so() -> None:
    boxes = [Box("top", 2, 1, 0.5), Box("left", 1, 1, 0.5), Box("right", 1, 1, 0.5)]
    boxes.append(Box("bottom", 0, 1, 0.5))
    wires = [Wire(0, "top", "bottom", (0.8, 0.3)), Wire(1, "top", "left"), Wire(2, "top", "right")]
    wires += [Wire(3, "left", "bottom", (1.0, 0.2)), Wire(4, "right", "bottom")]
    layout = place(boxes, wires)
    for wire in layout.wires.values():
        assert wire.x == wire.upper_x == wire.lower_x
    left, right = layout.boxes["left"], layout.boxes["right"]
    assert left.right < right.left or right.right < left.left
    passing = layout.wires[0].x
    assert not left.left <= passing <= left.right
    assert not right.left <= passing <= right.right


def test_files_are_written_and_always_the_same(tmp_path: Path) -> None:
    method = load_method("pcl")
    svg, png = write_drawing(method, tmp_path / "new" / "folder")
    assert (svg.name, png.name) == ("pcl.svg", "pcl.png")
    assert svg.read_text(encoding="utf-8").startswith("<?xml")
    with Image.open(png) as image:
        assert image.width > 900
    again, _ = write_drawing(method, tmp_path / "again")
    assert again.read_bytes() == svg.read_bytes()


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a file stands where a folder is needed"):
        write_drawing(load_method("dml"), tmp_path / "file")


def test_drawing_needs_no_display_and_no_pyplot(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from medkd.distill.drawing import write_drawing\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from medkd.distill.method import load_method\n"
        "write_drawing(load_method('dml'), Path('.'))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "DISPLAY"}
    subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        check=True,
        env={**environment, "MPLBACKEND": "tkagg"},
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dml.png", "dml.svg"]
