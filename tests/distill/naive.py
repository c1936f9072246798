"""Formulas written out in plain loops, in float64: what the code's losses are held against.

Nothing here uses :mod:`medkd.distill`. Every function takes and gives tensors, so that gradients
can be compared too, but does its arithmetic number by number.
"""

from __future__ import annotations

import torch
from torch import Tensor


def softmax(row: Tensor, temperature: float = 1.0) -> list[Tensor]:
    """Of a row of logits, a probability for each class."""
    largest = row.detach().max()
    exponentials = [torch.exp((z - largest) / temperature) for z in row]
    return [e / sum(exponentials) for e in exponentials]


def divergence(p: list[Tensor], q: list[Tensor]) -> Tensor:
    """sum_c p log(p / q)."""
    return sum(a * torch.log(a / b) for a, b in zip(p, q, strict=True))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p_y, averaged over the batch."""
    losses = [-torch.log(softmax(row)[int(y)]) for row, y in zip(logits, labels, strict=True)]
    return sum(losses) / len(losses)


def kl(target: Tensor, learner: Tensor, temperature: float) -> Tensor:
    """T^2 KL(t || s), summed over classes, averaged over the batch."""
    rows = [
        divergence(softmax(t, temperature), softmax(s, temperature))
        for t, s in zip(target, learner, strict=True)
    ]
    return temperature**2 * sum(rows) / len(rows)


def kl_of_probabilities(target: list[list[Tensor]], learner: Tensor) -> Tensor:
    """KL(t || s) at T = 1, where the target is given as probabilities."""
    rows = [divergence(t, softmax(s)) for t, s in zip(target, learner, strict=True)]
    return sum(rows) / len(rows)


def js(target: Tensor, learner: Tensor, temperature: float) -> Tensor:
    """T^2 (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2."""
    rows = []
    for t, s in zip(target, learner, strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        rows.append((divergence(p, m) + divergence(q, m)) / 2)
    return temperature**2 * sum(rows) / len(rows)


def mse(target: Tensor, learner: Tensor) -> Tensor:
    """Mean of (z - u)^2 over images and classes."""
    squares = [
        (a - b) ** 2
        for t, s in zip(target, learner, strict=True)
        for a, b in zip(t, s, strict=True)
    ]
    return sum(squares) / len(squares)


def decoupled(
    target: Tensor, learner: Tensor, labels: Tensor, temperature: float, alpha: float, beta: float
) -> Tensor:
    """arXiv 2203.08679, (7): alpha TCKD + beta NCKD, times T^2.

    b = [p_y, 1 - p_y]; p-hat: the other classes' softmax among themselves.
    """
    rows = []
    for t, s, y in zip(target, learner, labels.tolist(), strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        others = [c for c in range(len(p)) if c != y]
        rest_p, rest_q = sum(p[c] for c in others), sum(q[c] for c in others)
        binary = divergence([p[y], rest_p], [q[y], rest_q])
        among = divergence([p[c] / rest_p for c in others], [q[c] / rest_q for c in others])
        rows.append(alpha * binary + beta * among)
    return temperature**2 * sum(rows) / len(rows)


def correlation(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Pearson's."""
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    above = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    spread_a = sum((x - mean_a) ** 2 for x in a)
    spread_b = sum((y - mean_b) ** 2 for y in b)
    return above / torch.sqrt(spread_a * spread_b)


def dist(target: Tensor, learner: Tensor, temperature: float, alpha: float, beta: float) -> Tensor:
    """arXiv 2205.10536, (6) to (9): one less the mean correlation, of rows and of columns."""
    p = [softmax(row, temperature) for row in target]
    q = [softmax(row, temperature) for row in learner]
    images, classes = len(p), len(p[0])
    rows = [1 - correlation(a, b) for a, b in zip(p, q, strict=True)]
    columns = [
        1 - correlation([row[c] for row in p], [row[c] for row in q]) for c in range(classes)
    ]
    return temperature**2 * (alpha * sum(rows) / images + beta * sum(columns) / classes)


def attention_map(features: Tensor) -> list[Tensor]:
    """Of C x h x w: at each place the mean over channels of F^2; then brought to length 1."""
    _, height, width = features.shape
    values = [(features[:, y, x] ** 2).mean() for y in range(height) for x in range(width)]
    length = torch.sqrt(sum(v**2 for v in values))
    return [v / length for v in values]


def attention(target: Tensor, learner: Tensor) -> Tensor:
    """arXiv 1612.03928: mean over images of the sum over places of (A_t - A_s)^2."""
    distances = []
    for t, s in zip(target, learner, strict=True):
        pairs = zip(attention_map(t), attention_map(s), strict=True)
        distances.append(sum((a - b) ** 2 for a, b in pairs))
    return sum(distances) / len(distances)


def similarity_matrix(features: Tensor) -> list[list[Tensor]]:
    """G = Q Q^T over flattened features, each row then brought to length 1."""
    flat = [image.reshape(-1) for image in features]
    rows = []
    for a in flat:
        products = [(a * b).sum() for b in flat]
        length = torch.sqrt(sum(v**2 for v in products))
        rows.append([v / length for v in products])
    return rows


def similarity(target: Tensor, learner: Tensor) -> Tensor:
    """arXiv 1907.09682, (4): the squared Frobenius distance over b^2."""
    differences = [
        (a - b) ** 2
        for row_t, row_s in zip(similarity_matrix(target), similarity_matrix(learner), strict=True)
        for a, b in zip(row_t, row_s, strict=True)
    ]
    return sum(differences) / len(target) ** 2


def feature_mse(target: Tensor, learner: Tensor) -> Tensor:
    """Mean of (F_t - F_s)^2 over everything."""
    squares = [(a - b) ** 2 for a, b in zip(target.reshape(-1), learner.reshape(-1), strict=True)]
    return sum(squares) / len(squares)


def contrastive(target: Tensor, learner: Tensor, temperature: float) -> Tensor:
    """-log softmax of an image's own cosine among those of the batch, both ways, halved."""

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return sum(x * y for x, y in zip(a, b, strict=True)) / torch.sqrt(
            sum(x**2 for x in a) * sum(y**2 for y in b)
        )

    count = len(target)
    losses = []
    for n in range(count):
        own = torch.exp(cosine(target[n], learner[n]) / temperature)
        learners = sum(torch.exp(cosine(target[n], s) / temperature) for s in learner)
        targets = sum(torch.exp(cosine(t, learner[n]) / temperature) for t in target)
        losses.append(-(torch.log(own / learners) + torch.log(own / targets)) / 2)
    return sum(losses) / count


def pooled_to(features: Tensor, size: int) -> Tensor:
    """N x C x h x h averaged over squares to N x C x size x size; size divides h."""
    step = features.shape[2] // size
    return torch.stack(
        [
            torch.stack(
                [
                    features[:, :, y * step : (y + 1) * step, x * step : (x + 1) * step].mean(
                        (2, 3)
                    )
                    for x in range(size)
                ],
                dim=-1,
            )
            for y in range(size)
        ],
        dim=-2,
    )
