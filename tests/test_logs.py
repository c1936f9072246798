from __future__ import annotations

import json
import logging
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from medkd.errors import OutputError
from medkd.logs import json_log, log_event

LOG = logging.getLogger("medkd.tests")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def test_an_event_is_one_line_whatever_it_holds(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    with json_log(path):
        log_event(LOG, "slide_called", slide_id='a\n"b"\udcff\x1b[31m', seconds=1.5, call=None)
        LOG.debug("not told")
        LOG.warning("in words")
    LOG.warning("after its end")
    first, second = lines(path)
    assert list(first) == ["time", "level", "event", "slide_id", "seconds", "call"]
    assert first["slide_id"] == 'a\n"b"\udcff\x1b[31m'
    assert (first["level"], first["event"], first["seconds"]) == ("info", "slide_called", 1.5)
    assert datetime.fromisoformat(first["time"]).utcoffset() == timedelta(0)
    assert (second["level"], second["event"]) == ("warning", "in words")


def test_an_error_keeps_its_traceback(tmp_path):
    with json_log(tmp_path / "log.jsonl"):
        try:
            int("x")
        except ValueError:
            LOG.exception("unforeseen")
    (line,) = lines(tmp_path / "log.jsonl")
    assert line["level"] == "error"
    assert "ValueError: invalid literal" in line["traceback"]


def test_a_log_goes_on_after_a_line_without_an_end(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"event": "first"}\n{"event": "cut o')
    with json_log(path):
        log_event(LOG, "second")
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()[::2]] == [
        "first",
        "second",
    ]


def test_a_log_does_not_grow_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("medkd.logs._LARGEST_BYTES", 1000)
    with json_log(tmp_path / "log.jsonl"):
        for number in range(100):
            log_event(LOG, "event", number=number)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["log.jsonl", *(f"log.jsonl.{n}" for n in range(1, 6))]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert lines(tmp_path / "log.jsonl")[-1]["number"] == 99


def test_a_log_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="a file stands where a folder is needed"),
        json_log(tmp_path / "file" / "log.jsonl"),
    ):
        pass
    (tmp_path / "log.jsonl").mkdir()
    with (
        pytest.raises(OutputError, match="a folder stands where a file is needed"),
        json_log(tmp_path / "log.jsonl"),
    ):
        pass
