"""The file in which entries wait for MLflow: whole after a kill, and empty when all is sent."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from medkd.errors import OutputError
from medkd.tracking.outbox import Outbox, count_metrics


def metrics(step: int) -> dict[str, object]:
    return {"values": {"loss": "0.5", "auroc": "nan"}, "step": step}


def steps(outbox: Outbox) -> list[int]:
    return [entry.content["step"] for entry in outbox.waiting()]


def test_a_new_process_finds_what_was_not_settled_in_order(tmp_path: Path) -> None:
    path = tmp_path / "outbox.jsonl"
    outbox = Outbox(path)
    for step in range(5):
        outbox.add("a", "metrics", metrics(step))
    outbox.settle([outbox.waiting()[1], outbox.waiting()[3]])
    before = outbox.waiting()
    again = Outbox(path)
    assert again.waiting() == before
    assert steps(again) == [0, 2, 4]
    assert count_metrics(again.waiting()) == 6
    # The file holds no more than what waits, and numbers are not given twice.
    assert len(path.read_text().splitlines()) == 3
    again.add("a", "metrics", metrics(5))
    assert [entry.number for entry in again.waiting()] == [1, 3, 5, 6]


def test_no_file_is_left_when_all_is_settled(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.jsonl")
    outbox.add("a", "metrics", metrics(0))
    outbox.settle(outbox.waiting())
    assert not list(tmp_path.iterdir())
    outbox.add("a", "metrics", metrics(1))
    assert steps(Outbox(outbox.path)) == [1]


@pytest.mark.parametrize("kept_bytes", [1, 40, -1])
def test_a_line_that_was_cut_short_costs_that_line_alone(tmp_path: Path, kept_bytes: int) -> None:
    path = tmp_path / "outbox.jsonl"
    outbox = Outbox(path)
    for step in range(3):
        outbox.add("a", "metrics", metrics(step))
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second + third[:kept_bytes])
    again = Outbox(path)
    assert steps(again) == [0, 1]
    again.add("a", "metrics", metrics(7))
    assert steps(Outbox(path)) == [0, 1, 7]


def test_a_torn_note_of_what_was_sent_sends_it_again(tmp_path: Path) -> None:
    path = tmp_path / "outbox.jsonl"
    outbox = Outbox(path)
    for step in range(2):
        outbox.add("a", "metrics", metrics(step))
    outbox.settle(outbox.waiting()[:1])
    path.write_bytes(path.read_bytes()[:-2])
    assert steps(Outbox(path)) == [0, 1]


def test_a_line_that_someone_broke_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "outbox.jsonl"
    outbox = Outbox(path)
    for step in range(3):
        outbox.add("a", "metrics", metrics(step))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "rubbish", json.dumps([1]), lines[2]]) + "\n")
    assert steps(Outbox(path)) == [0, 2]
    assert capsys.readouterr().err == (
        f"warning: {path}: 2 lines cannot be read; MLflow will not get what they held\n"
    )


def test_a_full_disk_is_told_and_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "outbox.jsonl"
    outbox = Outbox(path)
    outbox.add("a", "metrics", metrics(0))
    whole = path.read_bytes()
    true_open = Path.open

    def full(self: Path, mode: str = "r") -> object:
        file = true_open(self, mode)
        true_write = file.write

        class Full:
            def __enter__(self) -> Full:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def write(self, line: bytes) -> None:
                true_write(line[:10])
                file.flush()
                raise OSError(errno.ENOSPC, "No space left on device")

            def __getattr__(self, name: str) -> object:
                return getattr(file, name)

        return Full()

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError, match=r"outbox\.jsonl: no space left on the disk\. Free some"):
        outbox.add("a", "metrics", metrics(1))
    monkeypatch.undo()
    assert path.read_bytes() == whole
    outbox.add("a", "metrics", metrics(2))
    assert steps(Outbox(path)) == [0, 2]


def test_a_closed_outbox_leaves_the_file_to_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "outbox.jsonl"
    first = Outbox(path)
    first.add("a", "metrics", metrics(0))
    first.close()
    second = Outbox(path)
    second.add("a", "metrics", metrics(1))
    # A request of the first one ends late.
    first.settle(first.waiting())
    assert steps(Outbox(path)) == [0, 1]
