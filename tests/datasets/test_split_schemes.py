"""Over random cohorts: one role a patient and fold, strata within one, a seed says it all."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from medkd.config import SplitConfig
from medkd.datasets.patients import Patient
from medkd.datasets.split_schemes import ROLES, make_folds, sites_with_every_class
from medkd.errors import StageError

quick = settings(max_examples=100, deadline=None, derandomize=True)


@st.composite
def cohorts(draw: st.DrawFn, least: int = 16, most_sites: int = 5) -> list[Patient]:
    """Patients of two or three classes, ``least`` or more of each, at some sites."""
    sites = "ABCDE"[: draw(st.integers(1, most_sites))]
    patients = []
    for label in ("MSI", "MSS", "other")[: draw(st.integers(2, 3))]:
        for number in range(draw(st.integers(least, 60))):
            patients.append(Patient(f"{label}{number}", label, draw(st.sampled_from(sites))))
    return patients


def shares_config(train: int, validation: int, **keys: object) -> SplitConfig:
    """Shares in hundredths."""
    return SplitConfig(
        train=train / 100, validation=validation / 100, test=1 - (train + validation) / 100, **keys
    )


def cohort(**sizes: int) -> list[Patient]:
    return [Patient(f"{name}-{i:03d}", name) for name, size in sizes.items() for i in range(size)]


def by_fold(table: pd.DataFrame) -> list[dict[str, str]]:
    return [dict(zip(f["patient_id"], f["role"], strict=True)) for _, f in table.groupby("fold")]


def check_roles(table: pd.DataFrame, patients: list[Patient]) -> list[dict[str, str]]:
    """Every patient has exactly one role in each fold; gives the folds."""
    ids = sorted(patient.patient_id for patient in patients)
    for _, fold in table.groupby("fold"):
        assert fold["patient_id"].tolist() == ids
    label = {patient.patient_id: patient.label for patient in patients}
    assert dict(zip(table["patient_id"], table["label"], strict=True)) == label
    assert set(table["role"]) <= set(ROLES)
    return by_fold(table)


SCHEMES = [
    SplitConfig(),
    SplitConfig(stratify_by_site=True),
    SplitConfig(scheme="kfold", folds=4),
    SplitConfig(scheme="kfold", folds=4, stratify_by_site=True),
    SplitConfig(scheme="nested", folds=3, inner_folds=3),
]


@quick
@given(cohorts(), st.integers(0, 2**31), st.sampled_from(SCHEMES), st.randoms())
def test_one_role_each_and_the_same_whatever_the_order(
    patients: list[Patient], seed: int, config: SplitConfig, shuffler: random.Random
) -> None:
    table = make_folds(patients, config, seed)
    folds = check_roles(table, patients)
    assert len(folds) == config.fold_count
    classes = {patient.label for patient in patients}
    label = {patient.patient_id: patient.label for patient in patients}
    for fold in folds:
        for role in ROLES:
            assert {label[p] for p, of in fold.items() if of == role} == classes
    shuffler.shuffle(patients)
    pd.testing.assert_frame_equal(make_folds(patients, config, seed), table)


@quick
@given(cohorts(least=1), st.integers(0, 99), st.integers(5, 70), st.integers(5, 25))
def test_holdout_by_site_keeps_classes_and_sites_within_one(
    patients: list[Patient], seed: int, train: int, validation: int
) -> None:
    config = shares_config(train, validation, stratify_by_site=True)
    shares = np.array([config.train, config.validation, config.test])
    classes = Counter(patient.label for patient in patients)
    if min(classes.values()) < 3:
        with pytest.raises(StageError, match=r"and each of train, validation and test needs one"):
            make_folds(patients, config, seed)
        return
    (role,) = check_roles(make_folds(patients, config, seed), patients)
    for label, size in classes.items():
        of_class = [p for p in patients if p.label == label]
        found = Counter(role[p.patient_id] for p in of_class)
        counts = np.array([found[r] for r in ROLES])
        assert (counts >= 1).all()
        if (size * shares < 1).any():
            continue  # then the role that must not be empty takes from another one
        assert (np.abs(counts - size * shares) < 1).all()
        for site in {p.site for p in of_class}:
            here = [p for p in of_class if p.site == site]
            found = Counter(role[p.patient_id] for p in here)
            counts = np.array([found[r] for r in ROLES])
            assert (np.abs(counts - len(here) * shares) < 1).all()


@quick
@given(cohorts(), st.integers(0, 99), st.integers(3, 8), st.booleans())
def test_kfold_tests_and_validates_each_patient_once_with_strata_within_one(
    patients: list[Patient], seed: int, folds: int, by_site: bool
) -> None:
    config = SplitConfig(scheme="kfold", folds=folds, stratify_by_site=by_site)
    roles = check_roles(make_folds(patients, config, seed), patients)
    for patient in patients:
        assert Counter(fold[patient.patient_id] for fold in roles) == {
            "test": 1, "validation": 1, **({"train": folds - 2} if folds > 2 else {})
        }  # fmt: skip
    strata = [("", ""), *((p.label, "") for p in patients)]
    strata += [(p.label, p.site) for p in patients] if by_site else []
    for label, site in set(strata):
        members = [p for p in patients if label in ("", p.label) and site in ("", p.site)]
        for fold in roles:
            tested = sum(fold[p.patient_id] == "test" for p in members)
            assert abs(tested - len(members) / folds) < 1


@quick
@given(cohorts(), st.integers(0, 99), st.integers(2, 4), st.integers(2, 3))
def test_nested_folds_partition_what_the_outer_fold_does_not_test(
    patients: list[Patient], seed: int, outer: int, inner: int
) -> None:
    config = SplitConfig(scheme="nested", folds=outer, inner_folds=inner)
    folds = check_roles(make_folds(patients, config, seed), patients)
    ids = {patient.patient_id for patient in patients}
    tested = []
    for number in range(outer):
        of_outer = folds[number * inner : (number + 1) * inner]
        tests = [{p for p, role in fold.items() if role == "test"} for fold in of_outer]
        assert all(test == tests[0] for test in tests)
        tested += sorted(tests[0])
        chosen = [p for fold in of_outer for p, role in fold.items() if role == "validation"]
        assert sorted(chosen) == sorted(ids - tests[0])
    assert sorted(tested) == sorted(ids)


@quick
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 20)), min_size=3, max_size=12),
       st.integers(0, 99), st.integers(3, 4))  # fmt: skip
def test_preserved_sites_are_never_torn(
    sizes: list[tuple[int, int]], seed: int, folds: int
) -> None:
    patients = [
        Patient(f"{site}-{label}-{number}", label, f"S{site:02d}")
        for site, of_site in enumerate(sizes)
        for label, size in zip(("MSI", "MSS"), of_site, strict=True)
        for number in range(size)
    ]
    config = SplitConfig(scheme="site_preserved", folds=folds)
    if len(sizes) < folds:
        with pytest.raises(StageError, match=r"class MSI has patients at 3 sites, and each of 4"):
            make_folds(patients, config, seed)
        return
    table = make_folds(patients, config, seed)
    roles = check_roles(table, patients)
    for fold in roles:
        for site in {p.site for p in patients}:
            assert len({fold[p.patient_id] for p in patients if p.site == site}) == 1
    for patient in patients:
        of_patient = [fold[patient.patient_id] for fold in roles]
        assert (of_patient.count("test"), of_patient.count("validation")) == (1, 1)
    pd.testing.assert_frame_equal(make_folds(patients[::-1], config, seed), table)


@quick
@given(cohorts(), st.integers(0, 99), st.booleans())
def test_each_site_with_every_class_is_left_out_once(
    patients: list[Patient], seed: int, by_site: bool
) -> None:
    patients += [Patient(f"{label}-x{n}", label, "X") for label in ("MSI", "MSS", "other")
                 for n in range(2)]  # fmt: skip
    config = SplitConfig(scheme="leave_one_site_out", stratify_by_site=by_site)
    sites = sites_with_every_class(patients)
    left = {
        (site, label): sum(p.site != site and p.label == label for p in patients)
        for site in sites
        for label in ("MSI", "MSS", "other")
    }
    if min(left.values()) < 2:
        with pytest.raises(StageError, match=r"has no patient left|1 patient outside [A-X], and"):
            make_folds(patients, config, seed)
        return
    roles = check_roles(make_folds(patients, config, seed), patients)
    assert len(roles) == len(sites)
    for site, fold in zip(sites, roles, strict=True):
        tested = {patient for patient, role in fold.items() if role == "test"}
        assert tested == {p.patient_id for p in patients if p.site == site}
        # 0.6 and 0.2 of all are 3 and 1 parts of what is left.
        for label in {p.label for p in patients}:
            rest = [p for p in patients if p.site != site and p.label == label]
            chosen = sum(fold[p.patient_id] == "validation" for p in rest)
            assert abs(chosen - len(rest) / 4) < 1


@pytest.mark.parametrize(
    ("config", "validated"),
    [
        (SplitConfig(external_sites=("E",)), 1),
        (SplitConfig(scheme="kfold", folds=2, external_sites=("E",)), 2),
        (SplitConfig(scheme="site_preserved", folds=2, external_sites=("E",)), 2),
        (SplitConfig(scheme="leave_one_site_out", external_sites=("E",)), 4),
    ],
)
def test_an_external_site_is_the_test_of_every_fold(config: SplitConfig, validated: int) -> None:
    patients = [
        Patient(f"{site}{label}{number}", label, site)
        for site in "ABCDE"
        for label in ("MSI", "MSS")
        for number in range(4)
    ]
    roles = check_roles(make_folds(patients, config, 0), patients)
    assert len(roles) == validated
    for fold in roles:
        assert {p for p, role in fold.items() if role == "test"} == {
            p.patient_id for p in patients if p.site == "E"
        }
    chosen = Counter(p for fold in roles for p, role in fold.items() if role == "validation")
    if validated > 1:
        assert chosen == {p.patient_id: 1 for p in patients if p.site != "E"}
    else:
        assert chosen.total() == 8  # a quarter of 32


@pytest.mark.parametrize(
    ("size", "shares", "expected"),
    [
        (10, (60, 20), (6, 2, 2)),
        (7, (60, 20), (4, 2, 1)),
        (8, (60, 20), (5, 2, 1)),
        (11, (60, 20), (7, 2, 2)),
        (100, (29, 57), (29, 57, 14)),
        (4, (90, 5), (2, 1, 1)),
        (3, (5, 5), (1, 1, 1)),
    ],
)
def test_counts_worked_out_by_hand(
    size: int, shares: tuple[int, int], expected: tuple[int, ...]
) -> None:
    table = make_folds(cohort(MSI=size), shares_config(*shares), 0)
    found = Counter(table["role"])
    assert tuple(found[role] for role in ROLES) == expected


def test_sites_and_classes_at_once_worked_out_by_hand() -> None:
    """Two sites of 5: each role gets 3, 1, 1 of either, and so 6, 2, 2 of the class."""
    patients = [Patient(f"{site}{n}", "MSI", site) for site in "AB" for n in range(5)]
    table = make_folds(patients, SplitConfig(stratify_by_site=True), 0)
    for site in "AB":
        here = table.loc[table["patient_id"].str.startswith(site), "role"]
        assert Counter(here) == {"train": 3, "validation": 1, "test": 1}


def test_another_seed_gives_other_roles() -> None:
    patients = cohort(MSI=12, MSS=30)
    for config in SCHEMES:
        assert not make_folds(patients, config, 7).equals(make_folds(patients, config, 8))


def test_every_patient_is_tested_under_some_seed() -> None:
    tested: set[str] = set()
    for seed in range(60):
        table = make_folds(cohort(MSI=5, MSS=5), SplitConfig(), seed)
        tested |= set(table.loc[table["role"] == "test", "patient_id"])
    assert len(tested) == 10


@pytest.mark.parametrize(
    ("patients", "config", "told"),
    [
        (
            cohort(MSI=1, MSS=9),
            SplitConfig(),
            "class MSI has 1 patient, and each of train, validation and test needs one. Add "
            "patients of that class.",
        ),
        (
            cohort(MSI=4, MSS=9),
            SplitConfig(scheme="kfold"),
            "class MSI has 4 patients, and each of 5 folds needs one. Add patients of that class "
            "or lower the number of folds.",
        ),
        (
            cohort(MSI=5, MSS=9),
            SplitConfig(scheme="nested", folds=3, inner_folds=4),
            "class MSI has 3 patients outside fold 0, and each of 4 folds needs one. Add patients "
            "of that class or lower the number of folds.",
        ),
        (
            [Patient("a", "MSI", "A"), Patient("b", "MSS", "B")],
            SplitConfig(scheme="leave_one_site_out"),
            "no site has patients of every class, so none can be left out. Set split.scheme to "
            "site_preserved, which puts several sites in a fold.",
        ),
        (
            [Patient("a", "MSI", "A"), Patient("b", "MSS", "B")],
            SplitConfig(external_sites=("C",)),
            "has no patient of the external site 'C'. Choose split.external_sites among A, B.",
        ),
        (
            [Patient("a", "MSI", "A"), Patient("b", "MSS", "B")],
            SplitConfig(external_sites=("A",)),
            "the external sites have no patient of class MSS. Add a site to split.external_sites "
            "that has some.",
        ),
    ],
)
def test_a_cohort_too_small_for_the_scheme_is_told(
    patients: list[Patient], config: SplitConfig, told: str
) -> None:
    with pytest.raises(StageError) as error:
        make_folds(patients, config, 0, where="my.csv")
    assert str(error.value) == f"my.csv: {told}"


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"scheme": "file"}, "'scheme: file' and the key 'file' need each other"),
        ({"scheme": "kfold", "folds": 2}, "'scheme: kfold' needs 'folds' of 3 or more"),
        (
            {"scheme": "kfold", "fold": 5},
            "'fold' is 5, and 'scheme: kfold' has the folds 0 to 4 here",
        ),
        ({"fold": 1}, "'fold' is 1, and 'scheme: holdout' has fold 0 alone"),
        (
            {"scheme": "site_preserved", "stratify_by_site": True},
            "'stratify_by_site' does not go with 'scheme: site_preserved'",
        ),
        (
            {"scheme": "nested", "external_sites": ("A",)},
            "'external_sites' does not go with 'scheme: nested'",
        ),
    ],
)
def test_keys_that_do_not_fit_are_told(keys: dict, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        SplitConfig(**keys)
