"""Tile metrics against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from medkd.tasks.classification import Classification, tile_metrics


def test_cross_entropy() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    # -ln(3/4) and -ln(1/2), averaged
    expected = (math.log(4 / 3) + math.log(2)) / 2
    loss = Classification().supervised_loss(logits, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(expected)


def test_class_weights_and_label_smoothing() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    labels = torch.tensor([0, 1])
    # Weights 1 and 3: a weighted mean of -ln(3/4) and -ln(1/2).
    weighted = Classification(class_weights=(1.0, 3.0)).supervised_loss(logits, labels)
    assert weighted.item() == pytest.approx((math.log(4 / 3) + 3 * math.log(2)) / 4)
    # A tenth of each label is spread over both classes: 0.95 and 0.05.
    smoothed = Classification(label_smoothing=0.1).supervised_loss(logits, labels)
    first = 0.95 * math.log(4 / 3) + 0.05 * math.log(4)
    assert smoothed.item() == pytest.approx((first + math.log(2)) / 2)


def test_tile_metrics() -> None:
    positive = torch.tensor([0.9, 0.6, 0.4, 0.2])
    probabilities = torch.stack([1 - positive, positive], 1)
    labels = torch.tensor([1, 0, 1, 0])
    metrics = tile_metrics(probabilities, labels, positive=1)
    # Pairs (positive, negative): (.9,.6) (.9,.2) (.4,.2) in order, (.4,.6) not: 3 of 4.
    assert metrics["auroc"] == pytest.approx(0.75)
    assert metrics["accuracy"] == pytest.approx(0.5)
    assert metrics["log_loss"] == pytest.approx(
        -(math.log(0.9) + math.log(0.4) + math.log(0.4) + math.log(0.8)) / 4
    )
    assert tile_metrics(probabilities.flip(1), labels, positive=0)["auroc"] == pytest.approx(0.25)


def test_one_class_has_no_auroc() -> None:
    probabilities = torch.tensor([[0.5, 0.5], [0.1, 0.9]])
    assert "auroc" not in tile_metrics(probabilities, torch.tensor([1, 1]), positive=1)
