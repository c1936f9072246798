"""Training of slide heads: what they learn, what they are a function of, and what is told."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from medkd.datasets.embedding_bags import EmbeddingBags
from medkd.errors import MedkdError, StageError, TrainingError
from medkd.networks.mil import HEAD_ARCHITECTURES, SlideHead
from medkd.slide_level.learned_head import SlideHeads
from medkd.slide_level.score_interval import Interval
from medkd.training.slide_head import (
    HeadEpoch,
    SlideHeadConfig,
    TrainedSlideHead,
    head_probabilities,
    train_slide_head,
    train_slide_heads,
)
from medkd.training.slide_head_export import export_slide_head

CHANNELS = 8
SIGNAL_TILES = 3


def patients(
    name: str, count: int, *, max_tiles: int | None = None, channels: int = CHANNELS
) -> tuple[EmbeddingBags, list[np.ndarray]]:
    """30 to 79 tiles of noise each; of a positive patient 3 are shifted in two channels.

    Every third patient is positive. Also which tiles are shifted, bool (tiles,).
    """
    random = np.random.default_rng(sum(map(ord, name)))
    labels = (np.arange(count) % 3 == 0).astype(int)
    tiles, signals = [], []
    for label in labels:
        bag = random.normal(size=(random.integers(30, 80), channels)).astype(np.float32)
        signal = np.arange(len(bag)) < SIGNAL_TILES * label
        random.shuffle(signal)
        bag[signal, :2] += 2.5
        tiles.append(bag)
        signals.append(signal)
    offsets = np.cumsum([0, *map(len, tiles)])
    ids = [f"{name}{number}" for number in range(count)]
    bags = EmbeddingBags(
        np.concatenate(tiles), offsets, labels, bag_ids=ids, max_tiles=max_tiles, seed=3
    )
    return bags, signals


GATED = "gated_attention"


def settings(**changes: object) -> SlideHeadConfig:
    known = {"hidden": 16, "learning_rate": 1e-2, "epochs": 15}
    return SlideHeadConfig(**(known | changes))


def trained(architecture: str) -> TrainedSlideHead:
    training, _ = patients("train", 75, max_tiles=50)
    validation, _ = patients("validation", 36)
    return train_slide_head(training, validation, architecture, settings(), seed=0)


@pytest.fixture(scope="module")
def gated() -> TrainedSlideHead:
    return trained("gated_attention")


def test_attention_finds_the_few_tiles_that_matter(gated: TrainedSlideHead) -> None:
    """The best that a mean can do is an AUROC of 0.85.

    3 of 55 tiles shift its two channels by 2.5 x 3 / 55 = 0.14 each, together by 0.19; its spread
    is 1 / sqrt(55) = 0.135. Normal distributions that lie 1.44 spreads apart have an AUROC of
    Phi(1.44 / sqrt(2)) = 0.85.
    """
    test, signals = patients("test", 150)
    area = roc_auc_score(test.labels, head_probabilities(gated.head, test))
    of_mean = roc_auc_score(test.labels, head_probabilities(trained("mean_embedding").head, test))
    assert area > 0.95
    assert of_mean < 0.9
    assert area - of_mean > 0.08
    with torch.no_grad():
        weights = [gated.head(bag["embedding"][None])[1][0].numpy() for bag in test]
    on_signal = [
        weight[signal].sum() for weight, signal in zip(weights, signals, strict=True) if any(signal)
    ]
    # Equal weights would have 0.055.
    assert np.mean(on_signal) > 0.4
    assert all(weight.sum() == pytest.approx(1, abs=1e-5) for weight in weights)


def test_the_kept_epoch_has_the_least_validation_loss(gated: TrainedSlideHead) -> None:
    """The loss is that of the head that is returned, worked out by hand."""
    losses = [epoch.validation for epoch in gated.epochs]
    assert gated.best_epoch == int(np.argmin(losses))
    validation, _ = patients("validation", 36)
    probability = head_probabilities(gated.head, validation)
    positive = validation.labels == 1
    expected = -(np.log(probability[positive]).mean() + np.log1p(-probability[~positive]).mean())
    assert losses[gated.best_epoch] == pytest.approx(expected / 2, abs=1e-6)
    assert not gated.head.training


def test_training_stops_when_validation_gets_no_better() -> None:
    """Validation labels are the wrong way round: the first epoch is the best."""
    training, _ = patients("train", 30)
    wrong, _ = patients("validation", 30)
    wrong.labels = 1 - wrong.labels
    seen: list[HeadEpoch] = []
    found = train_slide_head(
        training,
        wrong,
        "max_embedding",
        settings(patience=3, dropout=0.0),
        seed=0,
        on_epoch=seen.append,
    )
    assert len(found.epochs) == found.best_epoch + 1 + 3 < 15
    assert tuple(seen) == found.epochs


def same(one: SlideHead, other: SlideHead) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_seed_alone_decides_whatever_the_workers() -> None:
    training, _ = patients("train", 24, max_tiles=20)
    validation, _ = patients("validation", 12)

    def head(seed: int, workers: int) -> SlideHead:
        config = settings(epochs=2)
        return train_slide_head(
            training, validation, GATED, config, seed=seed, loader_workers=workers
        ).head

    torch.manual_seed(9)
    first = head(0, workers=0)
    torch.manual_seed(10)
    before = torch.get_rng_state()
    assert same(head(0, workers=2), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert not same(head(1, workers=0), first)


def test_channels_are_standardised_over_training_patients() -> None:
    """Patients count alike: means 1 and 4 of the first channel; the second does not vary."""
    rows = np.array([[0, 7], [2, 7], [4, 7], [0, 7], [2, 7], [4, 7]], np.float32)
    training = EmbeddingBags(rows, [0, 2, 3, 5, 6], [0, 0, 1, 1], bag_ids=list("abcd"))
    validation = EmbeddingBags(rows, [0, 2, 3, 5, 6], [0, 0, 1, 1], bag_ids=list("efgh"))
    head = train_slide_head(training, validation, GATED, settings(epochs=1), seed=0).head
    assert head.mean.tolist() == pytest.approx([2.5, 7])
    # Squares have the means 2 and 16, so the variance is 9 - 6.25.
    assert head.scale.tolist() == pytest.approx([1 / np.sqrt(2.75), 1])


def test_every_student_has_its_own_head() -> None:
    training = {"a": patients("train", 12)[0], "b": patients("train", 12, channels=5)[0]}
    validation = {"a": patients("val", 12)[0], "b": patients("val", 12, channels=5)[0]}
    found = train_slide_heads(training, validation, GATED, settings(epochs=1), seed=0)
    assert {name: head.head.dimension for name, head in found.items()} == {"a": 8, "b": 5}
    with pytest.raises(StageError) as caught:
        train_slide_heads(training, {"a": validation["a"]}, GATED, settings(), seed=0)
    assert str(caught.value) == (
        "embeddings: training and validation have embeddings of different students (a, b; a). "
        "Run 'medkd predict' again."
    )


def some(labels: list[int], name: str, rows: np.ndarray | None = None) -> EmbeddingBags:
    if rows is None:
        rows = np.zeros((len(labels), 3), np.float32)
    ids = [f"{name}{number}" for number in range(len(labels))]
    return EmbeddingBags(rows, np.arange(len(labels) + 1), np.array(labels), bag_ids=ids)


def not_finite() -> EmbeddingBags:
    rows = np.zeros((4, 3), np.float32)
    rows[2, 1] = np.inf
    return some([0, 0, 1, 1], "t", rows)


@pytest.mark.parametrize(
    ("training", "validation", "message"),
    [
        (
            lambda: some([0, 0, 0, 1], "t"),
            lambda: some([0, 0, 1, 1], "v"),
            "training patients: 1 positive patients are too few to train a slide head: it takes 2 "
            "of each class at the least, and tens to mean anything. Add patients, or pool by "
            "'mean_probability', which is not trained.",
        ),
        (
            lambda: some([0, 0, 1, 1], "t"),
            lambda: some([1, 1], "v"),
            "validation patients: 0 negative patients are too few to train a slide head: it takes "
            "2 of each class at the least, and tens to mean anything. Add patients, or pool by "
            "'mean_probability', which is not trained.",
        ),
        (
            lambda: some([0, 0, 1, 1], "t"),
            lambda: some([0, 0, 1, 1], "t"),
            "slide head: 't0' is in training and in validation. Give bag_ids of patients, and run "
            "'medkd split' again.",
        ),
        (
            lambda: some([0, 0, 1, 1], "t"),
            lambda: some([0, 0, 1, 1], "v", np.zeros((4, 2), np.float32)),
            "slide head: embeddings have 3 channels in training and 2 in validation. Take the "
            "embeddings of one student for both.",
        ),
        (
            not_finite,
            lambda: some([0, 0, 1, 1], "v"),
            "bag 't2': an embedding is not finite. Embed the tiles of this bag again.",
        ),
    ],
)
def test_patients_that_do_not_do_are_told(
    training: Callable[[], EmbeddingBags], validation: Callable[[], EmbeddingBags], message: str
) -> None:
    with pytest.raises(MedkdError) as caught:
        train_slide_head(training(), validation(), GATED, settings(), seed=0)
    assert str(caught.value) == message


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bag_that_cannot_be_read_later_is_told_whatever_the_workers(workers: int) -> None:
    """Epoch 0 may not draw the tile that is not finite; a later one does."""
    rows = np.zeros((43, 3), np.float32)
    rows[39] = np.nan
    bags = EmbeddingBags(rows, [0, 40, 41, 42, 43], [0, 0, 1, 1], bag_ids=list("abcd"), max_tiles=3)
    with pytest.raises(StageError) as caught:
        train_slide_head(
            bags,
            some([0, 0, 1, 1], "v"),
            "mean_embedding",
            settings(epochs=100, patience=100),
            seed=0,
            loader_workers=workers,
        )
    assert str(caught.value) == (
        "bag 'a': an embedding is not finite. Embed the tiles of this bag again."
    )


def test_a_loss_that_is_not_finite_is_told() -> None:
    training, _ = patients("train", 12)
    validation, _ = patients("validation", 12)
    with pytest.raises(TrainingError) as caught:
        train_slide_head(training, validation, GATED, settings(learning_rate=1e30), seed=0)
    assert str(caught.value) == (
        "slide head 'gated_attention': the loss of epoch 0 is not finite. Lower its learning_rate."
    )


def check_export(head: SlideHead) -> None:
    """ONNX and torch agree for any number of tiles."""
    heads = SlideHeads(head.architecture, {"student": export_slide_head(head)})
    for tiles in (1, 2, 3, 200):
        embeddings = torch.randn(tiles, CHANNELS, generator=torch.Generator().manual_seed(tiles))
        found = heads({"student": embeddings.numpy()})
        with torch.no_grad():
            logits, weights, *_ = head(embeddings[None])
        assert found.score == pytest.approx(torch.sigmoid(logits[0]).item(), abs=1e-5)
        np.testing.assert_allclose(found.attention, weights[0], atol=1e-5)


def check_resamples(head: SlideHead) -> None:
    """The interval is that of heads which are run over the tiles that were drawn, written out."""
    embeddings = torch.randn(30, CHANNELS, generator=torch.Generator().manual_seed(1))
    counts = np.random.default_rng(5).multinomial(30, np.full(30, 1 / 30), size=200)
    with torch.no_grad():
        drawn = [
            torch.sigmoid(head(embeddings[np.repeat(np.arange(30), count)][None]).logits[0]).item()
            for count in counts
        ]
    heads = SlideHeads(head.architecture, {"student": export_slide_head(head)})
    found = heads.interval(
        [{"student": embeddings.numpy()}], resamples=200, interval=Interval(0.9), seed=5
    )
    assert (found.lower, found.upper) == pytest.approx(np.quantile(drawn, [0.05, 0.95]), abs=1e-5)


def test_the_exported_head_says_what_torch_says(gated: TrainedSlideHead) -> None:
    check_export(gated.head)
    check_resamples(gated.head)
    assert next(gated.head.parameters()).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("architecture", HEAD_ARCHITECTURES)
def test_every_exported_head_says_what_torch_says(architecture: str) -> None:
    torch.manual_seed(0)
    head = SlideHead(architecture, CHANNELS, hidden=16)
    head.standardise(torch.randn(CHANNELS), torch.rand(CHANNELS) + 0.5)
    check_export(head.eval())
    # Tiles of a transformer keep what they saw of the whole slide.
    if architecture != "transformer":
        check_resamples(head)
