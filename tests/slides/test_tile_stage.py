from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from medkd.config import TileConfig
from medkd.datasets.tables import SlideRow
from medkd.errors import OutputError
from medkd.slides import tile_slide as one_slide
from medkd.slides import tile_stage
from medkd.slides.judging import REJECTIONS
from medkd.slides.store import TileStore, read_index
from medkd.slides.tile_slide import tile_slide
from medkd.slides.tile_stage import run_tile_stage

SMALL = TileConfig(size_px=64)


def row(path: Path, **more) -> SlideRow:
    values = {"slide_id": path.stem, "path": path, "patient_id": f"P-{path.stem}", "label": "MSS"}
    return SlideRow(**(values | more))


def report(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "report.csv").open(encoding="utf-8", newline="") as file:
        return {line["slide_id"]: line for line in csv.DictReader(file)}


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("[!.]*.zip")}


@pytest.fixture
def slides(write_slide, glass, tissue) -> list[Path]:
    """A: 256 px square of tissue on glass; B: all tissue."""
    image = glass(512, 512)
    image[128:384, 128:384] = tissue(256, 256)
    return [write_slide("A.svs", image), write_slide("B.svs", tissue(256, 320))]


def test_a_cohort_with_every_kind_of_slide(slides, write_slide, glass, tmp_path):
    (tmp_path / "text.svs").write_text("text")
    paths = [
        tmp_path / "gone.svs",
        *slides,
        write_slide("blank.svs", glass(256, 256), more={"Synthetic": "medkd"}),
        write_slide("no_mpp.svs", glass(256, 256), mpp=None),
        tmp_path / "text.svs",
    ]
    folder = tmp_path / "tiles"
    summary = run_tile_stage([row(path) for path in paths], SMALL, folder)
    assert (summary.total, summary.done, summary.skipped_existing) == (6, 2, 0)
    assert [(slide_id, reason) for slide_id, reason, _ in summary.failed] == [
        ("gone", "no_such_file"),
        ("blank", "no_tissue"),
        ("no_mpp", "missing_mpp"),
        ("text", "unknown_format"),
    ]
    for slide_id, _, message in summary.failed:
        assert message.startswith(f"{tmp_path / slide_id}.svs: ")
        assert "\n" not in message
    assert summary.synthetic == 1
    assert not list(folder.glob(".*"))
    assert sorted(path.stem for path in folder.glob("*.zip")) == ["A", "B"]

    rows = report(folder)
    assert list(rows) == [path.stem for path in paths]
    assert [line["status"] for line in rows.values()].count("failed") == 4
    assert rows["no_mpp"]["reason"] == "missing_mpp"
    assert (rows["B"]["status"], rows["B"]["mpp"], rows["B"]["mpp_source"]) == (
        "ok",
        "0.5",
        "metadata",
    )
    assert (rows["B"]["candidate"], rows["B"]["used"]) == ("20", "20")
    assert float(rows["B"]["tissue_mm2"]) == pytest.approx(256 * 320 * 0.25e-6, rel=0.02)
    assert (rows["blank"]["background"], rows["blank"]["synthetic"]) == ("16", "True")
    for line in rows.values():
        if line["candidate"]:
            fates = ("used", "unreadable", *REJECTIONS)
            assert int(line["candidate"]) == sum(int(line[fate]) for fate in fates)

    index = read_index(folder)
    assert summary.tiles == len(index) == int(rows["A"]["used"]) + 20
    assert set(index["slide_id"]) == {"A", "B"}
    with TileStore(folder / "B.zip") as store:
        assert [(t.x, t.y) for t in store.tiles()] == [
            (x, y) for y in range(0, 256, 64) for x in range(0, 320, 64)
        ]
        assert store.read(64, 64).shape == (64, 64, 3)


def test_the_record_follows_its_contract(slides, tmp_path):
    run_tile_stage([row(slides[1])], SMALL, tmp_path / "tiles")
    record = json.loads((tmp_path / "tiles" / "B.json").read_text())
    assert {
        "schema_version",
        "slide_id",
        "patient_id",
        "parameters",
        "slide",
        "tiles",
        "tissue_area_mm2",
        "unreadable_mm2",
        "software",
        "timing_s",
    } <= set(record)
    assert set(record["slide"]) >= {
        "fingerprint",
        "vendor",
        "width_px",
        "height_px",
        "mpp",
        "mpp_source",
        "objective_power",
        "synthetic",
        "reader",
    }
    assert TileConfig.model_validate(record["parameters"]) == SMALL
    tiles = record["tiles"]
    assert tiles["candidate"] == tiles["used"] + tiles["unreadable"] + sum(
        tiles["rejected"].values()
    )


def test_unreadable_area(slides, damage, tmp_path):
    damage(slides[1], [7])
    summary = run_tile_stage([row(slides[1])], SMALL, tmp_path / "tiles")
    assert summary.done == 1
    record = json.loads((tmp_path / "tiles" / "B.json").read_text())
    assert record["tiles"]["unreadable"] == 1
    assert record["unreadable_mm2"] == pytest.approx(0.032**2)
    assert "unreadable" in (tmp_path / "tiles" / "report.html").read_text().lower()


