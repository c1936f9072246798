"""The watch folder as a whole: its loop with a stand-in that calls, and the command itself."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medkd.errors import MedkdError, ModelPackageError, OutputError, StageError
from medkd.inference.package import load_package
from medkd.inference.slide_files import SlideFile
from medkd.inference.watch import Watch, WatchOptions, watch
from medkd.inference.watch_state import WatchState
from medkd.inference.watch_worker import (
    Called,
    Died,
    Failed,
    Ready,
    Refused,
    Worker,
    WorkerSetup,
)
from medkd.logs import json_log
from tests.inference.bombs import write_bombs, write_vast
from tests.inference.folder_slides import touch
from tests.inference.test_report import Seen

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="its locks are not those of POSIX")

ROOT = Path(__file__).resolve().parents[2]


def beat(out: Path) -> dict[str, Any]:
    return json.loads((out / "heartbeat.json").read_text("utf-8"))


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "watch.jsonl").read_text("ascii").splitlines()]


def events(out: Path, name: str) -> list[str]:
    return [line.get("slide_id", "") for line in log(out) if line["event"] == name]


def until(is_so: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


# The loop.


class StandIn:
    """Answers as it is told, in place of the process that calls slides.

    ``answers``: for each slide what it says in turn; the last one from then on. None: nothing.
    """

    def __init__(self, answers: dict[str, list[object]], *, starts: object = Ready()) -> None:
        self._answers = answers
        self._starts = starts
        self._next: object = None
        self.lives = False
        self.calls: list[str] = []
        self.sources: list[int] = []

    def start(self) -> None:
        self.lives, self._next = True, self._starts

    def call(self, slide: SlideFile) -> None:
        self.calls.append(slide.slide_id)
        told = self._answers.get(slide.slide_id, [Called("MSS", 0.1, 1.0)])
        self._next = told.pop(0) if len(told) > 1 else told[0]

    def answer(self) -> object:
        answer, self._next = self._next, None
        if isinstance(answer, Died):
            self.lives = False
        return answer

    def kill(self) -> None:
        self.lives, self._next = False, None


class Running:
    """A watch in a thread."""

    def __init__(self, options: WatchOptions, worker: StandIn) -> None:
        self.worker = worker
        self.error: BaseException | None = None
        self._options = options
        self._ours, self._theirs = socket.socketpair()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        options = self._options
        try:
            with (
                json_log(options.out / "watch.jsonl"),
                WatchState(options.out / "watch.sqlite") as state,
            ):
                Watch(options, load_package(options.model), state, self.worker).run(self._ours)
        except MedkdError as error:
            self.error = error

    def stop(self) -> None:
        self._theirs.send(b"x")
        self.wait()

    def wait(self) -> None:
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()
        self._ours.close()
        self._theirs.close()


@pytest.fixture
def options(package_folder, tmp_path) -> WatchOptions:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    return WatchOptions(tmp_path / "in", package_folder, tmp_path / "out", settle_s=0, poll_s=0.02)


@contextmanager
def running(options: WatchOptions, worker: StandIn) -> Iterator[StandIn]:
    watched = Running(options, worker)
    try:
        yield worker
    finally:
        watched.stop()
    assert watched.error is None


@pytest.fixture(autouse=True)
def no_disk(monkeypatch):
    """The stand-in writes no result that could be brought to the disk."""
    monkeypatch.setattr("medkd.inference.watch_queue._to_disk", lambda folder: None)


def counted(out: Path) -> dict[str, int]:
    seen = beat(out) if (out / "heartbeat.json").exists() else {}
    names = ("queue", "done", "failed", "quarantined")
    return {name: seen[name] for name in names if seen.get(name)}


def test_the_loop_gives_each_slide_its_due(options):
    touch(options.incoming, "a.svs", "b.svs", "c.svs", "d.svs")
    answers = {
        "b": [Failed("b.svs: is an empty file")],
        "c": [Died(-11)],
        "d": [Died(-9), Called("MSI suspected", 0.9, 2.0)],
    }
    with running(options, StandIn(answers)) as worker:
        until(lambda: counted(options.out) == {"done": 2, "failed": 1, "quarantined": 1})
        touch(options.incoming, "late.svs")
        until(lambda: counted(options.out).get("done") == 3)
        time.sleep(0.1)
    # What crashed comes after the others, and no slide again that has its end.
    assert worker.calls == ["a", "b", "c", "d", "c", "d", "late"]
    shown = Seen((options.out / "queue.html").read_text("utf-8")).shown
    assert "2 times; the last time: the process that read it died (SIGSEGV)" in shown
    assert "b.svs: is an empty file" in shown
    assert beat(options.out)["status"] == "stopped"
    assert events(options.out, "slide_called") == ["a", "d", "late"]
    assert events(options.out, "slide_crashed") == ["c", "d", "c"]
    assert events(options.out, "slide_quarantined") == ["c"]
    assert [line["event"] for line in log(options.out)][-1] == "watch_stopped"


def test_a_slide_that_hangs_is_given_up(options):
    touch(options.incoming, "a.svs", "b.svs")
    options = WatchOptions(**{**vars(options), "time_limit_s": 0.1})
    with running(options, StandIn({"a": [None]})):
        until(lambda: counted(options.out) == {"done": 1, "quarantined": 1})
    shown = Seen((options.out / "queue.html").read_text("utf-8")).shown
    assert "2 times; the last time: it was not done after 0.1 s (--time-limit)" in shown


def test_a_full_disk_costs_no_slide_its_call(options, capfd):
    touch(options.incoming, "a.svs")
    full = OutputError("no space left on the disk", where="out", remedy="Free some space.")
    answers = {"a": [Refused(full), Refused(full), Refused(full), Called("MSS", 0.1, 1.0)]}
    with running(options, StandIn(answers)) as worker:
        until(lambda: counted(options.out) == {"done": 1})
    assert worker.calls == ["a"] * 4
    assert "warning: out: no space left on the disk. Free some space.\n" in capfd.readouterr().err
    assert beat(options.out)["problem"] is None  # it is over


def test_a_result_that_cannot_be_written_does_not_hold_the_others_up(options):
    touch(options.incoming, "a.svs", "b.svs", "c.svs")
    shut = OutputError("a file stands where a folder is needed", where="a", remedy="Remove it.")
    with running(options, StandIn({"a": [Refused(shut)]})):
        until(lambda: counted(options.out) == {"queue": 1, "done": 2})
        until(lambda: beat(options.out)["status"] == "problem")
        assert beat(options.out)["problem"] == str(shut)
    shown = Seen((options.out / "queue.html").read_text("utf-8")).shown
    assert "again: a: a file stands where a folder is needed. Remove it." in shown


def test_a_watch_whose_folder_is_gone_says_so_and_goes_on(options):
    touch(options.incoming, "a.svs")
    with running(options, StandIn({})):
        until(lambda: counted(options.out) == {"done": 1})
        shutil.move(options.incoming, options.incoming.with_name("elsewhere"))
        until(lambda: beat(options.out)["status"] == "problem")
        assert beat(options.out)["problem"].startswith(f"{options.incoming}: no such folder")
        touch(options.incoming, "b.svs")
        until(lambda: counted(options.out) == {"done": 2})


def test_a_model_that_was_replaced_ends_the_watch(options, tmp_path):
    model = shutil.copytree(options.model, tmp_path / "model")
    touch(options.incoming, "a.svs")
    options = WatchOptions(**{**vars(options), "model": model})
    watched = Running(options, StandIn({"a": [None]}))
    until(lambda: (options.out / "heartbeat.json").exists() and beat(options.out)["now_at"] == "a")
    (model / "model.json").write_text((model / "model.json").read_text() + "\n")
    watched.wait()
    assert isinstance(watched.error, ModelPackageError)
    assert str(watched.error) == (
        f"{model}: is not the model that the watch began with. Start 'medkd watch' again to call "
        "new slides with it; slides that were called keep their results."
    )
    ended = beat(options.out)
    assert (ended["status"], ended["stopped"]) == ("stopped", str(watched.error))
    assert (ended["queue"], ended["now_at"]) == (1, None)  # 'a' waits for the next start


def test_a_model_that_cannot_be_loaded_is_told_once_and_costs_no_slide(options):
    touch(options.incoming, "a.svs")
    watched = Running(options, StandIn({}, starts=Died(-9)))
    watched.wait()
    assert isinstance(watched.error, StageError)
    assert str(watched.error).startswith(
        f"{options.model}: the process that loads it died 3 times (SIGKILL). See with 'medkd infer'"
    )
    assert counted(options.out) == {"queue": 1}


# What is refused at the start.


def test_folders_that_lie_one_within_the_other_are_refused(package_folder, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for incoming, out in (("in", "in/out"), ("in/deep", "in"), ("in", "in/deep/../out")):
        options = WatchOptions(tmp_path / incoming, package_folder, tmp_path / out)
        with pytest.raises(MedkdError, match="lie one within the other") as caught:
            watch(options)
        assert caught.value.exit_status == 2
    with pytest.raises(MedkdError) as caught:
        watch(WatchOptions(tmp_path / "gone", package_folder, tmp_path / "out"))
    assert str(caught.value) == f"{tmp_path / 'gone'}: no such folder. Name the folder to watch."
    with pytest.raises(MedkdError, match="must be a number above 0"):
        watch(WatchOptions(tmp_path / "in", package_folder, tmp_path / "out", mpp=-1.0))
    assert not (tmp_path / "out").exists()


# The command.


def command(incoming: Path, out: Path, model: Path, *more: object) -> subprocess.Popen[str]:
    arguments = [
        "watch", incoming, "--model", model, "--out", out, "--settle", 0.5, "--poll", 0.1, *more,
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "medkd.cli", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def is_idle(out: Path) -> bool:
    if not (out / "heartbeat.json").exists():
        return False
    now = beat(out)
    return now["now_at"] is None and not now["queue"] and not now["settling"] and now["done"] > 0


def test_bombs_and_code_for_names_harm_neither_the_watch_nor_the_good_slide(
    package_folder, flat_image, write_flat, tmp_path
):
    incoming, out = tmp_path / "in", tmp_path / "out"
    incoming.mkdir()
    due = write_bombs(incoming)
    evil = "<img src=x onerror=alert(1)>"
    (incoming / f"{evil}.svs").write_text("not a slide")
    write_flat(incoming / f"good {evil}.svs", flat_image, more=f"|User = {evil}")
    (incoming / "escape.svs").symlink_to("/dev/zero")
    (incoming / "line\nbreak.svs").write_bytes(b"")
    before = sorted((path.name, path.lstat().st_mtime_ns) for path in incoming.iterdir())
    watcher = command(incoming, out, package_folder, "--memory-gb", 2, "--map", "geojson")
    try:
        until(lambda: is_idle(out) and beat(out)["quarantined"] == 1)
        second = command(incoming, out, package_folder)
        told = second.communicate(timeout=60)[1]
        assert second.returncode == 2
        assert told == (
            f"error: {out}: another watch has this folder (process {watcher.pid}). Stop it, or "
            "give this one an output folder of its own.\n"
        )
        watcher.send_signal(signal.SIGTERM)
        told = watcher.communicate(timeout=60)[1]
    finally:
        watcher.kill()
    assert watcher.returncode == 0, told
    assert "Traceback" not in told
    with WatchState(out / "watch.sqlite") as state:
        rows = {row.slide_id: row for row in state.slides.values()}
    due |= {"_img_src_x_onerror_alert_1__": "failed", "line_break": "failed"}
    good = "good__img_src_x_onerror_alert_1__"
    assert {name: str(row.status) for name, row in rows.items()} == {**due, good: "done"}
    assert "the process that read it died (SIGABRT)" in rows["tile"].reason
    assert "is not a slide in a format that OpenSlide knows" in rows["zip"].reason
    for page in (out / "queue.html", out / good / "report.html"):
        seen = Seen(page.read_text("utf-8"))
        assert "onerror" not in {name for _, attributes in seen.tags for name in attributes}
        assert not [a for tag, a in seen.tags if tag == "img" and a["src"] == "x"]
    assert evil in Seen((out / "queue.html").read_text("utf-8")).shown
    assert (out / good / "heatmap.geojson").exists()
    result = json.loads((out / good / "result.json").read_text("utf-8"))
    assert result["probability_msi"] == pytest.approx(0.66, abs=0.008)  # by hand in test_engine.py
    assert sorted((path.name, path.lstat().st_mtime_ns) for path in incoming.iterdir()) == before
    assert sorted(set(events(out, "slide_queued"))) == sorted({*due, good})


@pytest.mark.slow
def test_a_slide_that_says_it_is_vast_takes_no_more_memory_than_it_may(package_folder, tmp_path):
    """And the process that called it goes on with the next one."""
    sha256 = load_package(package_folder).sha256
    lock = tmp_path / "lock"
    worker = Worker(WorkerSetup(package_folder, sha256, tmp_path, lock, None, (), 2**30))
    worker.start()
    path = write_vast(tmp_path / "vast.svs")

    def answer() -> object:
        connection.wait(worker.sources, timeout=200)
        return worker.answer()

    try:
        assert isinstance(answer(), Ready)
        for _ in range(2):
            worker.call(SlideFile("vast", path))
            told = answer()
            assert isinstance(told, Failed)
            assert told.reason.startswith(f"{path}: takes more memory than this process may have.")
    finally:
        worker.kill()


class Arriving(threading.Thread):
    """Slides that a scanner writes in pieces, each another image."""

    def __init__(self, incoming: Path, slides: list[Path], seed: int) -> None:
        super().__init__()
        self._incoming, self._slides, self._random = incoming, slides, random.Random(seed)

    def run(self) -> None:
        for slide in self._slides:
            data = slide.read_bytes()
            cuts = sorted(self._random.randrange(len(data)) for _ in range(3))
            for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                with (self._incoming / slide.name).open("ab") as file:
                    file.write(data[start:end])
                time.sleep(self._random.uniform(0, 0.03))


class Results(threading.Thread):
    """Every result that ever stood in the output folder, as it was the first time."""

    def __init__(self, out: Path) -> None:
        super().__init__(daemon=True)
        self._out = out
        self.ended = False
        self.first: dict[str, tuple[int, int]] = {}
        self.again: list[str] = []

    def run(self) -> None:
        while not self.ended:
            for path in self._out.glob("*/result.json"):
                try:
                    status = path.stat()
                except FileNotFoundError:
                    self.again.append(path.parent.name)
                    continue
                is_ = (status.st_ino, status.st_mtime_ns)
                if self.first.setdefault(path.parent.name, is_) != is_:
                    self.again.append(path.parent.name)
            time.sleep(0.01)


def survive(
    tmp_path: Path, package_folder: Path, write_flat: Callable[..., Path], image: np.ndarray,
    *, slides: int, kills: int, seed: int,
) -> None:  # fmt: skip
    """Kill the watch again and again while slides arrive: each has one result in the end."""
    incoming, out, drawn = tmp_path / "in", tmp_path / "out", tmp_path / "drawn"
    for folder in (incoming, drawn, out):
        folder.mkdir()
    paths = []
    for number in range(slides):
        own = image.copy()
        own[128:192, 192:256, 0] += np.uint8(number % 100)
        paths.append(write_flat(drawn / f"S{number:03d}.svs", own))
    results, arriving = Results(out), Arriving(incoming, paths, seed)
    results.start()
    arriving.start()
    random_ = random.Random(seed)
    # Some as soon as it starts, the others once so many results are there, and a moment later.
    moments = sorted(random_.sample(range(slides - 1), kills))
    for moment in moments:
        watcher = command(incoming, out, package_folder)
        try:
            until(lambda moment=moment: len(results.first) >= moment)
            time.sleep(random_.uniform(0, 1.5))
        finally:
            watcher.kill()  # SIGKILL
            watcher.communicate()
    arriving.join()
    watcher = command(incoming, out, package_folder)
    try:
        until(lambda: is_idle(out) and beat(out)["done"] == slides, 300)
        watcher.send_signal(signal.SIGTERM)
        watcher.communicate(timeout=60)
    finally:
        watcher.kill()
    results.ended = True
    results.join()
    assert watcher.returncode == 0
    assert results.again == []
    names = [path.stem for path in paths]
    assert sorted(results.first) == names
    folders = sorted(path for path in out.iterdir() if path.is_dir())
    assert [path.name for path in folders] == names  # and nothing is superseded
    marks = set()
    for folder in folders:
        assert {path.name for path in folder.iterdir()} >= {"result.json", "report.html"}
        assert not list(folder.glob(".*"))
        result = json.loads((folder / "result.json").read_text("utf-8"))
        assert result["slide_id"] == folder.name
        marks.add(result["slide_fingerprint"])
    assert len(marks) == len({path.read_bytes() for path in paths})
    assert len([line for line in log(out) if line["event"] == "watch_started"]) <= kills + 1
    ended = beat(out)
    assert (ended["done"], ended["failed"], ended["quarantined"]) == (slides, 0, 0)


def test_slides_that_arrive_while_the_watch_is_killed(
    tmp_path, package_folder, write_flat, flat_image
):
    survive(tmp_path, package_folder, write_flat, flat_image, slides=8, kills=2, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_slides_and_ten_kills(tmp_path, package_folder, write_flat, flat_image):
    """None is missing, none is called twice."""
    survive(tmp_path, package_folder, write_flat, flat_image, slides=100, kills=10, seed=2)
    assert events(tmp_path / "out", "slide_interrupted")  # some kills did strike a slide
