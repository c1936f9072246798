"""The evaluate stage on runs made by hand: its files, its figures, MLflow, and the command."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm, rankdata
from typer.testing import CliRunner

from medkd.cli import app
from medkd.config import Config
from medkd.slide_level.evaluate_stage import EvaluateResult, run_evaluate_stage
from medkd.tracking import connect, read_run_ids, tracking_uri
from tests.slide_level.evaluated_run import PATIENTS, Row, aggregated_run, changed

OTHER = changed(PATIENTS, t2={"score": 0.75}, t3={"score": 0.375})
MANY = (
    *(Row(f"v{n}", "validation", ("MSS", "MSI")[n % 2], n / 8, n / 8, "MSS") for n in range(4)),
    Row("r", "train", "MSS", 0.5, 0.5, "MSS"),
    *(
        Row(
            f"t{n:02}",
            "test",
            "MSI" if n % 3 == 0 else "MSS",
            (0.9 if n % 3 == 0 else 0.1) if n < 57 else 0.5,
            n / 64,
            "indeterminate",
            columns=(("site", "north" if n < 36 else "south"), ("sex", "f" if n == 0 else "")),
        )
        for n in range(60)
    ),
    Row("t00", "test", "MSI", None, lost="no tiles", columns=(("site", "south"),)),
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Config, EvaluateResult]]:
    """The hand-made run, evaluated once against another one; no test writes to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        folder = tmp_path_factory.mktemp("evaluated")
        aggregated_run(folder, OTHER, name="other")
        config = aggregated_run(folder, tracked=True)
        yield config, run_evaluate_stage(config, against=("other",))


@pytest.fixture(scope="module")
def report(done: tuple[Config, EvaluateResult]) -> dict:
    return json.loads((done[0].run_folder / "evaluation" / "report.json").read_text())


def test_the_json_is_what_the_stage_returns(done, report: dict) -> None:
    assert report == json.loads(json.dumps(done[1].report))
    assert (report["schema_version"], report["research_use_only"]) == (1, True)
    assert report["synthetic"] == {"model": True, "test_slides": 8}


def test_patients_are_counted_from_slides_csv_to_their_calls(report: dict) -> None:
    flow = report["flow"]
    assert flow["eligible"] == {"patients": 7, "positives": 3, "slides": 8}
    assert flow["without_tiles"] == {
        "failed in tiling: missing mpp": {"patients": 1, "positives": 1, "slides": 1},
        "no usable tile": {"patients": 1, "positives": 0, "slides": 1},
    }
    assert (flow["scored"], flow["called"]) == (5, 3)
    assert report["cohort"]["roles"] == {
        "train": {"patients": 2, "positives": 1, "scored": 2},
        "validation": {"patients": 4, "positives": 2, "scored": 4},
        "test": {"patients": 7, "positives": 3, "scored": 5},
    }


