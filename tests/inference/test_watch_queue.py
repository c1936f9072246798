"""What becomes of a slide: once each, whatever ends when."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from medkd.inference.infer_stage import infer_slides
from medkd.inference.package import load_package
from medkd.inference.slide_files import SlideFile
from medkd.inference.watch_folder import Arrival
from medkd.inference.watch_queue import MOST_CRASHES, MOST_INTERRUPTIONS, WatchQueue
from medkd.inference.watch_state import Status, WatchedSlide, WatchState
from medkd.slides.openslide_reader import fingerprint


@pytest.fixture(scope="module")
def package(package_folder):
    return load_package(package_folder)


@pytest.fixture(scope="module")
def finished(package, flat_slide, tmp_path_factory) -> Path:
    """The folder of results of the slide 'flat'."""
    out = tmp_path_factory.mktemp("finished")
    infer_slides([flat_slide], package, out)
    return out / "flat"


@dataclass
class Desk:
    """A queue with slides that arrive by hand."""

    queue: WatchQueue
    state: WatchState
    out: Path
    slide: Path

    def arrive(self, key: str, mark: str = "", *, slide_id: str = "a", present=()) -> WatchedSlide:
        mark = mark or fingerprint(self.slide)
        arrival = Arrival(key, SlideFile(slide_id, self.slide), f"{mark} now", mark)
        self.queue.arrived(arrival, {key, *present})
        return self.state.slides[key]

    def begin(self, key: str) -> WatchedSlide | None:
        return self.queue.begun(self.state.slides[key], self.slide)

    def statuses(self) -> dict[str, str]:
        return {key: str(row.status) for key, row in self.state.slides.items()}

    def waiting(self) -> list[str]:
        return [row.key for row in self.queue.waiting(self.state.slides)]

    def restarted(self) -> Desk:
        """As a new process would find it."""
        self.state.__exit__(None, None, None)
        return desk_of(self.out, self.slide, self.queue._model_sha256)


def desk_of(out: Path, slide: Path, sha256: str) -> Desk:
    state = WatchState(out / "state")
    names = ("queue.html", "superseded")
    queue = WatchQueue(state, out, model_sha256=sha256, mpp=None, kept_names=names)
    return Desk(queue, state, out, slide)


@pytest.fixture
def desk(package, flat_slide, tmp_path) -> Iterator[Desk]:
    desk = desk_of(tmp_path, flat_slide, package.sha256)
    yield desk
    desk.state.__exit__(None, None, None)


def test_a_slide_on_its_way(desk, finished):
    desk.arrive("a.svs")
    desk.arrive("b.svs", "other", slide_id="b")
    assert desk.waiting() == ["a.svs", "b.svs"]
    row = desk.begin("a.svs")
    assert desk.statuses() == {"a.svs": "running", "b.svs": "waiting"}
    shutil.copytree(finished, desk.out / "a")
    desk.queue.called(row, "MSI suspected", seconds=1.0)
    desk.queue.failed(desk.begin("b.svs"), "is an empty file")
    assert desk.statuses() == {"a.svs": "done", "b.svs": "failed"}
    assert desk.state.slides["a.svs"].call == "MSI suspected"
    assert desk.state.slides["b.svs"].reason == "is an empty file"
    assert desk.waiting() == []


def test_a_slide_that_is_not_there_does_not_hold_the_others_up(desk):
    desk.arrive("a.svs")
    desk.arrive("b.svs", "other", slide_id="b")
    assert [row.key for row in desk.queue.waiting({"b.svs"})] == ["b.svs"]


def test_a_slide_that_was_only_touched_is_not_called_again(desk, finished):
    row = desk.arrive("a.svs")
    shutil.copytree(finished, desk.out / "a")
    desk.queue.called(row, "MSS")
    again = desk.arrive("a.svs")
    assert (again.status, again.call) == (Status.DONE, "MSS")


@pytest.mark.parametrize("status", ["failed", "quarantined"])
def test_a_slide_in_trouble_has_another_try_when_it_is_touched(desk, status):
    row = desk.arrive("a.svs")
    if status == "failed":
        desk.queue.failed(row, "why")
    else:
        for _ in range(MOST_CRASHES):
            desk.queue.crashed(desk.begin("a.svs"), "why")
    assert desk.statuses() == {"a.svs": status}
    again = desk.arrive("a.svs")
    assert (again.status, again.crashes, again.reason) == (Status.WAITING, 0, "")


def test_a_changed_slide_is_called_anew_and_the_earlier_result_is_kept(desk, finished):
    for number in (1, 2):
        row = desk.arrive("a.svs", f"scan {number}")
        assert (row.status, row.slide_id) == (Status.WAITING, "a")
        assert not (desk.out / "a").exists()
        shutil.copytree(finished, desk.out / "a")
        (desk.out / "a" / "mark").write_text(str(number))
        desk.queue.called(row, "MSS")
    desk.arrive("a.svs", "scan 3")
    kept = sorted((desk.out / "superseded").iterdir())
    assert [path.name for path in kept] == ["a.1", "a.2"]
    assert [(path / "mark").read_text() for path in kept] == ["1", "2"]
    assert (kept[0] / "result.json").read_bytes() == (finished / "result.json").read_bytes()


def test_a_result_of_another_file_or_model_is_never_left_in_place(desk, finished):
    shutil.copytree(finished, desk.out / "a")
    result = json.loads((finished / "result.json").read_text())
    for key, value in (
        ("slide_fingerprint", "0" * 64),
        ("model", {**result["model"], "sha256": "f" * 64}),
    ):
        (desk.out / "a").mkdir(exist_ok=True)
        (desk.out / "a" / "result.json").write_text(json.dumps({**result, key: value}))
        desk.arrive("a.svs")
        assert desk.begin("a.svs").status is Status.RUNNING
        assert not (desk.out / "a").exists()
        desk.queue.recover(is_interruption=False)
    assert len(list((desk.out / "superseded").iterdir())) == 2


def test_a_result_that_is_there_is_not_made_twice(desk, finished):
    """The state was lost, or 'medkd infer' had called the slide."""
    shutil.copytree(finished, desk.out / "a")
    desk.arrive("a.svs")
    assert desk.begin("a.svs") is None
    row = desk.state.slides["a.svs"]
    assert (row.status, row.call) == (Status.DONE, "MSI suspected")
    assert not (desk.out / "superseded").exists()


def test_two_slides_of_one_name(desk):
    desk.arrive("x/a.svs", "one")
    second = desk.arrive("y/a.svs", "two", present=["x/a.svs"])
    assert second.status is Status.FAILED
    assert second.reason == (
        "y/a.svs: would be written to the same folder as x/a.svs. Rename or remove one of the two."
    )
    third = desk.arrive("z/a.svs", "one", present=["x/a.svs", "y/a.svs"])
    assert third.reason == (
        "z/a.svs: is the same slide as x/a.svs. Rename or remove one of the two."
    )
    # The one that has the name keeps it, changed or not.
    assert desk.arrive("x/a.svs", "three", present=["y/a.svs"]).status is Status.WAITING


def test_a_slide_that_was_moved_within_the_folder_is_called_once(desk, finished):
    row = desk.arrive("new/a.svs")
    shutil.copytree(finished, desk.out / "a")
    desk.queue.called(row, "MSI suspected")
    desk.arrive("archive/a.svs", present=[])
    assert list(desk.state.slides) == ["archive/a.svs"]
    assert desk.begin("archive/a.svs") is None
    assert desk.statuses() == {"archive/a.svs": "done"}


@pytest.mark.parametrize("slide_id", ["queue.html", "Superseded"])
def test_a_slide_may_not_have_the_name_of_a_file_of_the_watch(desk, slide_id):
    row = desk.arrive(f"{slide_id}.svs", slide_id=slide_id)
    assert row.status is Status.FAILED
    assert row.reason == (
        f"{slide_id}.svs: the watch keeps this name for a file of its own. Rename the slide."
    )


def test_what_crashed_twice_is_in_quarantine(desk):
    assert MOST_CRASHES == 2
    desk.arrive("a.svs")
    desk.arrive("b.svs", "other", slide_id="b")
    desk.queue.crashed(desk.begin("a.svs"), "it died (SIGSEGV)")
    assert desk.waiting() == ["b.svs", "a.svs"]  # others come first now
    assert desk.state.slides["a.svs"].reason == "it died (SIGSEGV)"
    desk = desk.restarted()
    desk.queue.crashed(desk.begin("a.svs"), "it died (SIGKILL)")
    row = desk.state.slides["a.svs"]
    assert (row.status, row.reason) == (
        Status.QUARANTINED,
        "2 times; the last time: it died (SIGKILL)",
    )
    assert desk.waiting() == ["b.svs"]


def test_a_kill_before_the_result_puts_the_slide_back(desk):
    """At the end of the queue, and it is no crash of the slide's."""
    desk.arrive("a.svs")
    desk.arrive("b.svs", "other", slide_id="b")
    desk.begin("a.svs")
    folder = desk.out / "a"
    folder.mkdir()
    (folder / ".result.json.999999999.medkd-tmp").write_text("half")
    (folder / "heatmap.png").write_text("whole, but result.json did not follow")
    desk = desk.restarted()
    desk.queue.recover(is_interruption=True)
    assert desk.waiting() == ["b.svs", "a.svs"]
    row = desk.state.slides["a.svs"]
    assert (row.crashes, row.interruptions) == (0, 1)
    assert [path.name for path in folder.iterdir()] == ["heatmap.png"]


