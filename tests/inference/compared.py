"""Training slides that were made by hand, for packages to hold slides against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medkd.slide_level.out_of_distribution import (
    FILE,
    DistanceCheck,
    DistanceLimit,
    OutOfDistribution,
    TrainingSlides,
    What,
    cohort_to_bytes,
)


def limit(distance: float) -> DistanceLimit:
    """Of eight patients, the largest extended."""
    return DistanceLimit(
        distance=distance, rule="extended", share=1 / 9, largest=distance / 2, patients=8,
        cohort="validation patients", date="2026-01-02",
    )  # fmt: skip


def compared(limits: Mapping[What, float], means: Mapping[What, Sequence[float]]) -> dict[str, Any]:
    """Keywords of ``make_package``: distances from ``means``, as in a ruler's units."""
    cohort = {
        what: TrainingSlides(
            mean=np.array(mean, np.float64),
            scale=np.ones(len(mean)),
            loadings=np.zeros((1, len(mean)), np.float32),
            rest=np.ones(1),
            noise=np.zeros(len(mean)),
            tiles=np.ones(1),
        )
        for what, mean in means.items()
    }
    packaged = OutOfDistribution(
        file=FILE,
        checks=tuple(
            DistanceCheck(
                what=what, width=len(means[what]), training_slides=25, shrinkage=0.1,
                limit=limit(distance),
            )
            for what, distance in limits.items()
        ),
        not_checked=(),
    )  # fmt: skip
    return {
        "embeddings": True,
        "files": {FILE: cohort_to_bytes(cohort)},
        "out_of_distribution": packaged.model_dump(mode="json"),
    }
