"""The bootstrap of images against theory, and against the same images written out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from medkd.tasks.detection_intervals import (
    Comparison,
    Estimate,
    bootstrap,
    compare,
    compare_means,
)
from medkd.tasks.detection_metrics import Matches, match, metrics
from medkd.tasks.detections import Detections

POLYP = ("polyp",)
BOX = (10.0, 10.0, 50.0, 50.0)
APART = (60.0, 60.0, 90.0, 90.0)


def found(*rows: tuple[tuple[float, float, float, float], float]) -> Detections:
    boxes = np.array([box for box, _ in rows], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score in rows], np.float32)
    return Detections(boxes, scores, np.zeros(len(rows), np.int64))


def labels(positives: int, negatives: int) -> np.ndarray:
    """One true box in each of the first images, none in the others."""
    rows = np.zeros((positives + negatives, 1, 5), np.float32)
    rows[:, :, 0] = -1
    rows[:positives, 0] = (0, *BOX)
    return rows


def seen(positives: int, hits: int, negatives: int = 0, alarms: int = 0) -> Matches:
    """So many of the true boxes are found, and so many of the other images are called."""
    images = [found((BOX, 0.9)) if i < hits else found() for i in range(positives)]
    images += [found((BOX, 0.8)) if i < alarms else found() for i in range(negatives)]
    return match(images, labels(positives, negatives), POLYP)


def random_images(seed: int, positives: int = 14, negatives: int = 9) -> list[Detections]:
    """Some boxes found better or worse, some wrong ones; scores are all different."""
    random = np.random.default_rng(seed)
    images = []
    for i in range(positives + negatives):
        rows = [(tuple(np.array(APART) + random.normal(0, 2, 4)), random.random())]
        if i < positives:
            rows.append((tuple(np.array(BOX) + random.normal(0, 5, 4)), random.random() ** 0.5))
        images.append(found(*sorted(rows, key=lambda row: -row[1])))
    return images


def test_values_are_the_metrics() -> None:
    images, rows = random_images(0), labels(14, 9)
    values = metrics(images, rows, POLYP, threshold=0.4)
    estimates = bootstrap(match(images, rows, POLYP), threshold=0.4, resamples=200)
    assert set(estimates) == set(values) - {"threshold"}
    for name, estimate in estimates.items():
        assert estimate.value == values[name], name
        assert estimate.lower is not None
        assert estimate.upper is not None
        assert estimate.lower < estimate.upper, name
        assert estimate.lower <= values[name] <= estimate.upper, name


def test_intervals_are_those_of_the_metrics_of_drawn_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same draws, written out image by image; in blocks that do not divide the resamples."""
    images, rows = random_images(1), labels(14, 9)
    matches = match(images, rows, POLYP)
    monkeypatch.setattr("medkd.tasks.detection_intervals._BLOCK", 7 * len(matches.scores))
    estimates = bootstrap(matches, threshold=0.4, resamples=60, confidence=0.9, seed=5)

    random = np.random.default_rng(5)
    positives = random.multinomial(14, [1 / 14] * 14, 60)
    negatives = random.multinomial(9, [1 / 9] * 9, 60)
    drawn = []
    for counts in np.concatenate([positives, negatives], axis=1):
        chosen = np.repeat(np.arange(23), counts)
        drawn.append(metrics([images[i] for i in chosen], rows[chosen], POLYP, threshold=0.4))
    for name, estimate in estimates.items():
        expected = np.quantile([values[name] for values in drawn], [0.05, 0.95])
        assert [estimate.lower, estimate.upper] == pytest.approx(expected, abs=1e-12), name


def test_a_share_of_images_has_the_quantiles_of_a_binomial() -> None:
    estimates = bootstrap(seen(40, 30, negatives=20, alarms=5), threshold=0.5, resamples=20_000)
    sensitivity, alarms = estimates["sensitivity"], estimates["fp_per_negative_image"]
    assert [sensitivity.lower, sensitivity.upper] == pytest.approx(
        binom.ppf([0.025, 0.975], 40, 0.75) / 40
    )
    assert [alarms.lower, alarms.upper] == pytest.approx(binom.ppf([0.025, 0.975], 20, 0.25) / 20)


