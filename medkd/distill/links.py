"""The losses that a link can carry. Each is a plain function of a target and a learner.

Targets come detached unless the link says otherwise. Every loss is averaged over the batch; sums
over classes stay sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["logits", "map", "vector", "pyramid"]
"""What a loss compares: N x classes, N x C x h x w, N x C, or N x C x cells of a detector."""


def kl(target: Tensor, learner: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(target || learner), summed over classes and averaged over the batch.

    ``softmax(z / T)`` of both sides (Hinton et al., arXiv 1503.02531); T^2 keeps the gradient's
    size independent of T. Averaging over the classes as well, a slip seen in public code, would
    shrink the term by their number.

    Args:
        target: logits, float N x classes.
        learner: logits, float N x classes.
        temperature: T, above 0.

    Returns:
        A scalar tensor, as of every loss here.
    """
    target_log = F.log_softmax(target / temperature, dim=1)
    learner_log = F.log_softmax(learner / temperature, dim=1)
    divergence = F.kl_div(learner_log, target_log, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def reverse_kl(target: Tensor, learner: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(learner || target): the learner may leave out what the target thinks possible."""
    return kl(learner, target, temperature)


def js(target: Tensor, learner: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 times the Jensen-Shannon divergence: the mean KL of both sides to their midpoint.

    With p and q the tempered probabilities and m = (p + q) / 2: (KL(p || m) + KL(q || m)) / 2.
    """
    target_log = F.log_softmax(target / temperature, dim=1)
    learner_log = F.log_softmax(learner / temperature, dim=1)
    middle = torch.logaddexp(target_log, learner_log) - math.log(2)
    sides = [
        F.kl_div(middle, side, reduction="batchmean", log_target=True)
        for side in (target_log, learner_log)
    ]
    return (sides[0] + sides[1]) / 2 * temperature**2


def mse(target: Tensor, learner: Tensor) -> Tensor:
    """Mean squared difference of logits, over batch and classes (Ba and Caruana, 1312.6184)."""
    return F.mse_loss(learner, target)


def decoupled(
    target: Tensor,
    learner: Tensor,
    targets: Tensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Decoupled knowledge distillation (Zhao et al., arXiv 2203.08679).

    T^2 (alpha KL of (label, rest) + beta KL among the other classes alone). With two classes the
    second part is zero: there is one other class.

    Args:
        target: logits, float N x classes.
        learner: logits, float N x classes.
        targets: the labels, int64 N.
        temperature: T, above 0.
        alpha: weight of the label's class against the rest.
        beta: weight of the other classes among themselves.
    """
    target_log = F.log_softmax(target / temperature, dim=1)
    learner_log = F.log_softmax(learner / temperature, dim=1)
    is_label = F.one_hot(targets, target.shape[1]).bool()
    minus_infinity = torch.full_like(target_log, -torch.inf)

    def label_and_rest(logs: Tensor) -> Tensor:
        label = logs.gather(1, targets[:, None])
        rest = torch.where(is_label, minus_infinity, logs).logsumexp(dim=1, keepdim=True)
        return torch.cat([label, rest], dim=1)

    def others(logits: Tensor) -> Tensor:
        kept = logits[~is_label].view(len(logits), -1)
        return F.log_softmax(kept / temperature, dim=1)

    binary = F.kl_div(
        label_and_rest(learner_log),
        label_and_rest(target_log),
        reduction="batchmean",
        log_target=True,
    )
    among = F.kl_div(others(learner), others(target), reduction="batchmean", log_target=True)
    return (alpha * binary + beta * among) * temperature**2


def dist(
    target: Tensor,
    learner: Tensor,
    temperature: float = 1.0,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> Tensor:
    """DIST: correlation of probabilities instead of equality (Huang et al., arXiv 2205.10536).

    T^2 (alpha (1 - mean correlation of rows) + beta (1 - mean correlation of columns)), rows being
    images and columns classes of the tempered probabilities.
    """
    p = F.softmax(target / temperature, dim=1)
    q = F.softmax(learner / temperature, dim=1)
    between = 1 - _correlation(p, q).mean()
    within = 1 - _correlation(p.T, q.T).mean()
    return (alpha * between + beta * within) * temperature**2


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of each row of ``a`` with the same row of ``b``."""
    a, b = (x - x.mean(dim=1, keepdim=True) for x in (a, b))
    return F.cosine_similarity(a, b, dim=1, eps=1e-8)


def attention(target: Tensor, learner: Tensor) -> Tensor:
    """Attention transfer (Zagoruyko and Komodakis, arXiv 1612.03928), their equation 2.

    The mean over channels of squared features, one map for each image, is brought to length 1;
    the loss is the squared distance of the maps, 2 (1 - their cosine): between 0 and 2 whatever
    their size. The authors' code takes the mean over the places instead, with a weight of
    1000 / 2; at the 8 x 8 places of a CIFAR network's last map that is a weight of 500 / 64 here.

    Args:
        target: features, float N x C x h x w.
        learner: features, float N x C' x h' x w'; the larger map is averaged to the smaller size.
    """
    target, learner = _same_size(target, learner)
    return (_attention_map(target) - _attention_map(learner)).square().sum(dim=1).mean()


def _attention_map(features: Tensor) -> Tensor:
    return F.normalize(features.square().mean(dim=1).flatten(1), dim=1)


def similarity(target: Tensor, learner: Tensor) -> Tensor:
    """Similarity-preserving distillation (Tung and Mori, arXiv 1907.09682).

    The N x N products of all images' features, rows brought to length 1; their squared difference
    over N^2. Shapes beyond the batch may differ.
    """
    difference = _similarities(target) - _similarities(learner)
    return difference.square().sum() / len(target) ** 2


def _similarities(features: Tensor) -> Tensor:
    rows = features.flatten(1)
    return F.normalize(rows @ rows.T, dim=1)


def feature_mse(target: Tensor, learner: Tensor) -> Tensor:
    """Mean squared difference of features (hints, Romero et al., arXiv 1412.6550).

    The learner's features come here through a learned 1 x 1 projection to the target's channels.

    Args:
        target: float N x C x h x w, or N x C.
        learner: float N x C x h' x w' (the larger map is averaged to the smaller size), or N x C.
    """
    if target.ndim == 4:
        target, learner = _same_size(target, learner)
    return F.mse_loss(learner, target)


def contrastive(target: Tensor, learner: Tensor, temperature: float = 0.07) -> Tensor:
    """An image's two representations find each other among those of the batch.

    The mean over images of -log softmax of the cosines over T, in both directions, halved: the
    objective of contrastive representation distillation (Tian et al., arXiv 1910.10699) with the
    batch for its negatives in place of a memory. Both sides come here projected to one width.

    Args:
        target: float N x C.
        learner: float N x C.
        temperature: T, above 0.
    """
    cosines = F.normalize(target, dim=1) @ F.normalize(learner, dim=1).T / temperature
    own = torch.arange(len(target), device=target.device)
    return (F.cross_entropy(cosines, own) + F.cross_entropy(cosines.T, own)) / 2


def _same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    return (
        a if a.shape[2:] == size else F.adaptive_avg_pool2d(a, size),
        b if b.shape[2:] == size else F.adaptive_avg_pool2d(b, size),
    )


@dataclass(frozen=True)
class LinkLoss:
    """A loss and what a link must know of it.

    Attributes:
        compute: takes target, learner and its ``settings`` by name; gives a scalar tensor.
        compares: the kinds of features that it takes, the first where a link does not say.
        settings: numbers that a link can set, with their defaults.
        needs_labels: ``compute`` takes ``targets`` too, what the task makes of the labels.
        projects: ``learner``: the learner's features are projected to the target's width;
            ``both``: both sides to one of 128.
        formula: in TeX, p the target and q the learner.
        source: where it comes from.
    """

    compute: Callable[..., Tensor]
    compares: tuple[Kind, ...]
    formula: str
    source: str
    settings: Mapping[str, float] = field(default_factory=dict)
    needs_labels: bool = False
    projects: Literal["none", "learner", "both"] = "none"


LOSSES: dict[str, LinkLoss] = {
    "kl": LinkLoss(
        kl,
        ("logits",),
        r"T^2 \sum_c p_c^T \log (p_c^T / q_c^T)",
        "arXiv 1503.02531",
        {"temperature": 1.0},
    ),
    "reverse_kl": LinkLoss(
        reverse_kl,
        ("logits",),
        r"T^2 \sum_c q_c^T \log (q_c^T / p_c^T)",
        "arXiv 2306.08543",
        {"temperature": 1.0},
    ),
    "js": LinkLoss(
        js,
        ("logits",),
        r"\frac{T^2}{2} (KL(p^T \| m) + KL(q^T \| m)),\; m = (p^T + q^T) / 2",
        "arXiv 1511.05101",
        {"temperature": 1.0},
    ),
    "mse": LinkLoss(mse, ("logits",), r"\frac{1}{C} \sum_c (z_c - u_c)^2", "arXiv 1312.6184"),
    "decoupled": LinkLoss(
        decoupled,
        ("logits",),
        r"T^2 (\alpha KL(b^p \| b^q) + \beta KL(\hat p \| \hat q))",
        "arXiv 2203.08679",
        {"temperature": 4.0, "alpha": 1.0, "beta": 8.0},
        needs_labels=True,
    ),
    "dist": LinkLoss(
        dist,
        ("logits",),
        r"T^2 (\alpha (1 - \rho_{rows}(p, q)) + \beta (1 - \rho_{columns}(p, q)))",
        "arXiv 2205.10536",
        {"temperature": 1.0, "alpha": 1.0, "beta": 1.0},
    ),
    "attention": LinkLoss(
        attention,
        ("map",),
        r"\| \hat A_p - \hat A_q \|^2,\; A = \frac{1}{C} \sum_c F_c^2",
        "arXiv 1612.03928",
    ),
    "similarity": LinkLoss(
        similarity,
        ("map", "vector"),
        r"\frac{1}{N^2} \| \hat G_p - \hat G_q \|_F^2,\; G = F F^\top",
        "arXiv 1907.09682",
    ),
    "feature_mse": LinkLoss(
        feature_mse,
        ("map", "vector"),
        r"mean (F_p - W F_q)^2",
        "arXiv 1412.6550",
        projects="learner",
    ),
    "contrastive": LinkLoss(
        contrastive,
        ("vector",),
        r"-\frac{1}{2} \sum_{both\ ways} \log softmax(\cos(f_p, f_q) / T)",
        "arXiv 1910.10699, with the batch for its negatives",
        {"temperature": 0.07},
        projects="both",
    ),
}
"""By the name that a method's links use."""
