"""The command line, run as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medkd import __version__
from tests.training.box_cohort import box_cohort

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
HEAVY = ("torch", "monai", "mlflow", "lightning_fabric", "pandas", "sklearn", "matplotlib")


def medkd(*arguments: str | Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "medkd.cli", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from medkd.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "infer" in done.stdout
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_version(tmp_path: Path) -> None:
    assert medkd("--version", cwd=tmp_path).stdout == f"medkd {__version__}\n"


def test_config_init_check_show(tmp_path: Path) -> None:
    done = medkd("config", "init", cwd=tmp_path)
    assert done.returncode == 0
    assert "medkd config check" in done.stdout
    again = medkd("config", "init", cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr == (
        "error: medkd.yaml: exists already. Name another file, or remove this one first.\n"
    )
    unchecked = medkd("config", "check", cwd=tmp_path)
    assert unchecked.returncode == 2
    assert "slides.csv: no such file. Set data.slides to a table" in unchecked.stderr
    (tmp_path / "slides.csv").write_text("slide_id,path,patient_id,label\na,a.svs,p,MSI\n")
    missing = medkd("config", "check", cwd=tmp_path)
    assert missing.returncode == 1
    assert "The configuration is sound: 1 slides of 1 patients" in missing.stdout
    assert "a.svs: no such file. Mend the path of slide a." in missing.stderr
    shown = medkd("config", "show", "--set", "train.epochs=3", cwd=tmp_path)
    assert "\n  epochs: 3\n" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("config", "show", "--set", "tile.mppp=1"), "error: --set tile.mppp=1: unknown key"),
        (("config", "show", "--config", "absent.yaml"), "error: absent.yaml: no such file."),
        (("methods", "show", "kdml"), "error: train.method: unknown method 'kdml'."),
        (("infer", "a.svs", "--model", "absent", "--out", "out"), "error: absent"),
        (("ui", "--set", "output=absent"), "error: sqlite:///"),
        (("nonsense",), "No such command 'nonsense'"),
    ],
)
def test_a_wrong_call_is_one_line_and_status_2(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = medkd(*arguments, cwd=tmp_path, MLFLOW_TRACKING_URI="")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == []


def test_a_configuration_of_boxes_is_checked(tmp_path: Path) -> None:
    """Of 8 drawn images two show nothing, one shows two ellipses, the others show one."""
    box_cohort(tmp_path / "drawn", images=8, split=False)
    check = ("config", "check", "--config", tmp_path / "drawn" / "medkd.yaml")
    done = medkd(*check, cwd=tmp_path)
    assert done.stdout == (
        "The configuration is sound: 8 images with 7 boxes, method kd_ml with 3 networks.\n"
    )
    image = sorted((tmp_path / "drawn" / "images").iterdir())[0]
    image.unlink()
    done = medkd(*check, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"{image}: no such file. Import the data set again.\n"
    (tmp_path / "drawn" / "boxes.parquet").unlink()
    done = medkd(*check, cwd=tmp_path)
    assert done.returncode == 2
    assert "boxes.parquet: no boxes are there yet. Import the data set first" in done.stderr


@pytest.mark.parametrize("stage", ["tile", "predict", "aggregate"])
def test_stages_of_slides_refuse_a_configuration_of_boxes(stage: str, tmp_path: Path) -> None:
    done = medkd(stage, "--config", CONFIGS / "polyp.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: task: 'medkd {stage}' is of slides, and task: detection finds boxes in images. "
        "Its stages are import, split, train, evaluate and infer; docs/detection.md.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = medkd("--debug", "methods", "show", "kdml", cwd=tmp_path)
    assert "Traceback" in done.stderr


def test_methods_and_networks_are_listed(tmp_path: Path) -> None:
    listed = medkd("methods", "list", cwd=tmp_path).stdout
    assert all(f"│ {name} " in listed for name in ("kd_ml", "kd", "dml", "pcl_e", "independent"))
    assert "arXiv 2110.11023" in listed
    assert max(map(len, listed.splitlines())) <= 100
    assert "resnet18" in medkd("networks", cwd=tmp_path).stdout


def test_a_method_is_shown_with_its_file_nodes_and_links(tmp_path: Path) -> None:
    shown = medkd("methods", "show", "kd_ml", "--students", "3", cwd=tmp_path).stdout
    assert "  - {from: teacher, to: student, loss: kl, temperature: 4}\n" in shown
    assert "│ student_0 │ student_1 and student_2 (mean loss) │ kl   │ logits │ 1 │" in shown
    assert "Ships: the mean probability of student_0, student_1, student_2." in shown
    assert shown.endswith("To draw it: medkd methods show kd_ml --out FOLDER\n")
    assert list(tmp_path.iterdir()) == []
    okddip = " ".join(medkd("methods", "show", "okddip", cwd=tmp_path).stdout.split())
    assert "│ mix_0 │ ensemble │ its link to peer_0 │" in okddip
    assert "│ peer_0 │ mix_0 (not detached) │ kl │ logits │ 3 │ 1 │ exponential," in okddip
    assert "Ships: leader." in okddip
    sokd = medkd("methods", "show", "sokd", "--students", "1", cwd=tmp_path).stdout
    assert "fresh last stage and head, fed by" in sokd
    assert "labels, beforehand" in sokd
    alone = medkd("methods", "show", "independent", cwd=tmp_path).stdout
    assert "Nodes with 2 students" in alone
    assert "Links" not in alone


def test_a_method_is_drawn_where_one_says(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "nodes:\n"
        "  student: {network: students}\n"
        "  mean: {mean_of: student}\n"
        "links:\n"
        "  - {from: mean, to: student, pairs: own, loss: mse}\n"
        "deploy: {best_of: student}\n"
    )
    done = medkd("methods", "show", "mine.yaml", "--out", "drawn", cwd=tmp_path)
    assert done.stdout.splitlines()[-2:] == [
        "Ships: the one of student_0, student_1 that does best on validation data.",
        f"Drawings: {Path('drawn/mine.svg')} and {Path('drawn/mine.png')}",
    ]
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["mine.png", "mine.svg"]


def test_doctor(tmp_path: Path) -> None:
    done = medkd("doctor", cwd=tmp_path, MLFLOW_TRACKING_URI="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OpenSlide reads a slide" in done.stdout
    sick = medkd("doctor", cwd=tmp_path, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert sick.returncode == 1
    assert "MLflow store: http://127.0.0.1:9: Start the server" in sick.stderr
    assert list(tmp_path.iterdir()) == []
