"""Slides of another kind than those of training: told, with reasons, and nothing else is."""

from __future__ import annotations

import json
import math
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pypdfium2
import pytest
from PIL import Image

from medkd.errors import ModelPackageError
from medkd.inference.engine import infer_slide
from medkd.inference.infer_stage import build_result, infer_slides
from medkd.inference.package import ModelPackage, freeze_decisions, load_package
from medkd.inference.recheck import recheck, reproduces
from medkd.inference.report import report_html
from medkd.inference.report_pdf import report_pdf
from medkd.inference.students import Students
from medkd.slide_level.feature_file import FEATURE_FILE, feature_row
from medkd.slide_level.out_of_distribution import FILE, nothing_checked
from medkd.slide_level.out_of_distribution_fit import fit_checks
from medkd.slide_level.slide_features import TileSums
from medkd.slides.synthetic import SITES, SlideSpec, write_slide
from medkd.slides.synthetic.drawing import Site
from medkd.slides.tiling import open_slide_for_tiling
from tests.inference.compared import compared
from tests.inference.test_report import Seen

STUDENTS = ("student1", "student2")
OTHER_STAIN = Site((0.75, 0.55, 0.35), (0.30, 0.45, 0.15), (243, 242, 245), 88)
TIMING = {"read": 1.0, "total": 2.5}

# The flat slide: 12 tiles of (153, 90, 130) and 8 of (204, 120, 170).
MEAN_COLOUR = (173.4, 102.0, 146.0)


def flat(
    make_package, folder: Path, *, stain: float = 100.0, embedding: float = 100.0, **changes
) -> ModelPackage:
    """A package whose training slides have 3 levels less of red, and no strength of stain."""
    off = (MEAN_COLOUR[0] - 3, *MEAN_COLOUR[1:])
    held = compared(
        {"stain": stain, "embedding": embedding}, {"stain": [0] * 6, "embedding": [*off, *off]}
    )
    return load_package(make_package(folder, **held, **changes))


def gates(call) -> dict[str, tuple[float, float, bool]]:
    return {gate.name: (gate.value, gate.limit, gate.passed) for gate in call.gates}


# By hand.


def test_distances_worked_out_by_hand(make_package, flat_slide, tmp_path):
    """Two students that say the same differ by 3 levels each: 3 root 2. JPEG costs a level."""
    package = flat(make_package, tmp_path / "model")
    found = infer_slide(flat_slide, package, Students(package))
    value, limit, passed = gates(found.call)["out of distribution: embedding"]
    assert value == pytest.approx(3 * math.sqrt(2), abs=1)
    assert (limit, passed) == (100, True)
    # Of tiles of one colour the mean of the density counts: the deviation is the least that does.
    logarithms = [
        np.log(np.log(240) - np.log(np.array(colour) + 1.0))
        for colour in ((153, 90, 130), (204, 120, 170))
    ]
    mean = (12 * logarithms[0] + 8 * logarithms[1]) / 20
    least = 3 * math.log(0.01) ** 2
    expected = math.sqrt((mean**2).sum() + least)
    value = gates(found.call)["out of distribution: stain"][0]
    assert value == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("what", ["stain", "embedding"])
def test_beyond_a_limit_the_call_is_indeterminate_and_says_which(
    make_package, flat_slide, tmp_path, what
):
    within = flat(make_package, tmp_path / "within", threshold=0.1)
    inside = infer_slide(flat_slide, within, Students(within))
    assert inside.call.call == "MSI suspected"
    distance = gates(inside.call)[f"out of distribution: {what}"][0]
    # At the limit it passes, and beyond it does not.
    at = flat(make_package, tmp_path / "at", threshold=0.1, **{what: distance})
    assert infer_slide(flat_slide, at, Students(at)).call.call == "MSI suspected"
    less = distance - 0.25
    beyond = flat(make_package, tmp_path / "beyond", threshold=0.1, **{what: less})
    call = infer_slide(flat_slide, beyond, Students(beyond)).call
    assert call.call == "indeterminate"
    assert call.reasons == (
        f"The {what} is out of distribution: {distance:.2f} from that of the training slides "
        f"(Mahalanobis distance); up to {less:.2f} is taken for their kind.",
        "Use the standard test.",
    )
    assert [name for name, (*_, passed) in gates(call).items() if not passed] == [
        f"out of distribution: {what}"
    ]