def test_same_bytes_whatever_the_number_of_workers(slides, tmp_path):
    for workers in (1, 2):
        parameters = TileConfig(size_px=64, workers=workers)
        run_tile_stage([row(path) for path in slides], parameters, tmp_path / str(workers))
    for name in ("A.zip", "B.zip", "A.jpg"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    assert read_index(tmp_path / "1").equals(read_index(tmp_path / "2"))


def test_resume(slides, tissue, write_slide, tmp_path):
    """What is there and the same is left; what differs is done again, and said why."""
    folder = tmp_path / "tiles"
    a, b = (row(path) for path in slides)

    def run(rows, parameters=SMALL):
        before = stamps(folder)
        summary = run_tile_stage(rows, parameters, folder)
        after = stamps(folder)
        written = {name[0] for name in after if after[name] != before.get(name)}
        assert summary.done == len(written)
        assert summary.done + summary.skipped_existing == summary.total
        assert not summary.failed
        assert len(read_index(folder)) == summary.tiles
        return written, dict(summary.redone)

    assert run([a, b]) == ({"A", "B"}, {})
    assert run([a, b]) == (set(), {})
    assert report(folder)["A"]["status"] == "skipped"
    assert report(folder)["A"]["used"] != ""
    # The number of workers changes nothing in the store.
    assert run([a, b], TileConfig(size_px=64, workers=1)) == (set(), {})

    parameters = TileConfig(size_px=64, min_tissue=0.9)
    why = "tile.min_tissue was 0.5, is 0.9"
    assert run([a, b], parameters) == ({"A", "B"}, {"A": why, "B": why})
    assert report(folder)["A"]["message"] == f"done again: {why}"

    a = row(slides[0], mpp=0.4)
    assert run([a, b], parameters) == ({"A"}, {"A": "mpp in slides.csv was None, is 0.4"})
    a = row(slides[0], mpp=0.4, patient_id="Q")
    assert run([a, b], parameters) == ({"A"}, {"A": "patient was P-A, is Q"})
    assert set(read_index(folder).query("slide_id == 'A'")["patient_id"]) == {"Q"}

    slides[1].unlink()
    write_slide("B.svs", np.flip(tissue(256, 320), 1))
    assert run([a, b], parameters) == ({"B"}, {"B": "slide file changed"})

    (folder / "A.zip").unlink()
    (folder / "B.json").write_text("{")
    assert run([a, b], parameters) == (
        {"A", "B"},
        {"A": "A.zip is missing", "B": "its record cannot be read"},
    )


def test_another_version_is_done_again(slides, tmp_path, monkeypatch):
    run_tile_stage([row(slides[1])], SMALL, tmp_path / "tiles")
    monkeypatch.setattr(one_slide, "SCHEMA_VERSION", 2)
    task = one_slide.SlideTask("B", "P-B", slides[1], None, SMALL, tmp_path / "tiles")
    assert one_slide.outdated(task) == "schema version was 1, is 2"
    monkeypatch.undo()
    monkeypatch.setattr("medkd.__version__", "99")
    assert str(one_slide.outdated(task)).endswith("is 99")


def test_slides_that_left_the_table_or_fail_now_are_not_in_the_index(slides, tmp_path):
    folder = tmp_path / "tiles"
    run_tile_stage([row(path) for path in slides], SMALL, folder)
    run_tile_stage([row(slides[1])], SMALL, folder)
    assert (folder / "A.zip").exists()
    assert set(read_index(folder)["slide_id"]) == {"B"}
    assert "A" not in report(folder)
    slides[1].unlink()
    summary = run_tile_stage([row(path) for path in slides], SMALL, folder)
    assert [failure[:2] for failure in summary.failed] == [("B", "no_such_file")]
    assert set(read_index(folder)["slide_id"]) == {"A"}


def test_no_usable_tile_is_a_failure_with_its_counts(write_slide, tissue, tmp_path):
    path = write_slide("ink.svs", tissue(256, 256))
    parameters = TileConfig(size_px=64, min_focus=5)
    summary = run_tile_stage([row(path)], parameters, tmp_path / "tiles")
    ((_, reason, message),) = summary.failed
    assert reason == "no_usable_tiles"
    assert f"{path}: none of its 16 tiles can be used (16 out_of_focus). " in message
    assert "tile.min_focus" in message
    assert not list((tmp_path / "tiles").glob("ink.*"))


# What a native library does to a worker that reads a bad file. At module level: workers import it.
def _crashes_on_b(task):
    if task.slide_id.startswith("B"):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)  # so that it is in flight when its neighbour dies
    return tile_slide(task)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_crash_costs_one_slide(slides, write_slide, tissue, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(tile_stage, "tile_slide", _crashes_on_b)
    paths = [slides[0], slides[1], write_slide("C.svs", tissue(256, 256))]
    folder = tmp_path / "tiles"
    parameters = TileConfig(size_px=64, workers=workers)
    summary = run_tile_stage([row(path) for path in paths], parameters, folder)
    assert summary.done == 2
    ((slide_id, reason, message),) = summary.failed
    assert (slide_id, reason) == ("B", "crashed")
    assert message.startswith(f"{slides[1]}: the process that read the slide died")
    assert "copy or export it again" in message
    assert set(read_index(folder)["slide_id"]) == {"A", "C"}
    assert not list(folder.glob(".*"))


def _breaks_on_b(path, *_, **__):
    raise ValueError("a\nsurprise")


def test_a_surprise_costs_one_slide(slides, tmp_path, monkeypatch):
    monkeypatch.setattr(one_slide, "open_slide_for_tiling", _breaks_on_b)
    outcome = tile_slide(one_slide.SlideTask("B", "P", slides[1], None, SMALL, tmp_path))
    assert (outcome.status, outcome.reason) == ("failed", "internal_error")
    assert outcome.message == (
        f"{slides[1]}: ValueError: a surprise. This is a fault of medkd; please report it."
    )


def test_report_html(slides, write_slide, glass, tissue, tmp_path):
    drawn = write_slide("drawn.svs", tissue(256, 256), more={"Synthetic": "medkd"})
    rows = [
        row(slides[1], patient_id="<b>x</b>"),
        row(drawn),
        row(tmp_path / "gone.svs"),
        row(write_slide("blank.svs", glass(256, 256))),
    ]
    run_tile_stage(rows, SMALL, tmp_path / "tiles")
    text = (tmp_path / "tiles" / "report.html").read_text(encoding="utf-8")
    assert "http" not in text.lower()  # nothing is fetched
    assert text.index("gone") < text.index(">blank<") < text.index("drawn<")
    assert "no such file" in text
    assert text.count('src="data:image/jpeg;base64,') == 3
    assert "&lt;b&gt;x&lt;/b&gt;" in text
    assert "1 of 4 slides were drawn by medkd, not scanned" in text
    assert "Research use only" in text
    run_tile_stage(rows[:1], SMALL, tmp_path / "tiles")
    assert "drawn by medkd" not in (tmp_path / "tiles" / "report.html").read_text("utf-8")


def test_full_disk(slides, tmp_path):
    """A really full file system: one line, nothing half-written, what was finished is kept."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        folder = disk / "tiles"
        parameters = TileConfig(size_px=64, workers=1)
        with pytest.raises(OutputError) as caught:
            run_tile_stage([row(path) for path in slides], parameters, folder)
        assert "no space left on the disk. Free some space" in str(caught.value)
        assert "\n" not in str(caught.value)
        left = {path.name for path in folder.iterdir()}
        assert left == ({"A.zip", "A.jpg", "A.json"} if "A.json" in left else set())
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        summary = run_tile_stage([row(path) for path in slides], parameters, folder)
        assert summary.done + summary.skipped_existing == 2
        assert not summary.failed
    finally:
        subprocess.run(["umount", disk], check=True)


_LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from medkd.slides.store import StoredTile, encode_tile, writing_store
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
try:
    with writing_store(Path(sys.argv[1]) / "s.zip") as store:
        for x in range(100):
            store.add(StoredTile(x, 0, 1.0, 1.0), encode_tile(noise, 90))
except Exception as error:
    print("refused", type(error).__name__, error)
"""


def test_a_file_that_may_not_grow_is_not_left_half_written(tmp_path):
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("refused"), done.stderr
    assert list(tmp_path.iterdir()) == []


_UNPRIVILEGED = """
import os, sys
from pathlib import Path
from medkd.config import TileConfig
from medkd.errors import OutputError
from medkd.slides.tile_stage import run_tile_stage
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)  # root may write everywhere
try:
    run_tile_stage([], TileConfig(), Path(sys.argv[1]))
except OutputError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="permissions of POSIX")
@pytest.mark.parametrize("there", [True, False])
def test_no_permission_to_write(tmp_path, there):
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    tiles = tmp_path / "tiles"
    if there:
        tiles.mkdir()
    (tiles if there else tmp_path).chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", _UNPRIVILEGED, tiles], capture_output=True, text=True, check=False
    )
    (tiles if there else tmp_path).chmod(0o755)
    assert done.stdout == (
        f"{tiles}: no permission to write. Choose another output folder, or change the "
        "permissions of this one.\n"
    )


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "tiles").write_text("")
    with pytest.raises(OutputError, match="a file stands where a folder is needed"):
        run_tile_stage([], SMALL, tmp_path / "tiles")


def test_progress_goes_to_the_error_stream(slides, tmp_path, capfd):
    run_tile_stage([row(slides[1])], SMALL, tmp_path / "tiles")
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "tiling" in shown.err
    assert "1/1" in shown.err
    assert "B 20 tiles" in shown.err
