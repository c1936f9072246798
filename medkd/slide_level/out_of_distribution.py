"""Whether a slide is of the kind that the model was trained on. Plain numpy: infer starts fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from medkd.schema import Strict
from medkd.slide_level.slide_features import STAIN, SlideFeatures

What = Literal["stain", "embedding"]
WHATS: tuple[What, ...] = ("stain", "embedding")

FILE = "out_of_distribution.safetensors"

Distance = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class DistanceLimit(Strict):
    """How far a slide may lie from the training slides.

    ``conformal``: with ``n`` patients, of each of whom the farthest slide counts, the limit is the
    ``ceil((n + 1) (1 - a))``-th distance in ascending order (split conformal prediction).
    ``extended``: there are too few for ``a``, and the largest distance is extended to where a
    normal deviate would have that quantile.
    """

    distance: Distance
    rule: Literal["conformal", "extended"]
    share: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="At most this share of patients like these have a slide beyond the limit, on "
        "average over cohorts that could have been drawn."
    )
    largest: Distance = Field(description="Of these patients.")
    patients: Count
    cohort: str
    date: str


class DistanceCheck(Strict):
    """One distance that is taken of every slide, and its limit."""

    what: What
    width: Count = Field(description="How many numbers are compared.")
    training_slides: Count
    shrinkage: Annotated[float, Field(ge=0, le=1)] = Field(
        description="Of the covariance, towards equal variances in all directions."
    )
    limit: DistanceLimit


class NotChecked(Strict):
    """What is not compared, and why."""

    what: What
    reason: str


class OutOfDistribution(Strict):
    """What a model package knows of its training slides, to tell others from them."""

    file: str | None = Field(description="Means and covariances; null: nothing is checked.")
    checks: Annotated[tuple[DistanceCheck, ...], Field(strict=False)]
    not_checked: Annotated[tuple[NotChecked, ...], Field(strict=False)]

    @property
    def limits(self) -> dict[str, float]:
        """Of each distance that is checked."""
        return {check.what: check.limit.distance for check in self.checks}

    @property
    def reasons(self) -> dict[str, str]:
        """Why what is not checked is not: by reason, what it holds for, in words."""
        found: dict[str, list[str]] = {}
        for one in self.not_checked:
            found.setdefault(one.reason, []).append(one.what)
        return {reason: " and ".join(whats) for reason, whats in found.items()}


BEFORE = "the model was packaged before this was checked"


def nothing_checked(reason: str) -> OutOfDistribution:
    """Neither distance is, for this reason."""
    not_checked = tuple(NotChecked(what=what, reason=reason) for what in WHATS)
    return OutOfDistribution(file=None, checks=(), not_checked=not_checked)


def in_words(check: DistanceCheck) -> str:
    """A limit and what it is worth, in sentences."""
    limit = check.limit
    if limit.rule == "conformal":
        set_by = f"a quantile of the distances of {limit.patients} {limit.cohort}:"
    else:
        set_by = (
            f"the largest distance of {limit.patients} {limit.cohort}, {limit.largest:.2f}, "
            "extended as a normal distribution would have it; for certain,"
        )
    return (
        f"The {check.what} may lie up to {limit.distance:.2f} from the mean of "
        f"{check.training_slides} training slides (Mahalanobis distance). Set on {limit.date} by "
        f"{set_by} at most {100 * limit.share:.2g}% of patients like these lie beyond."
    )


@dataclass(frozen=True)
class TrainingSlides:
    """Where the means of the training slides lie, as numbers over ``scale``.

    The covariance is ``loadings' loadings + rest I``: exactly the shrunk one, in no more directions
    than training slides span. A slide of fewer tiles than they have is allowed more: what chance
    adds to a mean of ``tiles`` tiles, as the variance between tiles tells.

    Attributes:
        mean, scale: float64 (D,).
        loadings: float32 (R, D).
        rest: float64 (1,).
        noise: variance between the tiles of a slide, float64 (D,).
        tiles: of a training slide, the harmonic mean, float64 (1,).
    """

    mean: np.ndarray
    scale: np.ndarray
    loadings: np.ndarray
    rest: np.ndarray
    noise: np.ndarray
    tiles: np.ndarray

    def distances(self, values: np.ndarray, tiles: int) -> np.ndarray:
        """Mahalanobis's distance of slides from the mean, (slides,).

        Args:
            values: (slides, D).
            tiles: that they are means over.
        """
        off = (values.astype(np.float64) - self.mean) / self.scale
        # The covariance is diagonal but for R directions: Woodbury's identity.
        chance = max(0.0, 1 / tiles - 1 / self.tiles.item())
        weights = 1 / (self.rest + chance * self.noise)
        loadings = self.loadings.astype(np.float64)
        along = loadings @ (weights * off).T
        inner = np.eye(len(loadings)) + (loadings * weights) @ loadings.T
        squares = off**2 @ weights - (along * np.linalg.solve(inner, along)).sum(0)
        return np.sqrt(np.maximum(squares, 0))

    def distance(self, values: np.ndarray, tiles: int) -> float:
        """That of one slide, its values (D,)."""
        return float(self.distances(values[None], tiles)[0])


Cohort = Mapping[What, TrainingSlides]


def compared(what: What, of: Mapping[str, np.ndarray], students: Sequence[str]) -> np.ndarray:
    """The numbers that a distance is taken of, (..., D).

    Args:
        what: is compared.
        of: means or variances, by what is measured.
        students: whose pooled features are the embedding, in the package's order.
    """
    return of[STAIN] if what == "stain" else np.concatenate([of[s] for s in students], axis=-1)


def distances(features: SlideFeatures, cohort: Cohort, students: Sequence[str]) -> dict[str, float]:
    """Of one slide, each distance that is checked."""
    return {
        what: slides.distance(compared(what, features.means, students), features.tiles)
        for what, slides in cohort.items()
    }


def cohort_to_bytes(cohort: Cohort) -> bytes:
    """The content of :data:`FILE`."""
    from safetensors.numpy import save

    return save(
        {
            f"{what}/{name}": np.ascontiguousarray(values)
            for what, slides in cohort.items()
            for name, values in vars(slides).items()
        }
    )


def cohort_from_bytes(content: bytes, checks: Sequence[DistanceCheck]) -> Cohort:
    """What :func:`cohort_to_bytes` wrote.

    Args:
        content: of the file.
        checks: what must be in it.

    Raises:
        ValueError: it is of another kind, or does not hold what it must.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(content)
        cohort = {
            check.what: TrainingSlides(
                **{f.name: arrays[f"{check.what}/{f.name}"] for f in fields(TrainingSlides)}
            )
            for check in checks
        }
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"cannot be read: {error}") from error
    for check in checks:
        slides = cohort[check.what]
        width, rank = check.width, len(slides.loadings)
        wanted = ((width,), (width,), (rank, width), (1,), (width,), (1,))
        if tuple(array.shape for array in vars(slides).values()) != wanted:
            raise ValueError(f"'{check.what}' has other shapes than model.json says")
    return cohort