def test_however_many_threads_predict_the_distance_is_the_same(make_package, flat_slide, tmp_path):
    package = flat(make_package, tmp_path / "model")
    students = Students(package)
    calls = [infer_slide(flat_slide, package, students, threads=n).call for n in (1, 3)]
    assert calls[0] == calls[1]


def test_a_slide_without_a_score_is_not_compared(make_package, flat_slide, tmp_path):
    package = flat(make_package, tmp_path / "model", gates={"min_tiles": 21}, stain=0.0)
    found = infer_slide(flat_slide, package, Students(package))
    assert found.call.call == "no result"
    assert not any("distribution" in name for name in gates(found.call))


# Drawn slides.


def draw(path: Path, seed: int, site: str = "A") -> Path:
    write_slide(SlideSpec("MSI" if seed % 2 else "MSS", seed, 512, 512, 1.0, site=site), path)
    return path


@pytest.fixture(scope="module")
def drawn_package(make_package, tmp_path_factory) -> ModelPackage:
    """Fitted to 24 drawn training slides and 16 validation slides of both sites."""
    folder = tmp_path_factory.mktemp("drawn")
    bare = load_package(make_package(folder / "bare", embeddings=True))
    students, rows = Students(bare), []
    for number in range(40):
        slide_id = f"s{number}"
        path = draw(folder / f"{slide_id}.svs", 1000 + number, "AB"[number // 2 % 2])
        tile = bare.manifest.preprocessing.tile
        with open_slide_for_tiling(path, tile, slide_id=slide_id) as slide:
            pixels = [slide.learnt_pixels(one) for one in slide.tiles() if one.pixels is not None]
        tiles = np.array(pixels)
        said = students.say(tiles, embeddings=True)
        sums = TileSums.of(tiles, {name: one.embeddings for name, one in said.items()})
        role = "train" if number < 24 else "validation"
        rows.append(feature_row(slide_id, slide_id, role, sums.features()))
    pq.write_table(pa.concat_tables(rows), folder / FEATURE_FILE)
    found = fit_checks(
        folder / FEATURE_FILE,
        [f"s{number}" for number in range(40)],
        STUDENTS,
        enabled=True,
        share=0.01,
        date="2026-01-02",
    )
    return load_package(
        make_package(
            folder / "model",
            embeddings=True,
            files=found.files,
            out_of_distribution=found.packaged.model_dump(mode="json"),
            threshold=0.1,
        )
    )


def test_a_slide_of_another_stain_is_told_and_its_like_are_not(
    drawn_package, tmp_path, monkeypatch
):
    students = Students(drawn_package)
    for seed in range(2000, 2006):
        for site in "AB":
            path = draw(tmp_path / f"{seed}{site}.svs", seed, site)
            call = infer_slide(path, drawn_package, students).call
            assert call.call == "MSI suspected", (seed, site, call.reasons)
    monkeypatch.setitem(SITES, "A", OTHER_STAIN)
    for seed in range(2000, 2004):
        path = draw(tmp_path / f"{seed}-other.svs", seed)
        call = infer_slide(path, drawn_package, students).call
        assert call.call == "indeterminate"
        assert call.reasons[0].startswith("The stain is out of distribution: ")


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        (lambda image: image[..., [0, 2, 1]], "hue"),
        (lambda image: np.rint(image * 0.8).astype(np.uint8), "a darker lamp"),
    ],
    ids=["hue", "lamp"],
)
def test_the_same_tissue_in_other_colours_is_told(
    drawn_package, tmp_path, monkeypatch, changed, what
):
    from medkd.slides.synthetic import drawing, files

    students = Students(drawn_package)
    own = infer_slide(draw(tmp_path / "own.svs", 2001), drawn_package, students)
    assert own.call.call == "MSI suspected"
    monkeypatch.setattr(files, "draw_slide", lambda spec: changed(drawing.draw_slide(spec)))
    other = infer_slide(draw(tmp_path / "other.svs", 2001), drawn_package, students)
    assert other.call.call == "indeterminate", what
    value, limit, _ = gates(other.call)["out of distribution: stain"]
    assert value > limit > gates(own.call)["out of distribution: stain"][0]


