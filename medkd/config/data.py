"""Which slides, and which patients train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from medkd.config.types import FilePath, Fraction
from medkd.schema import Strict


class DataConfig(Strict):
    """Which slides, and what is to be told apart."""

    slides: FilePath = Field(
        Path("slides.csv"),
        description="Table of slides: slide_id, path, patient_id, label; optional site, scanner, "
        "mpp. Relative paths are relative to this file.",
    )
    classes: Annotated[tuple[str, ...], Field(strict=False, min_length=2)] = Field(
        ("MSS", "MSI"), description="The classes, in the order of the networks' outputs."
    )
    positive: str = Field("MSI", description="The class that a slide's probability speaks of.")

    @model_validator(mode="after")
    def _classes_are_told_apart(self) -> DataConfig:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class stands twice in 'classes'")
        if self.positive not in self.classes:
            raise ValueError(f"'positive' must be one of the classes {list(self.classes)}")
        return self


class SplitConfig(Strict):
    """Roles are given to patients, never to slides or tiles."""

    train: Fraction = Field(0.6, description="Share of the patients, in each class.")
    validation: Fraction = Field(0.2, description="Chooses the epoch and the operating point.")
    test: Fraction = Field(0.2, description="Seen once, at the end.")

    @model_validator(mode="after")
    def _shares_add_up(self) -> SplitConfig:
        if abs(self.train + self.validation + self.test - 1) > 1e-6:
            raise ValueError("'train', 'validation' and 'test' must add up to 1")
        if min(self.train, self.validation, self.test) <= 0:
            raise ValueError("each of 'train', 'validation' and 'test' must be above 0")
        return self
