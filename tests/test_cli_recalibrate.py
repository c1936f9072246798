"""``medkd recalibrate``, run as a user runs it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scipy.stats import binomtest, norm
from typer.testing import CliRunner, Result

from medkd.cli import app
from medkd.errors import MedkdError
from medkd.inference.package import ModelPackage, load_package
from tests.inference.compared import compared
from tests.inference.conftest import make_package, package_folder  # noqa: F401  (fixtures)
from tests.inference.site_results import new_site, write_result, write_site


@pytest.fixture
def model(package_folder, tmp_path) -> ModelPackage:  # noqa: F811
    return load_package(shutil.copytree(package_folder, tmp_path / "model"))


def run(folder: Path, *more: str) -> Result:
    arguments = ["recalibrate", folder / "model", "--results", folder / "results"]
    arguments += ["--labels", folder / "labels.csv", "--out", folder / "new", *more]
    return CliRunner().invoke(app, [str(word) for word in arguments])


def refusal(folder: Path, *more: str) -> str:
    """The line that ``medkd`` prints after ``error:``."""
    done = run(folder, *more)
    assert isinstance(done.exception, MedkdError), done.output
    assert (done.stdout, done.exception.exit_status) == ("", 2)
    assert "\n" not in str(done.exception)
    assert not (folder / "new").exists()
    return str(done.exception)


def test_old_and_new_stand_side_by_side(model, tmp_path):
    labels, scores = new_site(0, 30, 60)
    write_site(tmp_path, model, labels, scores)
    done = run(tmp_path, "--cohort", "St Mary", "--target-sensitivity", "0.9")
    assert done.exit_code == 0, done.exception
    new = load_package(tmp_path / "new").manifest
    lines = done.stdout.splitlines()
    assert lines[0].strip() == "90 patients of St Mary, 30 MSI"
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    assert [row[0] for row in rows] == [
        "threshold", "sensitivity", "specificity", "calibration slope", "calibration intercept",
    ]  # fmt: skip
    # 27 of 30 reach the new threshold.
    assert rows[0][1:] == ["0.5000", f"{new.operating_point.threshold:.4f}"]
    exact = binomtest(27, 30).proportion_ci(0.95, "exact")
    assert rows[1][2] == f"0.900 ({exact.low:.3f} to {exact.high:.3f})"
    assert "Intervals: 95%. That of the new sensitivity is for new patients of the site" in (
        done.stdout
    )
    assert "Calibration map: slope and intercept refitted, " in done.stdout
    assert lines[-2:] == [
        f"New version {new.version}: {tmp_path / 'new'}",
        "Version 1 is as it was.",
    ]
    assert done.stderr == (
        "warning: No prevalence was given: probabilities are for a site where 33% of the patients "
        "are MSI, as they are here. Give it where patients were picked by label.\n"
    )


def test_new_limits_of_distance_are_told(make_package, tmp_path):  # noqa: F811
    held = compared({"stain": 6.0}, {"stain": [0] * 6})
    model = load_package(make_package(tmp_path / "model", **held))
    labels, scores = new_site(0, 30, 60)
    write_site(tmp_path, model, labels, scores, [{"stain": 0.1 * n} for n in range(90)])
    done = run(tmp_path)
    assert done.exit_code == 0, done.exception
    # 8.9 at most; 99 patients would tell 1%: the largest is extended a little.
    limit = 8.9 * norm.isf(0.005) / norm.isf(0.5 / 91)
    assert (
        f"Out of distribution: stain beyond {limit:.2f}, before 6.00, beyond which 29 patients "
        "have a slide.\n"
    ) in done.stdout
    assert "29 of the 90 patients have a slide whose stain was out of distribution" in done.stderr


def test_few_positives_are_a_warning(model, tmp_path):
    write_site(tmp_path, model, (1, 1, 0, 0), (0.9, 0.6, 0.3, 0.2))
    done = run(tmp_path, "--conformal-error", "0.4")
    assert done.exit_code == 0, done.exception
    assert (
        "warning: The old calibration map is kept: 2 positive patients are too few" in done.stderr
    )
    assert "warning: With 2 positive patients the threshold rests on the lowest" in done.stderr
    assert "Calibration map: kept.\n" in done.stdout
    assert "Prediction sets: refitted, an error rate of 0.4 in each class.\n" in done.stdout


def test_a_second_call_to_the_same_folder(model, tmp_path):
    write_site(tmp_path, model, (1, 1, 0, 0), (0.9, 0.6, 0.3, 0.2))
    assert run(tmp_path).exit_code == 0
    before = (tmp_path / "new" / "model.json").read_bytes()
    done = run(tmp_path)
    assert str(done.exception) == (
        f"{tmp_path / 'new'}: is there already, and no version of a model is written over. Name a "
        "folder that does not exist yet."
    )
    assert (tmp_path / "new" / "model.json").read_bytes() == before


@pytest.mark.parametrize(
    ("labels", "scores", "told"),
    [
        ((1, 1, 1), (0.9, 0.8, 0.7), "patients of the new site: there is no MSS among 3 patients"),
        ((1, 0), (0.9, 0.8), "patients of the new site: 2 patients with a label and a score are"),
        ((1, 0, 0), (0.5, 0.5, 0.5), "patients of the new site: all 3 patients with a label and a"),
    ],
)
def test_patients_that_nothing_can_be_fitted_to(model, tmp_path, labels, scores, told):
    write_site(tmp_path, model, labels, scores)
    assert refusal(tmp_path).startswith(told)


def test_results_that_cannot_be_used(model, tmp_path):
    results, labels = write_site(tmp_path, model, (1, 0, 0), (0.9, 0.2, 0.1))
    path = results / "s000" / "result.json"
    whole = path.read_text()
    path.write_text(whole.replace('"score": 0.9', '"score": NaN'))
    assert refusal(tmp_path).startswith(f"{path}: 'score' (it is nan): input should be a finite")
    path.write_text(whole.replace(model.sha256, "ab" * 32))
    assert f"called by another model: version 1, SHA-256 {'ab' * 6}, and" in refusal(tmp_path)
    path.write_text(whole)
    labels.write_text("slide_id,label\nother,MSI\n")
    assert "none of the 1 labelled slides is among the 3" in refusal(tmp_path)


def test_what_is_left_aside_is_told_before_what_is_refused(model, tmp_path):
    results, labels = write_site(tmp_path, model, (0, 0, 0), (0.9, 0.2, 0.1))
    write_result(results, model, "gated", None)
    write_result(results, model, "s002", 0.1, tiles=1)
    with labels.open("a") as file:
        file.write("gated,MSI\nlost,MSI\n")
    done = run(tmp_path)
    assert done.stderr.splitlines() == [
        "warning: Labelled slides without a result, left aside: 1 (lost).",
        "warning: Labelled slides called 'no result', left aside: 1 (gated).",
        "warning: Slides whose score is that of a single tile, which chance may have made: 1 "
        "(s002).",
    ]
    assert "there is no MSI among 3 patients with a label and a score" in str(done.exception)


def test_one_line_and_status_2(tmp_path):
    call = "recalibrate absent --results r --labels l.csv --out new"
    done = subprocess.run(
        [sys.executable, "-m", "medkd.cli", *call.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: absent: is not a model package (it has no model.json). Name the folder 'model' of "
        "a finished run; 'medkd train' and 'medkd aggregate' write it.\n"
    )