def test_a_result_comes_out_again(drawn_package, tmp_path):
    slide = draw(tmp_path / "slide.svs", 2001)
    infer_slides([slide], drawn_package, tmp_path / "out")
    checks = recheck(tmp_path / "out" / "slide", drawn_package, slide, tolerance=1e-6)
    assert reproduces(checks)


# Stopping early.

SMALL_TILES = {"tile": {"mpp": 1.0, "size_px": 16, "min_focus": 0.0}}


def test_a_slide_that_looks_of_another_kind_is_not_left_early(
    make_package, synthetic_slide, tmp_path
):
    options = {"threshold": 0.1, "preprocessing": SMALL_TILES}
    stops = {"gates": {"early_stop": True, "early_stop_error": 0.05}}
    package = flat(make_package, tmp_path / "near", embedding=1e3, **options, **stops)
    near = infer_slide(synthetic_slide, package, Students(package))
    assert any("stopped early" in warning for warning in near.warnings)
    assert near.call.call == "MSI suspected"
    package = flat(make_package, tmp_path / "far", embedding=1.0, **options, **stops)
    far = infer_slide(synthetic_slide, package, Students(package))
    assert not any("stopped early" in warning for warning in far.warnings)
    package = flat(make_package, tmp_path / "whole", embedding=1.0, **options)
    whole = infer_slide(synthetic_slide, package, Students(package))
    assert far.call.call == whole.call.call == "indeterminate"
    # In random order and row by row, to the last bit.
    assert gates(far.call) == gates(whole.call)


# What is told.


@pytest.fixture(scope="module")
def beyond(make_package, flat_slide, tmp_path_factory):
    """Package and result of a slide whose stain is out of distribution."""
    package = flat(make_package, tmp_path_factory.mktemp("beyond") / "model", stain=2.0)
    inference = infer_slide(flat_slide, package, Students(package))
    return package, build_result(inference, package, TIMING)


@pytest.fixture(scope="module")
def older(package_folder, flat_slide):
    """Package and result of a medkd that did not compare."""
    package = load_package(package_folder)
    inference = infer_slide(flat_slide, package, Students(package))
    return package, build_result(inference, package, TIMING)


class Cells(Seen):
    """What is shown, with a space between any two cells."""

    def handle_data(self, data):
        self.shown += f" {data} "


def shown_by(package, result) -> tuple[str, str]:
    """What the page and the PDF say, in words."""
    picture = BytesIO()
    Image.new("RGB", (30, 20)).save(picture, format="png")
    page = Cells(report_html(result, package.manifest, picture.getvalue())).shown
    pdf = pypdfium2.PdfDocument(report_pdf(result, package.manifest, picture.getvalue()))
    pages = " ".join(one.get_textpage().get_text_bounded() for one in pdf)
    return " ".join(page.split()), " ".join(pages.split())


def test_the_report_names_what_is_out_of_distribution(beyond):
    package, result = beyond
    found = next(g for g in result.qc.gates if g.name == "out of distribution: stain")
    assert (found.passed, found.limit) == (False, 2)
    assert result.qc.not_checked == ()
    for shown in shown_by(package, result):
        assert f"The stain is out of distribution: {found.value:.2f} from" in shown
        assert f"out of distribution: stain {found.value:.3f}".rstrip("0") in shown
        assert "2 failed out of distribution: embedding" in shown
        assert "The stain may lie up to 2.00 from the mean of 25 training slides" in shown
        assert "at most 11% of patients like these lie beyond." in shown
        assert "not checked" not in shown.lower()


