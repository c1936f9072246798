from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import pytest

from medkd.inference.engine import Students, infer_slide
from medkd.inference.infer_stage import build_result
from medkd.inference.package import load_package
from medkd.inference.report import report_html, score_scale
from medkd.inference.result import Gate, Quality, Synthetic

EVIL = '<script>alert("1")</script>'
TIMING = {"read": 1.0, "total": 2.5}


class Seen(HTMLParser):
    """Collects tags with their attributes, and the text that is shown."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.shown = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.shown += data


@pytest.fixture(scope="module")
def package(package_folder):
    return load_package(package_folder)


@pytest.fixture(scope="module")
def result(package, flat_slide):
    return build_result(infer_slide(flat_slide, package, Students(package)), package, TIMING)


def html(result, package) -> str:
    return report_html(result, package.manifest, b"the picture")


def test_one_file_that_loads_nothing(result, package):
    text = html(result, package)
    seen = Seen(text)
    names = {tag for tag, _ in seen.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form", "a"}
    for _, attributes in seen.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "data", "action", "background", "style"):
                assert value.startswith("data:image/png;base64,")
    assert "url(" not in text
    assert "@import" not in text
    # The one address is the name of SVG, which nobody fetches.
    assert set(re.findall(r"https?:[^\s\"'<>]*", text)) == {"http://www.w3.org/2000/svg"}


def test_the_picture_is_inside(result, package):
    (image,) = re.findall(r"data:image/png;base64,([^\"]*)", html(result, package))
    assert base64.b64decode(image) == b"the picture"


def test_what_it_says(result, package):
    shown = Seen(html(result, package)).shown
    for text in (
        "MSI suspected",
        "Confirm by immunohistochemistry or PCR.",
        "Research use only",
        "no call may guide the care of a patient",
        f"{result.students['student1']:.3f}",
        f"{result.probability_msi:.3f}",
        f"{result.interval[0]:.3f} to {result.interval[1]:.3f}",
        package.sha256,
        "by-hand 1",
        "kd_ml",
        "chosen on 2026-01-02 on 18 validation patients, 8 of them positive",
        "rejected: out of focus",
        "2.5 s",
    ):
        assert text in shown, text


def test_synthetic_is_said_where_it_is_so(result, package):
    def shown(**synthetic) -> str:
        return Seen(
            html(result.model_copy(update={"synthetic": Synthetic(**synthetic)}), package)
        ).shown

    assert "synthetic" not in shown(slide=False, model=False).lower()
    slide = shown(slide=True, model=False)
    assert "This slide is synthetic: it was drawn, not scanned." in slide
    assert "trained on synthetic" not in slide
    model = shown(slide=False, model=True)
    assert "The model was trained on synthetic slides" in model
    assert "This slide is synthetic" not in model


def test_html_in_values_is_shown_as_text(result, package):
    provenance = package.manifest.provenance.model_copy(
        update={"method": EVIL, "run_id": EVIL, "patients": {EVIL: 1}, "data_digest": EVIL}
    )
    manifest = package.manifest.model_copy(update={"provenance": provenance, "positive": EVIL})
    evil = result.model_copy(
        update={
            "slide_id": EVIL,
            "call": EVIL,
            "reasons": (EVIL,),
            "students": {EVIL: 0.5},
            "qc": Quality(
                gates=(Gate(name=EVIL, value=1, limit=2, passed=False),), warnings=(EVIL,)
            ),
            "mpp": result.mpp.model_copy(update={"source": EVIL}),
            "model": result.model.model_copy(update={"name": EVIL, "version": EVIL}),
            "software": {EVIL: EVIL},
            "operating_point": result.operating_point.model_copy(
                update={"method": EVIL, "cohort": EVIL, "date": EVIL}
            ),
        }
    )
    text = report_html(evil, manifest, b"")
    assert "<script" not in text
    seen = Seen(text)
    assert "script" not in {tag for tag, _ in seen.tags}
    # Slide id, call, reason, student, gate, warning, source, model twice, method, run id, role,
    # operating point three times, software twice, and positive in the scale.
    assert seen.shown.count(EVIL) >= 18
    alternatives = [attributes["alt"] for tag, attributes in seen.tags if tag == "img"]
    assert alternatives == [f"Thumbnail and heatmap of {EVIL}"]


def test_the_scale(result):
    scale = str(score_scale(result, "MSI"))
    # 0 lies at 14 and 1 at 386.
    score, (lower, upper) = result.probability_msi, result.interval
    assert f'cx="{14 + 372 * score:.1f}"' in scale
    assert f'<rect x="{14 + 372 * lower:.1f}" y="54" width="{372 * (upper - lower):.1f}"' in scale
    assert 'x1="200.0" x2="200.0"' in scale
    assert "operating point 0.50" in scale


def test_an_operating_point_that_fixed_no_sensitivity_names_none(result, package):
    shown = Seen(html(result, package)).shown
    assert "(95%), chosen on" in shown
    point = result.operating_point.model_copy(
        update={"method": "largest index", "target_sensitivity": None}
    )
    shown = Seen(html(result.model_copy(update={"operating_point": point}), package)).shown
    assert "largest index, chosen on" in shown


def test_no_result_shows_no_score(result, package):
    none = result.model_copy(
        update={
            "call": "no result",
            "reasons": ("3 tiles are usable; 10 are needed.",),
            "probability_msi": None,
            "interval": None,
            "students": {},
            "disagreement": None,
        }
    )
    text = html(none, package)
    shown = Seen(text).shown
    assert "no result" in shown
    assert "3 tiles are usable" in shown
    assert "interval over tiles" not in shown
    assert "<circle" not in text
