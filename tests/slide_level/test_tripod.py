"""The TRIPOD+AI checklist: all items, what the run knows, and what it leaves to the authors."""

from __future__ import annotations

import pytest

from medkd.slide_level.evaluate_stage import run_evaluate_stage
from medkd.slide_level.tripod import ChecklistItem, tripod_items, tripod_markdown
from tests.slide_level.evaluated_run import aggregated_run


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        config = aggregated_run(tmp_path_factory.mktemp("tripod"), tracked=True)
        return run_evaluate_stage(config).report


@pytest.fixture
def items(report: dict) -> dict[str, ChecklistItem]:
    return {item.number: item for item in tripod_items(report)}


def test_all_items_are_there_in_order(report: dict) -> None:
    numbers = [item.number for item in tripod_items(report)]
    several = {3: 3, 5: 2, 6: 3, 8: 3, 9: 3, 12: 7, 18: 6, 20: 3, 23: 2, 27: 3}
    expected = [
        f"{number}{letter}"
        for number in range(1, 28)
        for letter in ("abcdefg"[: several[number]] if number in several else ("",))
    ]
    assert numbers == expected
    assert len(numbers) == 52


def test_what_the_run_knows_stands_in_figures(items, report: dict) -> None:
    assert "5 test patients with a score, 2 of them MSI" in items["10"].known
    assert report["model"]["sha256"] in items["22"].known
    assert "Threshold 0.5000" in items["15"].known
    assert "AUROC 0.833" in items["23a"].known
    assert "7 eligible (3 MSI), 5 scored, 3 called, 1 indeterminate" in items["20a"].known
    assert "train 2 patients, 1 MSI" in items["21"].known
    assert "gated_attention" in items["12e"].known


def test_what_no_run_can_know_is_left_to_the_authors(items) -> None:
    for number in ("2", "3a", "3c", "5b", "6a", "8b", "8c", "17", "18a", "18b", "18d", "19", "25"):
        assert items[number].known == ""


def test_what_is_in_doubt_is_not_claimed(report: dict) -> None:
    leaky = {**report, "run": {**report["run"], "allowed_leakage": ["shared_patients"]}}
    known = {item.number: item.known for item in tripod_items(leaky)}
    assert "shared_patients" in known["12a"]
    assert "No patient has two roles" not in known["12a"]
    tile = {**report["model"]["tile"], "imported": "tcga-tiles"}
    imported = {**report, "model": {**report["model"], "tile": tile}}
    known = {item.number: item.known for item in tripod_items(imported)}
    assert "imported (tcga-tiles); their quality checks: the authors" in known["7"]
    assert known["9c"] == ""


def test_the_markdown_has_a_row_for_each_item(report: dict) -> None:
    items = tripod_items(report)
    text = tripod_markdown(report, items)
    rows = [line for line in text.splitlines() if line.startswith(("| 1", "| 2", "| 3"))]
    assert "| 17 Ethics | approval and consent | *To be written by the authors.* |" in rows
    assert sum(line.count(" | ") == 2 and line[2].isdigit() for line in text.splitlines()) == 52
    assert "**Synthetic slides" in text
    assert "e078378" in text
    one = ChecklistItem("1", "Title and abstract", "Title", "what", "a | b")
    assert "| 1 Title | what | a \\| b |" in tripod_markdown(report, [one])
