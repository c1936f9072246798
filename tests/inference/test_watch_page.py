from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from medkd.inference.package import load_package
from medkd.inference.watch_page import Glance, heartbeat, queue_html, write_glance
from medkd.inference.watch_state import Status, WatchedSlide
from tests.inference.test_report import Seen

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
EVIL = "<script>alert('1')</script>\"><img src=x onerror=alert(2)>"


def row(number: int, status: Status, **more: str) -> WatchedSlide:
    at = NOW.timestamp() - number
    return WatchedSlide(f"in/{number}.svs", f"S{number}", "", "", status, at, at, **more)


@pytest.fixture(scope="module")
def glance(package_folder) -> Glance:
    waiting = row(1, Status.WAITING)
    slides = (
        waiting,
        row(2, Status.RUNNING),
        row(3, Status.DONE, call="MSS"),
        row(4, Status.DONE, call="indeterminate"),
        row(5, Status.FAILED, reason="is an empty file"),
        row(6, Status.QUARANTINED, reason="2 times"),
        row(7, Status.WAITING),  # its file was taken away
    )
    package = load_package(package_folder)
    return Glance(package, 10.0, slides, (waiting,), slides[1], ("late.svs",), "", "", "")


def test_the_heartbeat(glance):
    beat = heartbeat(glance, NOW)
    model, process = beat.pop("model"), beat.pop("process")
    assert model == {"name": "by-hand", "version": "1", "sha256": glance.package.sha256}
    assert process > 0
    assert beat.pop("medkd")
    assert beat == {
        "time": "2026-01-02T03:04:05+00:00",
        "status": "watching",
        "problem": None,
        "stopped": None,
        "poll_s": 10.0,
        "now_at": "S2",
        "now_since": "2026-01-02T03:04:03+00:00",
        "queue": 1,
        "settling": 1,
        "done": 2,
        "failed": 1,
        "quarantined": 1,
        "research_use_only": True,
    }
    assert heartbeat(replace(glance, problem="full"), NOW)["status"] == "problem"
    ended = heartbeat(replace(glance, problem="full", stopped="asked"), NOW)
    assert (ended["status"], ended["problem"], ended["stopped"]) == ("stopped", "full", "asked")


def test_the_page_shows_every_slide_and_loads_nothing(glance):
    seen = Seen(queue_html(glance, NOW))
    for text in ("S1", "S2", "S3", "S4", "S5", "S6", "is an empty file", "late.svs", "MSS"):
        assert text in seen.shown
    assert "S7" not in seen.shown
    assert "Research use only" in seen.shown
    assert "since 2026-01-02 03:04:03 UTC" in seen.shown
    metas = [attributes for tag, attributes in seen.tags if tag == "meta"]
    assert {"http-equiv": "refresh", "content": "10"} in metas
    assert {
        "http-equiv": "Content-Security-Policy",
        "content": "default-src 'none'; style-src 'unsafe-inline'",
    } in metas
    assert not {tag for tag, _ in seen.tags} & {"script", "img", "link", "iframe", "form"}
    links = [attributes["href"] for tag, attributes in seen.tags if tag == "a"]
    assert links == ["S3/report.html", "S4/report.html"]


def test_other_peoples_text_is_shown_and_never_obeyed(glance, tmp_path):
    bad = replace(row(5, Status.FAILED), key=EVIL, reason=EVIL)
    waiting = replace(row(1, Status.WAITING), key=EVIL, reason=EVIL)
    done = replace(row(3, Status.DONE), key=EVIL, call=EVIL)
    running = replace(row(2, Status.RUNNING), key=EVIL)
    evil = replace(
        glance,
        slides=(bad, waiting, done, running),
        queue=(waiting,),
        running=running,
        settling=(EVIL,),
        left_aside=EVIL,
        problem=EVIL,
    )
    write_glance(tmp_path, evil)
    seen = Seen((tmp_path / "queue.html").read_text("utf-8"))
    assert not {tag for tag, _ in seen.tags} & {"script", "img"}
    assert not [name for _, attributes in seen.tags for name in attributes if name[:2] == "on"]
    assert seen.shown.count(EVIL) == 10
    assert json.loads((tmp_path / "heartbeat.json").read_text("utf-8"))["problem"] == EVIL
    stopped = Seen(queue_html(replace(evil, stopped=EVIL), NOW))
    assert not {tag for tag, _ in stopped.tags} & {"script", "img"}


def test_a_watch_that_ended_says_so_and_is_not_loaded_again(glance):
    html = queue_html(replace(glance, stopped="asked to stop"), NOW)
    assert "The watch has ended: asked to stop" in Seen(html).shown
    assert "refresh" not in html


def test_a_year_of_slides_does_not_make_a_page_of_them(glance):
    many = tuple(row(number, Status.DONE, call="MSS") for number in range(10_000))
    html = queue_html(replace(glance, slides=many), NOW)
    assert len(re.findall(r"report\.html", html)) == 100
    assert "and 9900 more" in html
    assert html.index("S0/report.html") < html.index("S99/report.html")  # the latest first
