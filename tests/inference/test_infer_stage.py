from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import openslide
import pypdfium2
import pytest
import tifffile
from PIL import Image

from medkd.errors import MedkdError, OutputError, SlideError
from medkd.inference.engine import Students
from medkd.inference.infer_stage import infer_for_table, infer_slides
from medkd.inference.package import load_package
from medkd.inference.result import Result, result_schema

OUTPUTS = ["heatmap.png", "report.html", "report.pdf", "result.json"]


@pytest.fixture(scope="module")
def package(package_folder):
    return load_package(package_folder)


@pytest.fixture(scope="module")
def finished(package, flat_slide, synthetic_slide, tmp_path_factory) -> Path:
    """The output folder of two slides."""
    out = tmp_path_factory.mktemp("finished") / "new" / "out"
    summary = infer_slides([flat_slide, synthetic_slide], package, out)
    assert [row.slide_id for row in summary.rows] == ["flat", "drawn"]
    assert summary.failed == ()
    return out


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def run_python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def failed_lines(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("failed: ")]


def test_a_folder_for_each_slide(finished):
    assert sorted(path.name for path in finished.iterdir()) == ["drawn", "flat"]
    for folder in finished.iterdir():
        assert sorted(path.name for path in folder.iterdir()) == OUTPUTS
        embedded, tiles = re.findall(
            r"data:image/png;base64,([^\"]*)", (folder / "report.html").read_text("utf-8")
        )
        assert base64.b64decode(embedded) == (folder / "heatmap.png").read_bytes()
        Image.open(io.BytesIO(base64.b64decode(tiles))).load()