def test_images_of_a_group_are_drawn_together() -> None:
    """Every image twice, in groups of two: nothing is known that was not known before."""
    images, rows = random_images(2), labels(14, 9)
    options = {"threshold": 0.4, "resamples": 150}
    once = bootstrap(match(images, rows, POLYP), **options)
    twice = bootstrap(
        match([*images, *images], np.concatenate([rows, rows]), POLYP),
        groups=np.array([f"video_{i:02d}" for i in range(23)] * 2),
        **options,
    )
    for name, estimate in once.items():
        other = twice[name]
        assert [other.value, other.lower, other.upper] == pytest.approx(
            [estimate.value, estimate.lower, estimate.upper]
        ), name


def test_a_share_of_one_has_the_interval_of_clopper_and_pearson() -> None:
    estimates = bootstrap(seen(10, 10, negatives=4, alarms=1), threshold=0.5, resamples=50)
    # 0.025 = p^10 at the lower end.
    for name in ("sensitivity", "recall_at_1_fp"):
        assert estimates[name].upper == 1
        assert estimates[name].lower == pytest.approx(0.025 ** (1 / 10))
    none = bootstrap(seen(10, 0), threshold=0.5, resamples=50)["sensitivity"]
    assert [none.lower, none.upper] == pytest.approx([0, 1 - 0.025 ** (1 / 10)])
    # The mean IoU is no share: it does not differ, and there is nothing to say.
    assert estimates["mean_iou"] == Estimate(
        1.0, reason="no resample differs: no interval by resampling"
    )


def test_why_there_is_no_value_or_no_interval() -> None:
    every = bootstrap(seen(6, 3), threshold=0.5, resamples=50)
    assert every["fp_per_negative_image"] == Estimate(
        None, reason="there is no image without a true box"
    )
    no_box = bootstrap(seen(0, 0, negatives=6, alarms=3), threshold=0.5, resamples=50)
    assert no_box["ap50"] == Estimate(None, reason="there is no image with a true box")
    one = bootstrap(seen(1, 1, negatives=6, alarms=3), threshold=0.5, resamples=50)
    assert one["sensitivity"] == Estimate(
        1.0, reason="images with a true box come from one source: no interval"
    )
    # Without a threshold, the figures at one are not there.
    assert set(bootstrap(seen(6, 3), resamples=50)) == {"ap", "ap50", "ap75", "recall_at_1_fp"}
    # Images without a box in two of ten videos: a tenth of the resamples have none (0.8^10).
    groups = np.array([*range(10), 0, 1])
    mixed = bootstrap(seen(10, 4, negatives=2), threshold=0.5, resamples=400, groups=groups)
    assert "of 400 resamples only" in mixed["fp_per_negative_image"].reason


def test_a_paired_difference_has_the_quantiles_of_a_binomial() -> None:
    """Of 12 boxes the first finds 9 and the second 6 of these: a difference in 3 of 12 images."""
    first, second = seen(12, 9), seen(12, 6)
    compared = compare(first, second, thresholds=(0.5, 0.5), resamples=20_000)["sensitivity"]
    assert [compared.first, compared.second] == [9 / 12, 6 / 12]
    difference = compared.difference
    assert difference.value == pytest.approx(3 / 12)
    assert [difference.lower, difference.upper] == pytest.approx(
        binom.ppf([0.025, 0.975], 12, 0.25) / 12
    )
    # None of the three is drawn in (9/12)^12 of the resamples; five standard errors.
    expected = 0.75**12
    error = (expected * (1 - expected) / 20_000) ** 0.5
    assert compared.p_value == pytest.approx(2 * expected, abs=10 * error)