def test_a_package_from_before_still_calls_and_says_what_it_does_not_check(older):
    package, result = older
    assert result.call == "MSI suspected"
    assert not any("distribution" in gate.name for gate in result.qc.gates)
    assert [one.name for one in result.qc.not_checked] == [
        "out of distribution: stain",
        "out of distribution: embedding",
    ]
    for shown in shown_by(package, result):
        assert "out of distribution: stain not checked" in shown
        assert "Not checked: the model was packaged before this was checked." in shown
    card = (package.folder / "model_card.md").read_text()
    assert "of a slide is out of distribution is not checked: the model is not aggregated" in card


def test_a_result_from_before_is_read(older):
    _, result = older
    content = json.loads(result.model_dump_json())
    del content["qc"]["not_checked"]
    assert type(result).model_validate_json(json.dumps(content)).qc.not_checked == ()


# The package.


def test_frozen_in_the_package_and_replaced(make_package, tmp_path):
    package = flat(make_package, tmp_path / "model")
    held = package.manifest.out_of_distribution
    content = (package.folder / FILE).read_bytes()
    options = {
        "slide_head": package.manifest.slide_head,
        "trained_mpp": None,
        "calibration": package.manifest.calibration,
        "operating_point": package.manifest.operating_point.model_dump(mode="json"),
        "conformal": None,
        "test_performance": {"patients": 1, "positives": 0, "patient_auroc": {"value": None}},
    }
    nothing = nothing_checked("it was turned off by infer.out_of_distribution")
    without = freeze_decisions(package.folder, out_of_distribution=nothing, files={}, **options)
    assert without.manifest.out_of_distribution == nothing
    assert not (package.folder / FILE).exists()
    assert "turned off by infer.out" in (package.folder / "model_card.md").read_text()
    assert Students(without).distances is not None
    again = freeze_decisions(
        package.folder, out_of_distribution=held, files={FILE: content}, **options
    )
    assert again.manifest.out_of_distribution == held
    assert FILE in again.manifest.files
    assert (
        "The embedding may lie up to 100.00 from" in (package.folder / "model_card.md").read_text()
    )


def test_a_changed_byte_and_a_missing_file_are_refused(make_package, tmp_path):
    folder = flat(make_package, tmp_path / "model").folder
    other = shutil.copytree(folder, tmp_path / "other")
    content = bytearray((folder / FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / FILE).write_bytes(content)
    with pytest.raises(ModelPackageError) as caught:
        load_package(folder)
    assert f"'{FILE}' is not the file that was packaged (its SHA-256 differs)" in str(caught.value)
    (other / FILE).unlink()
    with pytest.raises(ModelPackageError, match=f"lacks the file '{FILE}'"):
        load_package(other)
    manifest = json.loads((other / "model.json").read_text())
    del manifest["files"][FILE]
    (other / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelPackageError, match=f"'{FILE}' of the training slides has no SHA-256"):
        load_package(other)


@pytest.mark.parametrize(
    ("held", "what"),
    [
        (compared({"embedding": 9.0}, {"embedding": [0] * 5}), "'embedding' is not of these"),
        (
            {
                **compared({"stain": 9.0}, {"stain": [0] * 6}),
                "files": {FILE: b"no arrays, and nobody changed it since"},
            },
            "cannot be read: ",
        ),
    ],
    ids=["other students", "no arrays"],
)
def test_what_is_of_other_students_or_no_arrays_is_refused(make_package, tmp_path, held, what):
    package = load_package(make_package(tmp_path / "model", **held))
    with pytest.raises(ModelPackageError) as caught:
        Students(package)
    message = str(caught.value)
    assert message.startswith(f"{package.folder / FILE}: {what}")
    assert message.endswith("Run 'medkd aggregate' on the model's run again.")


def test_students_without_embeddings_have_their_stain_checked(make_package, flat_slide, tmp_path):
    held = compared({"stain": 0.5}, {"stain": [0] * 6})
    package = load_package(make_package(tmp_path / "model", **{**held, "embeddings": False}))
    call = infer_slide(flat_slide, package, Students(package)).call
    assert call.call == "indeterminate"
    assert call.reasons[0].startswith("The stain is out of distribution: ")
