"""Roles of images with boxes: what shows the same keeps together, and no role has another's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medkd.config import Config
from medkd.datasets.box_members import marks, members, numbered_anew
from medkd.datasets.near_duplicates import confirmed_duplicates
from medkd.datasets.patients import Patient
from medkd.datasets.perceptual_hash import hash_tile
from medkd.datasets.shared_origins import Finding
from medkd.datasets.split_schemes import ROLES
from medkd.errors import StageError
from medkd.files import write_json
from medkd.importers.box_table import BoxTable
from medkd.progress import warn
from medkd.slides.imported_tiles import read_image

REPORT_NAME = "leakage.json"
NOTHING = "nothing"
"""The class, in a split, of images without boxes."""

# Hashes of smaller images would mean little, and those of larger ones take longer.
_HASHED_PX = 128
_LEAST_CONTRAST = 2.0
# Frames of one kind of endoscope have the same black rim, whose corners are detail: on Kvasir-SEG
# those of other patients agree to 0.85 at most, and the three pairs of the same image to 0.96.
_LEAST_AGREEMENT = 0.9
_EXAMPLES = 20


@dataclass(frozen=True)
class ImageGroups:
    """Images that belong together.

    Attributes:
        group_of: of each member (:func:`medkd.datasets.box_members.members`: patient, sequence or
            image) the name of its group: the first of its members' names.
        classes: of each group, the label that most of its boxes have, or :data:`NOTHING`.
        near_duplicates: pairs of images, paths below the root, that show nearly the same.
    """

    group_of: Mapping[str, str]
    classes: Mapping[str, str]
    near_duplicates: tuple[tuple[str, str], ...]

    def patients(self) -> tuple[Patient, ...]:
        """The groups as a split sees them, sorted by name."""
        return tuple(Patient(name, self.classes[name]) for name in sorted(self.classes))

    def spread(self, split: pd.DataFrame) -> pd.DataFrame:
        """A split of the groups as one of members: columns patient_id, label, fold, role."""
        group_of = pd.DataFrame(self.group_of.items(), columns=["member", "patient_id"])
        wide = split.merge(group_of, on="patient_id")
        wide = wide.assign(patient_id=wide["member"]).sort_values(["fold", "patient_id"])
        return wide[["patient_id", "label", "fold", "role"]].reset_index(drop=True)


def image_groups(table: BoxTable) -> ImageGroups:
    """Group images by patient and sequence, and what is nearly the same image with them.

    Raises:
        StageError: an image cannot be read, or EXIF data turn it; two members have one name.
    """
    images = table.images.reset_index(drop=True)
    names = members(images)
    if anew := numbered_anew(images):
        warn(
            f"{len(anew)} sequences have a name that several patients have, such as '{anew[0]}': "
            "each patient's is taken for another one."
        )
    pairs = near_duplicates(table.root, images["image"], [(np.arange(len(images)),) * 2])[0]
    codes, known = pd.factorize(names)
    place = dict(zip(known, range(len(known)), strict=True))
    links = [(codes[a], codes[b]) for a, b in pairs]
    links += [(codes[image], place[mark]) for image, mark in marks(images).items()]
    ends = np.array(links, int).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(known),) * 2)
    _, component = connected_components(graph, directed=False)
    order = pd.Series(known).groupby(component).min()
    group_of = {str(name): str(order[part]) for name, part in zip(known, component, strict=True)}
    labels: dict[str, list[str]] = {}
    for name, of_image in zip(names, images["labels"], strict=True):
        labels.setdefault(group_of[name], []).extend(of_image)
    classes = {
        group: max(sorted(set(found)), key=found.count) if found else NOTHING
        for group, found in labels.items()
    }
    paths = images["image"]
    return ImageGroups(group_of, classes, tuple((paths[a], paths[b]) for a, b in pairs))


def near_duplicates(
    root: Path, names: Sequence[str] | pd.Series, sides: Sequence[tuple[np.ndarray, np.ndarray]]
) -> list[tuple[tuple[int, int], ...]]:
    """Pairs of images that show nearly the same, turned or mirrored ones too.

    Args:
        root: of the images.
        names: paths below it.
        sides: pairs of row numbers; each of the second is looked for among the first. Where both
            are the same rows, an image is looked for among those before it.

    Raises:
        StageError: an image cannot be read.
    """
    grey = [_grey(root / name) for name in names]
    hashed = [hash_tile(image) for image in grey]
    hashes = np.array([value for value, _ in hashed], np.uint64)
    shown = np.array([contrast >= _LEAST_CONTRAST for _, contrast in hashed], bool)
    found = []
    for one, other in sides:
        if one is other or np.array_equal(one, other):
            pairs = [
                pair
                for row in other[shown[other]].tolist()
                for pair in confirmed_duplicates(
                    hashes,
                    one[shown[one] & (one < row)],
                    np.array([row]),
                    grey.__getitem__,
                    _LEAST_AGREEMENT,
                ).pairs
            ]
            found.append(tuple(pairs))
        else:
            found.append(
                confirmed_duplicates(
                    hashes,
                    one[shown[one]],
                    other[shown[other]],
                    grey.__getitem__,
                    _LEAST_AGREEMENT,
                ).pairs
            )
    return found


def check_box_leakage(config: Config, table: BoxTable, roles: Mapping[str, str]) -> None:
    """Refuse roles that share images or sequences, and write ``runs/<name>/leakage.json``.

    Args:
        config: ``data.allow_leakage`` names what does not stop it.
        table: of the boxes.
        roles: of each member.

    Raises:
        StageError: two roles share what was not allowed; an image cannot be read, or EXIF data turn
            it.
    """
    images = table.images.reset_index(drop=True)
    role = members(images).map(roles).to_numpy(object)
    rows = {name: np.flatnonzero(role == name) for name in ROLES}
    between = list(combinations(ROLES, 2))
    pairs = near_duplicates(table.root, images["image"], [(rows[a], rows[b]) for a, b in between])
    findings = _shared_sequences(images, role)
    findings += [
        Finding(
            "near_duplicate_tiles",
            f"{one} and {other}: nearly the same image {len(found)} time{'s' * (len(found) != 1)}, "
            f"such as {images['image'][found[0][0]]} and {images['image'][found[0][1]]}",
            len(found),
            tuple((images["image"][a], images["image"][b]) for a, b in found[:_EXAMPLES]),
        )
        for (one, other), found in zip(between, pairs, strict=True)
        if found
    ]
    allowed = config.data.allow_leakage
    path = config.run_folder / REPORT_NAME
    write_json(
        path,
        {
            "schema_version": 1,
            "allowed": list(allowed),
            "findings": [
                {**asdict(finding), "allowed": finding.kind in allowed} for finding in findings
            ],
            "images": len(images),
            "patients_known": bool(images["patient_id"].notna().all()),
            "fold": config.split.fold,
        },
    )
    for finding in findings:
        if finding.kind in allowed:
            warn(f"allowed by data.allow_leakage: {finding.what}.")
    refused = [finding for finding in findings if finding.kind not in allowed]
    if refused:
        kinds = dict.fromkeys(finding.kind for finding in refused)
        raise StageError(
            "; ".join(finding.what for finding in refused),
            where=path,
            remedy="Let 'medkd split' draw the roles, which keeps what is alike together; to train "
            f"on it on purpose, set data.allow_leakage=[{', '.join([*allowed, *kinds])}].",
        )


def _shared_sequences(images: pd.DataFrame, role: np.ndarray) -> list[Finding]:
    """Sequences some of whose frames have a patient of one role, and others none or another."""
    shared = marks(images)
    # A member has one role, so what has two is the sequence of frames with and without a patient.
    table = pd.DataFrame(
        {
            "mark": shared.to_numpy(),
            "image": images["image"].loc[shared.index].to_numpy(),
            "role": role[shared.index],
        }
    )
    first = table.groupby(["mark", "role"])["image"].first().unstack()
    findings = []
    for one, other in combinations([name for name in ROLES if name in first], 2):
        both = first[[one, other]].dropna()
        examples = [(str(a), str(b)) for a, b in both.to_numpy()]
        if examples:
            findings.append(
                Finding(
                    "shared_patients",
                    f"{one} and {other} share sequences ({len(both)}), such as '{both.index[0]}': "
                    f"{examples[0][0]} and {examples[0][1]}",
                    len(both),
                    tuple(examples[:_EXAMPLES]),
                )
            )
    return findings


def _grey(path: Path) -> np.ndarray:
    image = Image.fromarray(read_image(path, turned=False)).convert("L")
    return np.asarray(image.resize((_HASHED_PX, _HASHED_PX), Image.Resampling.BILINEAR))
