"""How long figures with intervals take, and pooling tens of millions of tile predictions.

    taskset -c 0 python pipelines/benchmarks/slide_statistics.py          # --quick for a short look

AUROC, AUPRC, sensitivity, specificity, PPV and NPV of 10,000 drawn patients over 2,000 resamples,
against a loop over scikit-learn's functions; the loop runs fewer resamples, and its time is taken
per resample. Then intervals of slides over tiles, against one set of draws for each slide. The
ways take turns in several rounds, after one that does not count; figures are CPU time, medians
over the rounds, and medians of each round's quotients.

Then a file of 50 million predictions of 5,000 slides by four networks, one slide after another, is
pooled in a process of its own. The last line is a JSON object; ends with status 1 where two
ways that should give the same figures do not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before numpy is imported: its thread pools take their size when they are made.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402
from scipy.special import expit  # noqa: E402
from sklearn.metrics import (  # noqa: E402
    average_precision_score,
    precision_score,
    recall_score,
    roc_auc_score,
)
from slide_statistics_pooling import pooling_figures  # noqa: E402

from medkd.slide_level.pooling import pool_slide  # noqa: E402
from medkd.slide_level.resampling import bootstrap  # noqa: E402
from medkd.slide_level.score_interval import Interval  # noqa: E402
from medkd.slide_level.scored import scored_patients  # noqa: E402
from medkd.slide_level.statistics import (  # noqa: E402
    AUPRC,
    AUROC,
    npv_at,
    ppv_at,
    sensitivity_at,
    specificity_at,
)
from medkd.slide_level.tile_weights import TileWeights  # noqa: E402

PATIENTS = 10_000
PREVALENCE = 0.15
THRESHOLD = 0.5
RESAMPLES = 2000
CONFIDENCE = 0.95
SLIDE_TILES = 2500
FIGURES = (
    AUROC,
    AUPRC,
    sensitivity_at(THRESHOLD),
    specificity_at(THRESHOLD),
    ppv_at(THRESHOLD),
    npv_at(THRESHOLD),
)

Way = Callable[[], dict[str, Any]]


def sklearn_figures(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """The same figures by scikit-learn."""
    called = scores >= THRESHOLD
    return {
        "auroc": roc_auc_score(labels, scores),
        "auprc": average_precision_score(labels, scores),
        "sensitivity": recall_score(labels, called),
        "specificity": recall_score(labels, called, pos_label=0),
        "ppv": precision_score(labels, called),
        "npv": precision_score(labels, called, pos_label=0),
    }


def cohort_ways(resamples_of_loop: int) -> dict[str, Way]:
    """The bootstrap of medkd, and a loop of fewer resamples; each gives (lower, upper)."""
    random = np.random.default_rng(0)
    labels = random.random(PATIENTS) < PREVALENCE
    scores = expit(random.normal(2 * labels - 1.5))
    sides = np.flatnonzero(labels), np.flatnonzero(~labels)
    tail = (1 - CONFIDENCE) / 2

    def medkd() -> dict[str, Any]:
        cohort = scored_patients(labels, scores)
        found = bootstrap(cohort, FIGURES, resamples=RESAMPLES, confidence=CONFIDENCE)
        return {name: (e.value, e.lower, e.upper) for name, e in found.items()}

    def loop() -> dict[str, Any]:
        drawn = []
        for _ in range(resamples_of_loop):
            chosen = np.concatenate([random.choice(side, len(side)) for side in sides])
            drawn.append(sklearn_figures(labels[chosen], scores[chosen]))
        return {
            name: (value, *np.quantile([one[name] for one in drawn], [tail, 1 - tail]))
            for name, value in sklearn_figures(labels, scores).items()
        }

    return {"medkd": medkd, "sklearn_loop": loop}


def tile_ways() -> dict[str, Way]:
    """The interval of one slide over its tiles from weights at hand, and from draws of its own."""
    random = np.random.default_rng(0)
    values = random.random((1, SLIDE_TILES), np.float32)
    weights = TileWeights(RESAMPLES)
    weights.sums(values)
    tail = (1 - CONFIDENCE) / 2

    def at_hand() -> dict[str, Any]:
        mean = values.mean(dtype=np.float64)
        sums, totals = weights.sums(values - np.float32(mean))
        return {"score": (mean, *(mean + np.quantile(sums[0] / totals, [tail, 1 - tail])))}

    def of_its_own() -> dict[str, Any]:
        found = pool_slide({"s": values[0]}, resamples=RESAMPLES, interval=Interval(CONFIDENCE))
        return {"score": (found.score, found.lower, found.upper)}

    return {"weights_at_hand": at_hand, "draws_of_its_own": of_its_own}


def measure(
    ways: dict[str, Way], rounds: int
) -> tuple[dict[str, list[float]], dict[str, dict[str, Any]]]:
    """CPU seconds of each way in each round, and what each found last."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found = {}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = time.process_time()
            found[name] = way()
            if number:
                seconds[name].append(time.process_time() - began)
    return seconds, found