def test_a_difference_is_that_of_the_metrics_of_drawn_images() -> None:
    """Each model at its own threshold, the other way round with the other sign."""
    rows = labels(14, 9)
    models = [random_images(seed) for seed in (3, 4)]
    first, second = (match(images, rows, POLYP) for images in models)
    compared = compare(first, second, thresholds=(0.3, 0.6), resamples=40, seed=2)
    back = compare(second, first, thresholds=(0.6, 0.3), resamples=40, seed=2)

    random = np.random.default_rng(2)
    counts = [random.multinomial(n, [1 / n] * n, 40) for n in (14, 9)]
    drawn = []
    for row in np.concatenate(counts, axis=1):
        chosen = np.repeat(np.arange(23), row)
        one, other = (
            metrics([images[i] for i in chosen], rows[chosen], POLYP, threshold=threshold)
            for images, threshold in zip(models, (0.3, 0.6), strict=True)
        )
        drawn.append({name: one[name] - other[name] for name in one})
    for name, comparison in compared.items():
        values = np.array([difference[name] for difference in drawn])
        difference = comparison.difference
        assert [difference.lower, difference.upper] == pytest.approx(
            np.quantile(values, [0.025, 0.975]), abs=1e-12
        ), name
        least = min((values <= 1e-12).sum(), (values >= -1e-12).sum())
        assert comparison.p_value == pytest.approx(min(1, 2 * (1 + least) / 41)), name
        other_way = back[name].difference
        assert other_way.value == pytest.approx(-difference.value), name
        assert [other_way.lower, other_way.upper] == pytest.approx(
            [-difference.upper, -difference.lower], abs=1e-12
        )
        assert back[name].p_value == comparison.p_value


def test_a_model_does_not_differ_from_itself() -> None:
    matches = match(random_images(5), labels(14, 9), POLYP)
    for comparison in compare(matches, matches, thresholds=(0.4, 0.4), resamples=50).values():
        assert comparison.difference.value == 0
        assert comparison.p_value == 1


def test_without_a_figure_there_is_nothing_to_compare() -> None:
    compared = compare(seen(6, 3), seen(6, 4), thresholds=(0.5, 0.5), resamples=50)
    reason = "there is no image without a true box"
    assert compared["fp_per_negative_image"] == Comparison(
        None, None, Estimate(None, reason=reason)
    )


def test_wrong_calls_are_value_errors() -> None:
    with pytest.raises(ValueError, match=r"groups have shape \(3,\), and there are 6 images"):
        bootstrap(seen(6, 3), groups=np.zeros(3))
    for other in (seen(7, 3), seen(5, 3, negatives=1)):
        with pytest.raises(ValueError, match="different true boxes"):
            compare(seen(6, 3), other)


# Several runs of a method.


def test_one_run_each_is_a_comparison() -> None:
    first, second = (match(random_images(seed), labels(14, 9), POLYP) for seed in (3, 4))
    assert (
        compare_means([first], [second], resamples=60, seed=5)
        == compare(first, second, resamples=60, seed=5)["ap50"]
    )


def test_several_runs_are_the_mean_of_each_draw() -> None:
    """AP50 of all found at one score without an alarm is the share that is found."""
    firsts, seconds = [seen(20, 16), seen(20, 12)], [seen(20, 9), seen(20, 11), seen(20, 10)]
    compared = compare_means(firsts, seconds, resamples=4000)
    alone = [float(np.mean([metrics_of(one) for one in side])) for side in (firsts, seconds)]
    assert compared.first == pytest.approx(alone[0])
    assert compared.second == pytest.approx(alone[1])
    assert compared.difference.value == pytest.approx(alone[0] - alone[1])
    assert compared.difference.lower is not None
    assert compared.difference.upper is not None
    assert compared.difference.lower < alone[0] - alone[1] < compared.difference.upper
    assert compared.p_value is not None
    assert 0 < compared.p_value < 0.05
    back = compare_means(seconds, firsts, resamples=4000)
    assert back.difference.value == pytest.approx(alone[1] - alone[0])
    assert back.difference.lower == pytest.approx(-compared.difference.upper)


def metrics_of(matches: Matches) -> float:
    value = bootstrap(matches, resamples=1)["ap50"].value
    assert value is not None
    return value


def test_methods_without_runs_or_of_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="a method without runs"):
        compare_means([], [seen(3, 1)])
    with pytest.raises(ValueError, match="different true boxes"):
        compare_means([seen(3, 1), seen(4, 1)], [seen(3, 1)])
