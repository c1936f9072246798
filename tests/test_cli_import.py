"""``medkd import``, run as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

CLINICAL = "PATIENT,MSIStatus,MSI_SCORE_MANTIS\np1,MSI-H,0.7\np2,MSS,0.5\np3,MSS,0.1\n"


def medkd_import(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "medkd.cli", "import", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16)).save(path)


def test_from_clinical_tables_to_slides(tmp_path: Path) -> None:
    (tmp_path / "clini.csv").write_text(CLINICAL)
    done = medkd_import(
        "labels", "clini.csv", "--out", "out", "--rule", "exclude-discordant", cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "│ p2      │ MSS (MSS) │ 0.5 (MSI) │ none  │" in done.stdout
    assert "Of 3 patients called by all 2 sources, 1 (33.3%) are discordant." in done.stdout
    assert done.stdout.startswith((tmp_path / "out/label_report.txt").read_text())

    (tmp_path / "slides.tsv").write_text("FILENAME\tPATIENT\na.svs\tp1\nb.svs\tp2\nc.svs\tp3\n")
    done = medkd_import(
        "slides", "slides.tsv", "--clinical", "out/labels.csv", "--out", "s.csv", cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-3:] == [
        "Of patients without a label: 1 slides.",
        "Table: s.csv",
        "Its paths are as in the slide table; --slides-folder finds the files.",
    ]
    assert (tmp_path / "s.csv").read_text() == (
        "slide_id,path,patient_id,label\na,a.svs,p1,MSI\nc,c.svs,p3,MSS\n"
    )


def test_many_problems_are_told_in_short_and_status_1(tmp_path: Path) -> None:
    for at in range(30):
        draw(tmp_path / "set" / "a" / f"{at}.png")
    draw(tmp_path / "set" / "a" / "p1_.png")
    draw(tmp_path / "set" / "b" / "p2_.png")
    done = medkd_import("class-folders", "set", "--patient", "p[0-9]", "--out", "out", cwd=tmp_path)
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if line.startswith("left out: ")]
    assert len(told) == 21
    assert told[0] == (
        "left out: set/a/0.png: --patient 'p[0-9]' finds nothing in its name. "
        "Change the pattern, or the name."
    )
    assert told[-1] == f"left out: 10 more. All: {Path('out/tiles/import_problems.csv')}"
    assert (tmp_path / "out/tiles/import_problems.csv").read_text().count("\n") == 31
    assert "│ a     │        1 │      1 │     1 │" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("class-folders", "."), "error: medkd import class-folders: needs one of --patient and"),
        (("tcga-tiles", "."), "error: .: holds no folders CRC_DX_{TRAIN,TEST}_{MSIMUT,MSS} of"),
        (("tile-folders", ".", "--slides", "absent.csv"), "error: absent.csv: no such file."),
        (("kvasir", "."), "error: .: holds no folder 'images' beside a kavsir_bboxes.json."),
        (("coco", "absent.json", "--images", "."), "error: absent.json: no such file."),
        (("yolo", "absent.yaml"), "error: absent.yaml: no such file."),
        (("cifar", "."), "error: .: holds neither batches.meta.txt nor fine_label_names.txt."),
        (("medmnist", "absent.npz"), "error: absent.npz: no such file."),
        (("labels", "absent.csv"), "error: absent.csv: no such file."),
    ],
)
def test_a_wrong_call_is_one_line_and_writes_nothing(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = medkd_import(*arguments, "--out", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