def agree(one: dict[str, Any], other: dict[str, Any], share_of_width: float) -> bool:
    """Whether values are equal and ends of intervals within a share of the interval's width."""
    return all(
        abs(value - other[name][0]) < 1e-9
        and max(abs(lower - other[name][1]), abs(upper - other[name][2]))
        < share_of_width * (upper - lower)
        for name, (value, lower, upper) in one.items()
    )


def main() -> int:
    """Measure, print, and end with the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loop-resamples", type=int, default=100, help="of scikit-learn's loop")
    parser.add_argument("--rows", type=int, default=50_000_000, help="predictions to pool")
    parser.add_argument("--slides", type=int, default=5000, help="slides they belong to")
    parser.add_argument("--quick", action="store_true", help="3 rounds, 2 million predictions")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.rows, arguments.slides = 3, 2_000_000, 200

    cohort, found = measure(cohort_ways(arguments.loop_resamples), arguments.rounds)
    # The ends of an interval from 100 resamples wander by a quarter of its width.
    right = agree(found["medkd"], found["sklearn_loop"], 0.35)
    scale = RESAMPLES / arguments.loop_resamples
    loop_s = [scale * seconds for seconds in cohort["sklearn_loop"]]
    vs_loop = statistics.median(
        slow / fast for slow, fast in zip(loop_s, cohort["medkd"], strict=True)
    )
    evaluate_s = statistics.median(cohort["medkd"])
    print(f"{len(FIGURES)} figures of {PATIENTS:,} patients, {RESAMPLES:,} resamples, CPU time")
    print(f"  medkd               {evaluate_s:8.2f} s")
    print(f"  scikit-learn loop   {statistics.median(loop_s):8.2f} s   {vs_loop:.0f} times as long")

    tiles, found = measure(tile_ways(), arguments.rounds)
    right &= agree(found["weights_at_hand"], found["draws_of_its_own"], 0.1)
    vs_draws = statistics.median(
        slow / fast
        for slow, fast in zip(tiles["draws_of_its_own"], tiles["weights_at_hand"], strict=True)
    )
    print(f"interval of a slide of {SLIDE_TILES:,} tiles, {RESAMPLES:,} resamples, CPU time")
    for name, values in tiles.items():
        print(f"  {name:<18} {1000 * statistics.median(values):8.2f} ms")

    result: dict[str, Any] = {
        "vs_sklearn_loop": round(vs_loop, 1),
        "evaluate_10k_s": round(evaluate_s, 3),
        "vs_draws_for_each_slide": round(vs_draws, 1),
    }
    pooled = pooling_figures(arguments.rows, arguments.slides, RESAMPLES, CONFIDENCE)
    right &= pooled.pop("right")
    # Under the name of what was measured: a shorter file is not 50 million rows.
    millions = f"{arguments.rows / 1e6:g}m"
    result |= {f"aggregate_{millions}_{name}": value for name, value in pooled.items()}
    result["right"] = right
    print(json.dumps(result))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
