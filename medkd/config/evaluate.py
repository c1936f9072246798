"""What the evaluation of a finished run tells."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medkd.config.types import Positive
from medkd.schema import Strict

InsideUnit = Annotated[float, Field(gt=0, lt=1)]
Subgroup = Literal["site", "scanner", "stage", "sex"]


class EvaluateConfig(Strict):
    """The evaluation on test patients (``medkd evaluate``)."""

    prevalences: Annotated[tuple[InsideUnit, ...], Field(strict=False, min_length=1)] = Field(
        (0.05, 0.15, 0.3),
        description="How common positives may be where the model is used: PPV, NPV and decision "
        "curves are told for each of these.",
    )
    sensitivities: Annotated[tuple[InsideUnit, ...], Field(strict=False, min_length=1)] = Field(
        (0.9, 0.95, 0.98),
        description="The share of patients that is ruled out is told at each of these.",
    )
    subgroups: Annotated[tuple[Subgroup, ...], Field(strict=False)] = Field(
        ("site", "scanner", "stage", "sex"),
        description="Columns of slides.csv by which figures are told; one that is not there is "
        "named as such.",
    )
    permutations: Annotated[int, Field(ge=100)] = Field(
        10_000, description="Swaps of two models' scores in a permutation test."
    )
    min_patients: Positive = Field(
        10,
        description="Fewer patients of a class than this are too few for figures of a subgroup, "
        "and are flagged everywhere else.",
    )

    @model_validator(mode="after")
    def _none_comes_twice(self) -> EvaluateConfig:
        for name in ("prevalences", "sensitivities", "subgroups"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"a value stands twice in '{name}'")
        return self