def test_a_kill_after_the_result_does_not_call_the_slide_again(desk, finished):
    desk.arrive("a.svs")
    desk.begin("a.svs")
    shutil.copytree(finished, desk.out / "a")
    desk = desk.restarted()
    desk.queue.recover(is_interruption=True)
    row = desk.state.slides["a.svs"]
    assert (row.status, row.call, row.interruptions) == (Status.DONE, "MSI suspected", 0)


def test_a_slide_that_the_watch_gives_up_stays_first_and_uncounted(desk):
    desk.arrive("a.svs")
    desk.arrive("b.svs", "other", slide_id="b")
    desk.begin("a.svs")
    desk.queue.recover(is_interruption=False)
    assert desk.waiting() == ["a.svs", "b.svs"]
    assert desk.state.slides["a.svs"].interruptions == 0


def test_a_slide_that_takes_the_machine_down_does_not_do_so_for_ever(desk):
    desk.arrive("a.svs")
    for _ in range(MOST_INTERRUPTIONS):
        assert desk.waiting() == ["a.svs"]
        desk.begin("a.svs")
        desk = desk.restarted()
        desk.queue.recover(is_interruption=True)
    row = desk.state.slides["a.svs"]
    assert (row.status, row.reason) == (
        Status.QUARANTINED,
        "5 times; the last time: the watch was killed over it",
    )
