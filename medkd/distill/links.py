"""The losses that a link can carry."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def kl(target_logits: Tensor, learner_logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(target || learner), summed over classes and averaged over the batch.

    ``softmax(z / T)`` of both sides (Hinton et al., arXiv 1503.02531); T^2 keeps the gradient's
    size independent of T. Averaging over the classes as well, a slip seen in public code, would
    shrink the term by their number.

    Args:
        target_logits: float N x classes; the caller detaches it.
        learner_logits: float N x classes.
        temperature: T, above 0.

    Returns:
        A scalar tensor.
    """
    target = F.log_softmax(target_logits / temperature, dim=1)
    learner = F.log_softmax(learner_logits / temperature, dim=1)
    divergence = F.kl_div(learner, target, reduction="batchmean", log_target=True)
    return divergence * temperature**2


LOSSES = {"kl": kl}