def fingerprint_by_hand(path: Path) -> str:
    """SHA-256 over the size, and 16 blocks of 4 KiB spread evenly from end to end."""
    data = path.read_bytes()
    starts = [max(len(data) - 4096, 0) * block // 15 for block in range(16)]
    blocks = b"".join(data[start : start + 4096] for start in starts)
    return hashlib.sha256(str(len(data)).encode() + blocks).hexdigest()


def test_the_result_follows_the_contract(finished, package, flat_slide):
    result = result_of(finished / "flat")
    assert list(result) == [
        "schema_version",
        "slide_id",
        "call",
        "reasons",
        "score",
        "calibration",
        "probability_msi",
        "interval",
        "students",
        "disagreement",
        "mutual_information",
        "operating_point",
        "qc",
        "tiles",
        "tissue_area_mm2",
        "mpp",
        "reading",
        "slide_fingerprint",
        "model",
        "software",
        "timing_s",
        "synthetic",
        "research_use_only",
        "created",
    ]
    assert (result["schema_version"], result["research_use_only"]) == (1, True)
    assert (result["slide_id"], result["call"]) == ("flat", "MSI suspected")
    # By hand in test_engine.py.
    assert result["probability_msi"] == pytest.approx(0.66, abs=0.008)
    assert result["students"] == pytest.approx({"student1": 0.68, "student2": 0.64}, abs=0.008)
    assert result["disagreement"] == pytest.approx(0.04, abs=0.008)
    lower, upper = result["interval"]
    assert lower < result["probability_msi"] < upper
    tiles = result["tiles"]
    assert (tiles["candidate"], tiles["used"]) == (80, 20)
    assert tiles["candidate"] == tiles["used"] + tiles["unreadable"] + sum(
        tiles["rejected"].values()
    )
    assert [gate["passed"] for gate in result["qc"]["gates"]] == [True] * 5
    assert result["mpp"] == {"value": 1.0, "source": "metadata"}
    assert result["slide_fingerprint"] == fingerprint_by_hand(flat_slide)
    assert result["model"] == {"name": "by-hand", "version": "1", "sha256": package.sha256}
    assert result["operating_point"]["threshold"] == 0.5
    assert set(result["software"]) == {"medkd", "onnxruntime"}
    assert set(result["timing_s"]) == {"open", "read", "model", "report", "total"}
    assert result["synthetic"] == {"slide": False, "model": False}
    assert datetime.fromisoformat(result["created"]).tzinfo is not None


def test_the_result_validates(finished, package, write_flat, tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    blank = write_flat(tmp_path / "blank.svs", np.full((256, 256, 3), 243, np.uint8))
    infer_slides([blank], package, tmp_path)
    validator = jsonschema.Draft202012Validator(result_schema())
    validator.check_schema(result_schema())
    for folder in (*finished.iterdir(), tmp_path / "blank"):
        result = result_of(folder)
        validator.validate(result)
        Result.model_validate(result)
    assert (result["call"], result["probability_msi"]) == ("no result", None)
    assert (result["interval"], result["students"], result["disagreement"]) == (None, {}, None)
    assert not validator.is_valid({**result, "path": "/"})
    assert not validator.is_valid({key: result[key] for key in result if key != "reasons"})


def test_a_synthetic_slide_says_so_everywhere(finished):
    assert result_of(finished / "drawn")["synthetic"] == {"slide": True, "model": False}
    assert "This slide is synthetic" in (finished / "drawn" / "report.html").read_text("utf-8")
    assert "synthetic" not in (finished / "flat" / "report.html").read_text("utf-8").lower()


def test_a_slide_that_is_named_twice_is_called_once(package, flat_slide, tmp_path, capfd):
    indirect = flat_slide.parent / ".." / flat_slide.parent.name / flat_slide.name
    summary = infer_slides([flat_slide, flat_slide, indirect], package, tmp_path)
    assert [row.slide_id for row in summary.rows] == ["flat"]
    told = capfd.readouterr().err
    assert f"warning: {indirect} is named more than once; it is called once.\n" in told


def test_two_slides_with_one_id(package, flat_slide, synthetic_slide, tmp_path):
    other = tmp_path / flat_slide.name
    shutil.copy(synthetic_slide, other)
    with pytest.raises(SlideError) as caught:
        infer_slides([flat_slide, other], package, tmp_path / "out")
    assert str(caught.value) == (
        f"{other}: would be written to the same folder as {flat_slide}. Rename one of the two, "
        "give both an id in a table (--slides), or each an output folder of its own."
    )
    assert caught.value.exit_status == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mpp", [0.0, -0.25, float("nan"), float("inf")])
def test_a_resolution_that_is_none(package, flat_slide, tmp_path, mpp):
    with pytest.raises(SlideError, match="must be a number above 0") as caught:
        infer_slides([flat_slide], package, tmp_path / "out", mpp=mpp)
    assert str(caught.value).startswith(f"--mpp {mpp:g}: ")
    assert caught.value.exit_status == 2
    result, error = infer_for_table(flat_slide, package, Students(package), mpp)
    assert (result, error) == (None, str(caught.value))


def test_without_files(package, finished, flat_slide, tmp_path):
    """What MLflow's model serves is what the files hold."""
    students = Students(package)
    result, error = infer_for_table(flat_slide, package, students, None)
    assert error == ""
    left_out = {"timing_s", "created"}
    assert result.model_dump(mode="json", exclude=left_out) == {
        key: value for key, value in result_of(finished / "flat").items() if key not in left_out
    }
    result, error = infer_for_table(tmp_path / "gone.svs", package, students, None)
    assert result is None
    assert error == f"{tmp_path / 'gone.svs'}: no such file. Correct the slide's path."


def test_a_second_run_replaces_the_first(package, make_package, flat_slide, tmp_path):
    infer_slides([flat_slide], package, tmp_path / "out")
    other = load_package(make_package(tmp_path / "model", threshold=0.9))
    (tmp_path / "out" / "flat" / ".report.html.999999999.medkd-tmp").write_text("of a killed run")
    infer_slides([flat_slide], other, tmp_path / "out")
    assert result_of(tmp_path / "out" / "flat")["call"] == "MSS"
    assert sorted(path.name for path in (tmp_path / "out" / "flat").iterdir()) == OUTPUTS


# The command line.


def test_a_batch_with_bad_slides(
    medkd, package_folder, flat_slide, flat_image, write_flat, tmp_path
):
    """Each is refused with its own reason on one line; the good ones are finished."""
    (tmp_path / "folder.svs").mkdir()
    (tmp_path / "text.svs").write_text("not a slide\n")
    (tmp_path / "empty.svs").write_bytes(b"")
    write_flat(tmp_path / "untold.svs", flat_image, mpp=None)
    write_flat(tmp_path / "coarse.svs", flat_image, mpp=2.0)
    write_flat(tmp_path / "tiny.svs", flat_image[:32, :32])
    shutil.copy(flat_slide, tmp_path / "last.svs")
    reasons = {
        "gone": "no such file",
        "text": "is not a slide in a format that OpenSlide knows",
        "empty": "is an empty file",
        "untold": "does not say its resolution (mpp)",
        "coarse": "its mpp 2 (metadata) is too coarse for tiles of 1 um/px",
        "tiny": "is smaller than one tile of 64 um",
        "folder": "holds no slide",
    }
    names = [*reasons, "last"]
    out = tmp_path / "out"
    done = medkd(
        "infer", flat_slide, *(tmp_path / f"{name}.svs" for name in names),
        "--model", package_folder, "--out", out,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = failed_lines(done.stderr)
    assert len(lines) == len(reasons)
    for line, (name, reason) in zip(lines, reasons.items(), strict=True):
        assert line.startswith(f"failed: {tmp_path / name}.svs: ")
        assert reason in line
        assert line.endswith(".")
    assert "--mpp" in lines[3]
    assert "slides.csv" in lines[3]
    assert sorted(path.name for path in out.iterdir()) == ["flat", "last"]
    assert result_of(out / "last")["students"] == result_of(out / "flat")["students"]
    assert "Research use only" in done.stdout
    assert done.stdout.count("MSI suspected") == 2
    assert str(out) in done.stdout


@pytest.mark.real_data
def test_a_batch_with_bad_real_slides(
    medkd, package_folder, synthetic_slide, real_slides, tmp_path
):
    reasons = {
        "broken.svs": "is not a slide in a format that OpenSlide knows",
        "kidney-48-5.tif": "is an untiled TIFF",
        "panimg_valid_tiff.tif": "its mpp 1000 is outside the plausible range",
        "highdicom_sm_image_grayscale.dcm": "OpenSlide cannot open it",
        "pathml_small_dicom.dcm": "OpenSlide cannot open it",
        "TCGA-CR-7395-01A-01-TS1.svs": "does not say its resolution (mpp)",
    }
    done = medkd(
        "infer", *(real_slides / name for name in reasons), synthetic_slide,
        "--model", package_folder, "--out", tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    lines = failed_lines(done.stderr)
    assert len(lines) == len(set(lines)) == len(reasons)
    for line, (name, reason) in zip(lines, reasons.items(), strict=True):
        assert line.startswith(f"failed: {real_slides / name}: ")
        assert reason in line
        assert line.endswith(".")
    assert "slides.csv, or with --mpp" in lines[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["drawn"]
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == OUTPUTS


@pytest.mark.real_data
def test_a_given_resolution_lets_a_real_slide_through(package, real_slides, tmp_path):
    path = real_slides / "TCGA-CR-7395-01A-01-TS1.svs"
    summary = infer_slides([path], package, tmp_path, mpp=0.5)
    assert summary.failed == ()
    result = result_of(tmp_path / "TCGA-CR-7395-01A-01-TS1")
    assert result["mpp"] == {"value": 0.5, "source": "--mpp"}
    assert result["tiles"]["candidate"] == (4443 // 128) * (3567 // 128)
    assert result["tiles"]["used"] > 100


def test_a_spoilt_package_is_one_line(medkd, package_folder, flat_slide, tmp_path):
    model = shutil.copytree(package_folder, tmp_path / "model")
    with (model / "students" / "student1.onnx").open("ab") as file:
        file.write(b"x")
    done = medkd("infer", flat_slide, "--model", model, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {model}: 'students/student1.onnx' is not the file that was packaged (its SHA-256 "
        "differs). Get the package anew from where it was made.\n"
    )
    assert not (tmp_path / "out").exists()


def test_an_output_folder_below_a_file(medkd, package_folder, flat_slide, tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    done = medkd("infer", flat_slide, "--model", package_folder, "--out", out)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {out}: a file stands where a folder is needed. Remove that file, or choose "
        "another output folder.\n"
    )


_UNPRIVILEGED = """
import os, sys
from pathlib import Path
from medkd.errors import OutputError
from medkd.inference.infer_stage import infer_slides
from medkd.inference.package import load_package
slide, model, out = map(Path, sys.argv[1:])
package = load_package(model)
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)  # root may write everywhere
try:
    infer_slides([slide], package, out)
except OutputError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="permissions of POSIX")
def test_a_folder_that_may_not_be_written(package_folder, flat_slide, tmp_path):
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    out = tmp_path / "out"
    out.mkdir(mode=0o555)
    done = run_python(_UNPRIVILEGED, flat_slide, package_folder, out)
    assert done.stdout == (
        f"{out}: no permission to write. Choose another output folder, or change the "
        "permissions of this one.\n"
    ), done.stderr


def test_a_full_disk(package, flat_slide, tmp_path):
    """A really full file system: one line, and nothing that is half-written or looks finished."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        with pytest.raises(OutputError) as caught:
            infer_slides([flat_slide], package, disk)
        assert "no space left on the disk. Free some space" in str(caught.value)
        assert "\n" not in str(caught.value)
        left = sorted(path.name for path in (disk / "flat").iterdir())
        assert left in ([], ["heatmap.png"], ["heatmap.png", "report.pdf"])
        if left:
            Image.open(disk / "flat" / "heatmap.png").load()
        if len(left) > 1:
            assert len(pypdfium2.PdfDocument(disk / "flat" / "report.pdf")) >= 1
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        infer_slides([flat_slide], package, disk)
        assert sorted(path.name for path in (disk / "flat").iterdir()) == OUTPUTS
    finally:
        subprocess.run(["umount", disk], check=True)


_LIMITED = """
import resource, sys
from pathlib import Path
from medkd.inference.infer_stage import infer_slides
from medkd.inference.package import load_package
slide, model, out = map(Path, sys.argv[1:])
package = load_package(model)
resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
try:
    infer_slides([slide], package, out)
except Exception as error:
    print("refused", error)
"""


def test_a_file_that_may_not_grow_is_not_left_half_written(package_folder, flat_slide, tmp_path):
    pytest.importorskip("resource")
    done = run_python(_LIMITED, flat_slide, package_folder, tmp_path)
    assert done.stdout.startswith("refused"), done.stderr
    assert list((tmp_path / "flat").iterdir()) == []


def test_a_failing_second_run_leaves_no_result_of_the_first(package, flat_slide, tmp_path):
    """The report cannot be replaced, for a folder is in its way."""
    infer_slides([flat_slide], package, tmp_path)
    (tmp_path / "flat" / "report.html").unlink()
    (tmp_path / "flat" / "report.html" / "x").mkdir(parents=True)
    with pytest.raises((MedkdError, OSError)):
        infer_slides([flat_slide], package, tmp_path)
    assert sorted(path.name for path in (tmp_path / "flat").iterdir()) == OUTPUTS[:3]


_IMPORTS = """
import sys
from medkd.cli import app
try: app(sys.argv[1:])
except SystemExit as end: print("status", end.code)
names = {name.partition(".")[0] for name in sys.modules}
print("HEAVY", sorted(names & {"torch", "monai", "mlflow", "lightning_fabric", "sklearn"}))
"""


def test_infer_imports_no_training_library(package_folder, flat_slide, tmp_path):
    done = run_python(_IMPORTS, "infer", flat_slide, "--model", package_folder, "--out", tmp_path)
    assert done.stdout.splitlines()[-2:] == ["status 0", "HEAVY []"], done.stderr
    assert (tmp_path / "flat" / "result.json").exists()


# What must not come out.


def contents(folder: Path) -> dict[str, bytes]:
    """Every output file's bytes, and those of every image that is embedded in one."""
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    for name, data in list(found.items()):
        for number, match in enumerate(re.finditer(rb";base64,([A-Za-z0-9+/=]+)", data)):
            found[f"{name}#{number}"] = base64.b64decode(match[1])
        if name.endswith(".pdf"):
            # Text and metadata are compressed in it.
            pdf = pypdfium2.PdfDocument(data)
            pages = [page.get_textpage().get_text_bounded() for page in pdf]
            found[f"{name}#text"] = f"{pages} {pdf.get_metadata_dict()}".encode()
    return found


def assert_nowhere(folder: Path, secrets: list[str]) -> None:
    for name, data in contents(folder).items():
        for secret in secrets:
            assert secret.lower().encode() not in data.lower(), (name, secret)
            assert secret.encode("utf-16-le") not in data, (name, secret)


def images(folder: Path) -> list[Image.Image]:
    found = [
        Image.open(path) for path in folder.rglob("*") if path.suffix in (".png", ".jpg", ".tif")
    ]
    for image in found:
        image.load()
        # The text chunks of a PNG, compressed or not, are here too.
        assert set(image.info) <= {"dpi"}, image.info
    return found


def without_associated_images(path: Path, to: Path) -> Path:
    """A copy in which the data of thumbnail, label and macro are zeros."""
    shutil.copy(path, to)
    with tifffile.TiffFile(path) as tiff, to.open("r+b") as file:
        for page in tiff.pages[1:]:
            assert not page.is_tiled
            for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True):
                file.seek(offset)
                file.write(bytes(length))
    return to


def timeless(folder: Path) -> tuple[bytes, dict]:
    """What does not change from run to run."""
    result = result_of(folder)
    # The fingerprint is of the whole file, with label and macro; nothing can be read out of it.
    del result["timing_s"], result["created"], result["slide_fingerprint"]
    return (folder / "heatmap.png").read_bytes(), result


@pytest.mark.real_data
def test_nothing_of_a_real_slide_comes_out_but_its_tissue(package, real_slides, tmp_path):
    folder = tmp_path / "Mustermann_Erika_1931-05-17"
    folder.mkdir()
    path = shutil.copy(real_slides / "CMU-1-Small-Region.svs", folder / "case7.svs")
    out = tmp_path / "out"
    assert infer_slides([path], package, out).failed == ()

    with openslide.OpenSlide(path) as slide:
        properties, associated = dict(slide.properties), dict(slide.associated_images)
    names = ("User", "Filename", "Date", "Time", "ImageID", "ScanScope ID", "Parmset", "Left")
    secrets = [properties[f"aperio.{name}"] for name in names]
    assert "b414003d-95c6-48b0-9369-8010ed517ba7" in secrets
    secrets += ["Mustermann", "1931-05-17", str(tmp_path), "case7.svs", "Aperio Image Library"]
    assert_nowhere(out, [*secrets, properties["openslide.quickhash-1"]])

    assert set(associated) == {"label", "macro", "thumbnail"}
    (picture,) = images(out)
    assert picture.size not in [image.size for image in associated.values()]
    for data in contents(out).values():
        assert data.count(b"\x89PNG\r\n\x1a\n") <= 1
        # In the letters of an embedded PNG the word may stand by chance.
        assert b"JFIF" not in re.sub(rb";base64,[A-Za-z0-9+/=]+", b"", data)
    # Every byte is the same without label and macro, so it tells nothing of them.
    (tmp_path / "blanked").mkdir()
    blanked = without_associated_images(path, tmp_path / "blanked" / "case7.svs")
    with openslide.OpenSlide(blanked) as slide, pytest.raises(openslide.OpenSlideError):
        np.asarray(slide.associated_images["macro"])
    infer_slides([blanked], package, tmp_path / "blanked")
    assert timeless(tmp_path / "blanked" / "case7") == timeless(out / "case7")


def test_planted_metadata_come_out_nowhere(package, flat_image, write_flat, tmp_path):
    folder = tmp_path / "PLANTED-folder"
    folder.mkdir()
    path = write_flat(
        folder / "case8.svs",
        flat_image,
        more="|User = PLANTED-user|Filename = PLANTED-file|Date = 11/22/1987|PatientID = PLANTED-id"
        "|Synthetic = PLANTED",
        software="PLANTED-software",
        datetime="1987:11:22 01:02:03",
        extratags=[(315, "s", 0, "PLANTED-artist", True), (316, "s", 0, "PLANTED-host", True)],
    )
    with openslide.OpenSlide(path) as slide:
        told = str(dict(slide.properties))
    for name in ("user", "file", "id", "software", "artist", "host"):
        assert f"PLANTED-{name}" in told
    infer_slides([path], package, tmp_path / "out")
    assert_nowhere(tmp_path / "out", ["PLANTED", "11/22/1987", "1987:11:22", str(tmp_path)])
    assert result_of(tmp_path / "out" / "case8")["synthetic"]["slide"] is False


def test_nothing_of_a_drawn_label_comes_out(package, finished, synthetic_slide, tmp_path):
    blanked = without_associated_images(synthetic_slide, tmp_path / synthetic_slide.name)
    infer_slides([blanked], package, tmp_path)
    assert timeless(tmp_path / "drawn") == timeless(finished / "drawn")


def test_refusals_leave_nothing_behind(package, tmp_path):
    (tmp_path / "PLANTED.svs").write_text("PLANTED")
    summary = infer_slides([tmp_path / "PLANTED.svs"], package, tmp_path / "out")
    assert len(summary.failed) == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_maps_lie_beside_the_report_and_old_ones_do_not_stay(package, flat_slide, tmp_path, capfd):
    infer_slides([flat_slide], package, tmp_path, maps=["geojson", "nifti", "dicom"])
    names = {path.name for path in (tmp_path / "flat").iterdir()}
    maps = {"heatmap.geojson", "heatmap.nii.gz", "disagreement.nii.gz"}
    assert names == {*OUTPUTS, *maps}
    told = capfd.readouterr().err
    assert "There is no dicom map of it." in told
    summary = infer_slides([flat_slide], package, tmp_path, maps=["geojson"], resume=True)
    assert summary.there == 1
    summary = infer_slides([flat_slide], package, tmp_path, maps=["tiff"], resume=True)
    assert summary.there == 0
    names = {path.name for path in (tmp_path / "flat").iterdir()}
    assert names == {*OUTPUTS, "heatmap.tif"}


def test_a_kind_of_map_that_there_is_not(package, flat_slide, tmp_path):
    with pytest.raises(MedkdError, match="there is no map of the kind 'svg'"):
        infer_slides([flat_slide], package, tmp_path / "out", maps=["svg"])
    assert not (tmp_path / "out").exists()
