"""Which slides, and which patients train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from medkd.config.types import FilePath, Fraction
from medkd.schema import Strict

LeakageKind = Literal[
    "shared_patients",
    "shared_slides",
    "duplicate_tiles",
    "near_duplicate_tiles",
    "validation_used_for_test",
    "seen_by_weights",
]
SplitScheme = Literal["holdout", "kfold", "nested", "site_preserved", "leave_one_site_out", "file"]


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
    allow_leakage: Annotated[tuple[LeakageKind, ...], Field(strict=False)] = Field(
        (),
        description="Kinds of leakage between roles that do not stop 'train', on purpose and on "
        "record: shared_patients, shared_slides, duplicate_tiles, near_duplicate_tiles, "
        "validation_used_for_test, seen_by_weights.",
    )

    @model_validator(mode="after")
    def _classes_are_told_apart(self) -> DataConfig:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class stands twice in 'classes'")
        if self.positive not in self.classes:
            raise ValueError(f"'positive' must be one of the classes {list(self.classes)}")
        return self


class SplitConfig(Strict):
    """Roles are given to patients, never to slides or tiles."""

    scheme: SplitScheme = Field(
        "holdout",
        description="holdout: shares; kfold: each patient is tested once; nested: kfold within "
        "kfold; site_preserved: kfold of whole sites; leave_one_site_out: a fold for each site; "
        "file: a table of your own. docs/splits.md",
    )
    train: Fraction = Field(0.6, description="Share of the patients, in each class.")
    validation: Fraction = Field(0.2, description="Chooses the epoch and the operating point.")
    test: Fraction = Field(0.2, description="Seen once, at the end.")
    folds: Annotated[int, Field(ge=2)] = Field(
        5, description="Of kfold, nested (the outer ones) and site_preserved."
    )
    inner_folds: Annotated[int, Field(ge=2)] = Field(
        4, description="Of nested: folds of what an outer fold does not test."
    )
    fold: Annotated[int, Field(ge=0)] = Field(
        0, description="The fold that train, predict and aggregate work on, from 0."
    )
    stratify_by_site: bool = Field(
        False, description="Give each role its share of every site, too (column site)."
    )
    external_sites: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="All patients of these sites are the test of every fold, and nothing else."
    )
    file: FilePath | None = Field(
        None,
        description="Of scheme 'file': a table (CSV or parquet) of patient_id, role, and fold "
        "where there are several.",
    )

    @model_validator(mode="after")
    def _shares_add_up(self) -> SplitConfig:
        if abs(self.train + self.validation + self.test - 1) > 1e-6:
            raise ValueError("'train', 'validation' and 'test' must add up to 1")
        if min(self.train, self.validation, self.test) <= 0:
            raise ValueError("each of 'train', 'validation' and 'test' must be above 0")
        return self

    @model_validator(mode="after")
    def _keys_fit_the_scheme(self) -> SplitConfig:
        scheme = self.scheme
        if (scheme == "file") != (self.file is not None):
            raise ValueError("'scheme: file' and the key 'file' need each other")
        if self.stratify_by_site and scheme in ("site_preserved", "file"):
            raise ValueError(f"'stratify_by_site' does not go with 'scheme: {scheme}'")
        if self.external_sites and scheme in ("nested", "file"):
            raise ValueError(f"'external_sites' does not go with 'scheme: {scheme}'")
        if scheme in ("kfold", "site_preserved") and self.folds < 3 and not self.external_sites:
            raise ValueError(
                f"'scheme: {scheme}' needs 'folds' of 3 or more: one tests, the next one validates"
            )
        count = self.fold_count
        if count is not None and self.fold >= count:
            there = "fold 0 alone" if count == 1 else f"the folds 0 to {count - 1} here"
            raise ValueError(f"'fold' is {self.fold}, and 'scheme: {scheme}' has {there}")
        return self

    @property
    def fold_count(self) -> int | None:
        """How many folds the scheme makes; None where the table of slides or the file says it."""
        return {
            "holdout": 1,
            "kfold": self.folds,
            "nested": self.folds * self.inner_folds,
            "site_preserved": self.folds,
        }.get(self.scheme)

    @property
    def needs_sites(self) -> bool:
        """Whether every patient must have one site."""
        return bool(
            self.stratify_by_site
            or self.external_sites
            or self.scheme in ("site_preserved", "leave_one_site_out")
        )