def test_discrimination_is_that_of_test_patients_alone(report: dict) -> None:
    found = report["discrimination"]
    assert found["auroc"]["delong"]["value"] == pytest.approx(5 / 6)
    assert found["auroc"]["bootstrap"]["value"] == pytest.approx(5 / 6)
    # Precision 1 at the first positive, 2/3 at the second.
    assert found["auprc"]["value"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["roc"]["false_positive_rate"] == pytest.approx([0, 0, 1 / 3, 1 / 3, 2 / 3, 1])
    assert found["roc"]["sensitivity"] == pytest.approx([0, 0.5, 0.5, 1, 1, 1])
    assert sum(found["probabilities"]["positives"]) == 2
    assert sum(found["probabilities"]["negatives"]) == 3


def test_accuracy_is_told_for_the_threshold_the_calls_and_the_use_as_a_rule_out(
    report: dict,
) -> None:
    def cells(of: str) -> tuple[int, ...]:
        names = ("true_positives", "false_negatives", "true_negatives", "false_positives")
        return tuple(report["accuracy"][of][name] for name in names)

    assert cells("threshold") == (1, 1, 2, 1)
    assert cells("calls") == (1, 0, 1, 1)
    # Who has no call, or no tiles, goes on to the standard test: only t4 is ruled out.
    assert cells("rule_out") == (3, 0, 1, 3)
    assert report["accuracy"]["rule_out"]["ruled_out"]["value"] == pytest.approx(1 / 7)
    # Clopper and Pearson of 1 in 2: 1 - sqrt(1 - 0.025).
    sensitivity = report["accuracy"]["threshold"]["sensitivity"]
    assert sensitivity["lower"] == pytest.approx(1 - 0.975**0.5)


def test_what_a_call_means_elsewhere(report: dict) -> None:
    (row,) = report["accuracy"]["predictive_values"]
    assert row["prevalence"] == 0.15
    assert row["ppv"]["value"] == pytest.approx(0.075 / (0.075 + 0.85 / 3))
    assert row["npv"]["value"] == pytest.approx((1.7 / 3) / (1.7 / 3 + 0.075))
    assert report["accuracy"]["likelihood_ratios"]["positive"]["value"] == pytest.approx(1.5)
    assert report["accuracy"]["likelihood_ratios"]["negative"]["value"] == pytest.approx(0.75)
    (ruled_out,) = report["decision_curves"]["ruled_out"]
    here, elsewhere = ruled_out["shares"]
    # Half of the positives lie above all others: 4 of 5 patients are below.
    assert (here["prevalence"], here["value"]) == (None, pytest.approx(0.8))
    assert elsewhere["value"] == pytest.approx(0.15 * 0.5 + 0.85)


def test_calibration_and_net_benefit(report: dict) -> None:
    errors = [0.125, 0.625, 0.5625, 0.125, 0.0625]
    brier = sum(error**2 for error in errors) / 5
    assert report["calibration"]["brier_score"]["value"] == pytest.approx(brier)
    assert sum(one["patients"] for one in report["calibration"]["reliability"]) == 5
    curves = report["decision_curves"]
    at = {p: n for n, p in enumerate(curves["threshold_probabilities"])}
    own, stated = curves["curves"]
    assert (own["prevalence"], stated["prevalence"]) == (pytest.approx(0.4), 0.15)
    # At 0.5 one true and one false positive cancel; at 0.7 one true positive in five is left.
    assert own["net_benefit"][at[0.5]] == pytest.approx(0)
    assert own["net_benefit"][at[0.7]] == pytest.approx(0.2)
    assert stated["net_benefit"][at[0.7]] == pytest.approx(0.075)


def test_the_other_pooling_is_tested_against_the_one_that_ships(report: dict) -> None:
    shipped, other = report["poolings"]
    assert [m["name"] for m in report["poolings"]] == ["mean_probability", "gated_attention"]
    assert shipped["difference"] is None
    assert (shipped["threshold"], other["threshold"]) == (0.5, 0.25)
    # At its own threshold: both positives and, of the negatives, 0.25 itself.
    assert other["sensitivity"]["value"] == 1
    assert other["specificity"]["value"] == pytest.approx(2 / 3)
    difference = other["difference"]
    assert difference["delong"]["value"] == pytest.approx(1 / 6)
    # Of the pairs one differs: components 0 and 1/3 of the positives, 1/2, 0 and 0 of the
    # negatives, with variances 1/18 / 2 and 1/12 / 3.
    z = (1 / 6) / (1 / 36 + 1 / 36) ** 0.5
    assert difference["delong_p"] == pytest.approx(2 * norm.sf(z))
    assert difference["bootstrap"]["value"] == pytest.approx(1 / 6)
    assert difference["permutation_p"] == pytest.approx(every_permutation(), abs=0.08)


def every_permutation() -> float:
    """The share of all 32 swaps of ranks with at least the difference."""
    truth = np.array([True, True, False, False, False])
    first = rankdata([0.875, 0.375, 0.5625, 0.125, 0.0625])
    second = rankdata([0.75, 0.5, 0.25, 0.125, 0.0625])

    def area(of: np.ndarray) -> float:
        pairs = [(p > n) + (p == n) / 2 for p in of[truth] for n in of[~truth]]
        return float(np.mean(pairs))

    differences = [
        abs(area(np.where(swap, second, first)) - area(np.where(swap, first, second)))
        for swap in itertools.product((True, False), repeat=5)
    ]
    return float(np.mean(np.array(differences) >= 1 / 6 - 1e-9))


def test_another_run_is_compared_on_the_same_patients(report: dict) -> None:
    this, other = report["against"]
    assert (this["name"], other["name"]) == ("small", "other")
    assert other["auroc"]["delong"]["value"] == 1
    assert other["difference"]["delong"]["value"] == pytest.approx(1 / 6)


def test_few_patients_are_told_before_any_figure(report: dict) -> None:
    assert report["warnings"] == [
        "Only 2 test patients are MSI: fewer than 10 say little, whatever the figure.",
        "Only 3 test patients are not MSI: fewer than 10 say little, whatever the figure.",
        "The operating point was chosen on 2 MSI patients alone: on others its sensitivity may be "
        "far from what was asked for.",
        "4 of 7 test patients have no call: figures of the threshold alone are not those of the "
        "calls.",
        "2 models are compared with the one that ships; p-values are not corrected for that.",
    ]


def test_the_terminal_shows_models_and_where_the_report_is(done) -> None:
    config, result = done
    assert [row[0] for row in result.model_rows] == ["mean_probability", "gated_attention", "other"]
    assert result.model_rows[1][4:6] == ("+0.167", "0.480")
    assert result.lines[0] == (
        "7 test patients (3 MSI): 5 scored, 3 called, 1 indeterminate, 1 without result."
    )
    assert result.lines[-1] == f"Report: {config.run_folder / 'evaluation' / 'report.html'}"


def test_new_metrics_and_the_three_files_are_in_the_parent_run(done) -> None:
    config, _ = done
    client, _ = connect(config)
    parent = read_run_ids(config.run_folder, tracking_uri(config))["parent"]
    metrics = client.get_run(parent).data.metrics
    assert metrics["test/auprc"] == pytest.approx(5 / 6)
    assert metrics["test/likelihood_ratio_positive"] == pytest.approx(1.5)
    assert metrics["test/npv_at_prevalence_0.15_lower"] < metrics["test/npv_at_prevalence_0.15"]
    assert metrics["test/poolings/gated_attention/delong_p"] == pytest.approx(0.4795, abs=1e-4)
    assert metrics["test/against/other/auroc"] == 1
    assert metrics["test/called_share"] == pytest.approx(3 / 7)
    # The aggregate stage logs these.
    assert not {"test/patient_auroc", "test/sensitivity", "test/brier_score"} & set(metrics)
    files = {item.path for item in client.list_artifacts(parent, "evaluation")}
    assert files == {
        f"evaluation/{name}" for name in ("report.html", "report.json", "tripod_ai.md")
    }


class _Page(HTMLParser):
    """What a page loads, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def page_in(folder: Path) -> _Page:
    return _Page((folder / "report.html").read_text("utf-8"))


def test_the_page_loads_nothing_and_runs_nothing(done) -> None:
    page = page_in(done[0].run_folder / "evaluation")
    assert page.sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert not {"script", "link", "iframe"} & page.tags


def test_the_page_says_loudly_that_the_slides_were_drawn(done) -> None:
    words = " ".join(page_in(done[0].run_folder / "evaluation").text.split())
    assert "Synthetic slides: 8 of 8 test slides were drawn, not scanned." in words
    assert "Not in slides.csv: site, scanner, stage, sex." in words
    assert "2 †" in words


def test_names_of_others_are_text_on_the_page(tmp_path: Path) -> None:
    rows = [
        Row(r.patient, r.role, r.label, r.score, r.head, r.call, r.lost, (("site", "<script>x"),))
        for r in PATIENTS
    ]
    config = aggregated_run(tmp_path / "run", rows, tracked=True)
    run_evaluate_stage(config)
    page = page_in(config.run_folder / "evaluation")
    assert "script" not in page.tags
    assert "<script>x" in page.text


def test_subgroups_have_their_own_patients(tmp_path: Path) -> None:
    config = aggregated_run(tmp_path / "run", MANY, tracked=True)
    found = run_evaluate_stage(config).report["subgroups"]
    assert found["scanner"] is None
    north, south = found["site"]
    assert (north["group"], north["patients"], north["positives"]) == ("north", 36, 12)
    assert north["auroc"]["value"] == north["sensitivity"]["value"] == 1
    # t00 has a slide there too: 25 patients, 9 of them positive, too few for a figure of theirs.
    assert (south["group"], south["patients"], south["positives"]) == ("south", 25, 9)
    assert "value" not in south["sensitivity"]
    assert south["sensitivity"]["reason"].startswith("too few: fewer than 10")
    # 16 negatives; t58 and t59 score 0.5, which counts as positive.
    assert south["specificity"]["value"] == pytest.approx(14 / 16)
    assert [group["group"] for group in found["sex"]] == ["f", "(not given)"]


def test_the_command_evaluates_and_writes_where_it_is_told(tmp_path: Path) -> None:
    config = aggregated_run(tmp_path / "run", synthetic=False, tracked=True)
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["evaluate", "--config", str(tmp_path / "run" / "small.yaml"), "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert "gated_attention" in done.output
    names = {"report.html", "report.json", "tripod_ai.md"}
    assert {path.name for path in out.iterdir()} == names
    assert not (config.run_folder / "evaluation").exists()
    assert "Synthetic" not in page_in(out).text
