"""Whose images with boxes are: what a split gives roles to, and what holds these together."""

from __future__ import annotations

import numpy as np
import pandas as pd

from medkd.errors import StageError

SEQUENCE = "sequence:"
"""What a sequence's name begins with in a split, where a patient may have the same name."""


def members(images: pd.DataFrame) -> pd.Series:
    """Of each image the member of a split whose role it has.

    That is its patient; where nobody knows one its sequence, as ``sequence:<sequence_id>``; where
    nobody knows that either the image itself, by its path below the root.

    Args:
        images: of a :class:`medkd.importers.box_table.BoxTable`, or rows of it.

    Raises:
        StageError: members of two kinds have one name.
    """
    of_patient, of_sequence = images["patient_id"].notna(), images["sequence_id"].notna()
    sequences = _named(images["sequence_id"]).where(of_sequence, images["image"])
    names = images["patient_id"].where(of_patient, sequences).astype(str)
    kinds = np.select([of_patient, of_sequence], ["a patient", "a sequence"], "an image")
    known = pd.DataFrame({"name": names, "kind": kinds}).drop_duplicates()
    twice = known.loc[known["name"].duplicated(), "name"]
    if len(twice):
        name = twice.min()
        both = " and ".join(sorted(known.loc[known["name"] == name, "kind"], reverse=True))
        raise StageError(
            f"'{name}' is the name of {both}",
            where="boxes",
            remedy="Import them with another pattern of --patient, so that each has its own.",
        )
    return names


def marks(images: pd.DataFrame) -> pd.Series:
    """What must lie in one role: all images that have a mark in common.

    Each image is marked with its member, and one of a known patient with its sequence too, where
    frames of that sequence are without a patient. A name that stands under two patients and
    nowhere else does not join them: a sequence shows one patient, so that each numbers its own.

    Returns:
        The marks, by the index of ``images``, in which an image of two marks stands twice.

    Raises:
        StageError: as :func:`members`.
    """
    of_patient = images["patient_id"].notna()
    without = images.loc[~of_patient, "sequence_id"].dropna()
    pulled = images.loc[of_patient & images["sequence_id"].isin(without), "sequence_id"]
    return pd.concat([members(images), _named(pulled)])


def numbered_anew(images: pd.DataFrame) -> list[str]:
    """Names that stand under several patients, each of whom has a sequence of that name; sorted."""
    without = images.loc[images["patient_id"].isna(), "sequence_id"]
    patients = images.groupby("sequence_id")["patient_id"].nunique().drop(without, errors="ignore")
    return sorted(patients.index[patients > 1])


def _named(sequences: pd.Series) -> pd.Series:
    return SEQUENCE + sequences.astype(str)
