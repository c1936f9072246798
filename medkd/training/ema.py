"""Moving averages of all weights of a cohort, to validate and ship instead of the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from medkd.distill.cohort import Cohort


class MovingAverage:
    """A copy of a cohort whose trained weights are an exponential moving average.

    What is not trained (buffers, frozen networks, the method's own means) is copied. In evaluation
    mode, without gradient.

    Args:
        cohort: the copy begins as it is now.
        decay: of the average, per step. Early on it is at most (1 + step) / (10 + step), so that
            the first weights, which mean nothing, are soon forgotten.
    """

    def __init__(self, cohort: Cohort, decay: float) -> None:
        self.cohort = copy.deepcopy(cohort).requires_grad_(False).eval()
        self._decay = decay

    @torch.no_grad()
    def update(self, cohort: Cohort, step: int) -> None:
        """average = decay average + (1 - decay) weights, after ``step``, from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        pairs = list(zip(self.cohort.parameters(), cohort.parameters(), strict=True))
        trained = [(mean, now) for mean, now in pairs if now.requires_grad]
        torch._foreach_lerp_([m for m, _ in trained], [now for _, now in trained], 1 - decay)
        copied: list[tuple[Tensor, Tensor]] = [p for p in pairs if not p[1].requires_grad]
        copied += zip(self.cohort.buffers(), cohort.buffers(), strict=True)
        if copied:
            torch._foreach_copy_([mean for mean, _ in copied], [now for _, now in copied])
