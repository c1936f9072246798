"""Who trains, who chooses, who is tested in each fold: the schemes of docs/splits.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.optimize import Bounds, LinearConstraint, milp

from medkd.config import SplitConfig
from medkd.datasets.patients import Patient
from medkd.datasets.whole_sites import divide_sites
from medkd.errors import StageError

ROLES = ("train", "validation", "test")

Seed = tuple[int, ...]
_Roles = dict[str, str]


def make_folds(
    patients: Sequence[Patient], config: SplitConfig, seed: int, *, where: object = "slides.csv"
) -> pd.DataFrame:
    """Give each patient a role in every fold.

    Args:
        patients: of the cohort.
        config: any scheme but ``file``.
        seed: the same seed gives the same roles, whatever the order of ``patients``.
        where: named in the error.

    Returns:
        A table with the columns patient_id, label, fold (int64, from 0) and role, sorted by fold
        and patient.

    Raises:
        StageError: a class or the sites are too few for the scheme, or an external site is unknown.
    """
    everyone = sorted(patients, key=lambda patient: patient.patient_id)
    external, inside = _external(everyone, config, where)
    tested = dict.fromkeys((patient.patient_id for patient in external), "test")
    folds = _folds(inside, config, (seed,), bool(external), where)
    return pd.DataFrame(
        [
            (patient.patient_id, patient.label, number, {**roles, **tested}[patient.patient_id])
            for number, roles in enumerate(folds)
            for patient in everyone
        ],
        columns=["patient_id", "label", "fold", "role"],
    )


def sites_with_every_class(patients: Sequence[Patient]) -> list[str]:
    """The sites that leave_one_site_out can leave out, sorted."""
    classes = {patient.label for patient in patients}
    return [
        site
        for site in sorted({patient.site for patient in patients})
        if {patient.label for patient in patients if patient.site == site} == classes
    ]


def _external(
    patients: Sequence[Patient], config: SplitConfig, where: object
) -> tuple[list[Patient], list[Patient]]:
    sites = {patient.site for patient in patients}
    for site in config.external_sites:
        if site not in sites:
            raise StageError(
                f"has no patient of the external site '{site}'",
                where=where,
                remedy=f"Choose split.external_sites among {', '.join(sorted(sites))}.",
            )
    external = [patient for patient in patients if patient.site in config.external_sites]
    inside = [patient for patient in patients if patient.site not in config.external_sites]
    missing = {patient.label for patient in patients} - {patient.label for patient in external}
    if config.external_sites and missing:
        raise StageError(
            f"the external sites have no patient of class {min(missing)}",
            where=where,
            remedy="Add a site to split.external_sites that has some.",
        )
    return external, inside


def _folds(
    patients: Sequence[Patient], config: SplitConfig, seed: Seed, external: bool, where: object
) -> Iterator[_Roles]:
    by_site = config.stratify_by_site
    shares = {"train": config.train, "validation": config.validation, "test": config.test}
    of_the_rest = {role: shares[role] for role in ("train", "validation")}
    if config.scheme == "holdout":
        yield _by_shares(patients, of_the_rest if external else shares, seed, by_site, where)
    elif config.scheme in ("kfold", "site_preserved"):
        deal = _deal if config.scheme == "kfold" else _deal_sites
        parts = deal(patients, config.folds, seed, by_site, where)
        for fold in range(config.folds):
            yield _turned(parts, fold, config.folds, external)
    elif config.scheme == "nested":
        outer = _deal(patients, config.folds, seed, by_site, where)
        for fold in range(config.folds):
            rest = [patient for patient in patients if outer[patient.patient_id] != fold]
            inner = _deal(
                rest, config.inner_folds, (*seed, fold), by_site, where, f" outside fold {fold}"
            )
            tested = {patient: "test" for patient, part in outer.items() if part == fold}
            for chosen in range(config.inner_folds):
                yield {**_turned(inner, chosen, config.inner_folds, True), **tested}
    else:
        yield from _one_site_out(patients, of_the_rest, seed, by_site, external, where)


def _turned(parts: Mapping[str, int], fold: int, count: int, external: bool) -> _Roles:
    """Part ``fold`` is tested and the next one chooses; with another test, ``fold`` chooses."""
    held_out = {fold: "test", (fold + 1) % count: "validation"}
    role_of = {fold: "validation"} if external else held_out
    return {patient: role_of.get(part, "train") for patient, part in parts.items()}


def _one_site_out(
    patients: Sequence[Patient],
    shares: Mapping[str, float],
    seed: Seed,
    by_site: bool,
    external: bool,
    where: object,
) -> Iterator[_Roles]:
    sites = sites_with_every_class(patients)
    if not sites:
        raise StageError(
            "no site has patients of every class, so none can be left out",
            where=where,
            remedy="Set split.scheme to site_preserved, which puts several sites in a fold.",
        )
    for number, site in enumerate(sites):
        out = [patient for patient in patients if patient.site == site]
        rest = [patient for patient in patients if patient.site != site]
        if {patient.label for patient in rest} != {patient.label for patient in out}:
            raise StageError(
                f"without the site '{site}' a class has no patient left",
                where=where,
                remedy="Set split.scheme to kfold.",
            )
        if external:
            roles = {patient.patient_id: "train" for patient in rest}
        else:
            roles = _by_shares(rest, shares, (*seed, number), by_site, where, f" outside {site}")
        held = "validation" if external else "test"
        yield {**roles, **{patient.patient_id: held for patient in out}}


def _by_shares(
    patients: Sequence[Patient],
    shares: Mapping[str, float],
    seed: Seed,
    by_site: bool,
    where: object,
    of: str = "",
) -> _Roles:
    """In each class (and site) each role has its share within one patient, and each class one."""
    roles = list(shares)
    parts = np.array(list(shares.values())) / sum(shares.values())
    given: _Roles = {}
    for number, (label, members) in enumerate(_classes(patients)):
        needed = f"each of {', '.join(roles[:-1])} and {roles[-1]} needs one"
        _check_enough(label, len(members), len(roles), needed, where, of)
        random = np.random.default_rng((*seed, number))
        drawn = [members[index] for index in random.permutation(len(members))]
        strata = sorted({patient.site for patient in members}) if by_site else [None]
        of_stratum = [[p for p in drawn if site in (None, p.site)] for site in strata]
        counts = _whole_numbers([len(stratum) for stratum in of_stratum], parts)
        for stratum, of_roles in zip(of_stratum, counts, strict=True):
            names = np.repeat(roles, of_roles).tolist()
            given |= {p.patient_id: name for p, name in zip(stratum, names, strict=True)}
    return given


def _deal(
    patients: Sequence[Patient],
    parts: int,
    seed: Seed,
    by_site: bool,
    where: object,
    of: str = "",
) -> dict[str, int]:
    """Deal patients round the parts, class after class (in it, site after site).

    Whoever is dealt one after the other is spread within one over the parts: so is each class, each
    site of a class, and the whole.
    """
    given: dict[str, int] = {}
    for number, (label, members) in enumerate(_classes(patients)):
        needed = f"each of {parts} folds needs one"
        _check_enough(label, len(members), parts, needed, where, of)
        random = np.random.default_rng((*seed, number))
        drawn = [members[index] for index in random.permutation(len(members))]
        if by_site:
            drawn.sort(key=lambda patient: patient.site)
        for patient in drawn:
            given[patient.patient_id] = len(given) % parts
    return given


def _deal_sites(
    patients: Sequence[Patient], parts: int, seed: Seed, by_site: bool, where: object
) -> dict[str, int]:
    """Whole sites, so that no site has patients in two parts."""
    del by_site  # a whole site has no strata
    remedy = "Lower split.folds, or set split.scheme to kfold."
    counts: dict[str, Counter[str]] = {}
    for patient in patients:
        counts.setdefault(patient.site, Counter())[patient.label] += 1
    for label, _ in _classes(patients):
        having = sum(label in of_site for of_site in counts.values())
        if having < parts:
            raise StageError(
                f"class {label} has patients at {having} site{'s' * (having != 1)}, and each of "
                f"{parts} folds of whole sites needs one",
                where=where,
                remedy=remedy,
            )
    part_of = divide_sites(counts, parts, *seed)
    for label, _ in _classes(patients):
        having = len({part for site, part in part_of.items() if label in counts[site]})
        if having < parts:
            raise StageError(
                f"no division of the sites into {parts} folds was found that has each class in "
                f"each ({label} is in {having})",
                where=where,
                remedy=remedy,
            )
    return {patient.patient_id: part_of[patient.site] for patient in patients}


def _classes(patients: Sequence[Patient]) -> list[tuple[str, list[Patient]]]:
    labels = sorted({patient.label for patient in patients})
    return [(label, [p for p in patients if p.label == label]) for label in labels]


def _check_enough(label: str, found: int, wanted: int, needed: str, where: object, of: str) -> None:
    if found < wanted:
        raise StageError(
            f"class {label} has {found} patient{'s' * (found != 1)}{of}, and {needed}",
            where=where,
            remedy="Add patients of that class"
            + (" or lower the number of folds." if "folds" in needed else "."),
        )


def _whole_numbers(sizes: Sequence[int], shares: np.ndarray) -> np.ndarray:
    """Patients of each role in each stratum of a class: strata x roles.

    A stratum's own numbers and those of the class lie within one of their ideals, and are the
    nearest to them (controlled rounding, Cox 1987, doi:10.1080/01621459.1987.10478456). No role
    is without a patient of the class: where that takes more than rounding, the largest role gives.
    """
    total = sum(sizes)
    of_class = np.array(_apportion(total, shares))
    if len(sizes) == 1:
        return of_class[None]
    ideal = np.outer(sizes, shares)
    low, high = np.floor(ideal + 1e-9), np.ceil(ideal - 1e-9)
    class_ideal = total * shares
    columns = (np.floor(class_ideal + 1e-9), np.ceil(class_ideal - 1e-9))
    if (of_class < columns[0]).any() or (of_class > columns[1]).any():
        low, high = np.zeros_like(ideal), np.repeat(np.array(sizes, float)[:, None], len(shares), 1)
        columns = (of_class, of_class)
    rows = np.kron(np.eye(len(sizes)), np.ones(len(shares)))
    of_columns = np.kron(np.ones(len(sizes)), np.eye(len(shares)))
    found = milp(
        # What rounding a number up costs in distance to its ideal.
        (1 - 2 * (ideal - np.floor(ideal + 1e-9))).ravel(),
        integrality=np.ones(ideal.size),
        bounds=Bounds(low.ravel(), high.ravel()),
        constraints=[
            LinearConstraint(rows, sizes, sizes),
            LinearConstraint(of_columns, np.maximum(columns[0], 1), columns[1]),
        ],
    )
    if not found.success:
        raise AssertionError(f"strata {list(sizes)} by {list(shares)}: {found.message}")
    return np.rint(found.x).astype(int).reshape(ideal.shape)


def _apportion(total: int, shares: Sequence[float] | np.ndarray) -> list[int]:
    """Whole numbers nearest to ``shares`` of ``total`` (largest remainders), none of them zero."""
    ideal = [share * total for share in shares]
    counts = [int(value) for value in ideal]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - ideal[i])
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    while 0 in counts:
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return counts
