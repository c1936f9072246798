"""Sources of labels: what each calls, where they differ, what the rules make of it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medkd.errors import ConfigError, TableError
from medkd.importers.label_report import LabelReport, make_label_report, write_label_report
from medkd.importers.labels import Statuses, Threshold, parse_source

# Ten patients whose agreement can be counted by hand.
#   liu and mantis: 8 patients both, 6 agree (p1 p2 p5 p6 p7 p8; not p3 p4).
COHORT = """\
PATIENT,liu2018_MSIStatus,pancan_MANTIS,pancan_MSIsensor
p1,MSI-H,0.7,20
p2,MSI-H,0.4,10
p3,MSI-H,0.39,9.9
p4,MSS,0.5,0.1
p5,MSI-L,0.2,0.1
p6,MSS,0.1,0
p7,mss,0.1,
p8,MSS,0.1,NA
p9,,0.9,0.5
p10,,,
"""


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    path = tmp_path / "clinical.csv"
    path.write_text(COHORT)
    return path


def discordant(report: LabelReport) -> list[str]:
    return [patient.patient_id for patient in report.patients if patient.discordant]


def test_agreement_and_kappa_by_hand(cohort: Path) -> None:
    report = make_label_report([cohort])
    pair = report.pairs[0]
    assert (pair.first, pair.second, pair.patients, pair.agreeing) == ("liu", "mantis", 8, 6)
    # liu calls 3 of 8 positive and mantis 3 of 8: chance agrees in 3/8 * 3/8 + 5/8 * 5/8.
    chance = (9 + 25) / 64
    assert pair.kappa == pytest.approx((6 / 8 - chance) / (1 - chance))
    assert [(p.first, p.second, p.patients, p.agreeing) for p in report.pairs[1:]] == [
        ("liu", "msisensor", 6, 5),
        ("mantis", "msisensor", 7, 5),
    ]
    assert discordant(report) == ["p3", "p4", "p9"]
    assert [p.patient_id for p in report.complete] == ["p1", "p2", "p3", "p4", "p5", "p6"]
    assert len(report.compared) == 9


@pytest.mark.parametrize(
    ("rule", "labels"),
    [
        # p9 is called by two sources, one each way.
        ("consensus", {"p1": "MSI", "p2": "MSI", "p3": "MSS", "p4": "MSS"}),
        ("exclude-discordant", {"p1": "MSI", "p2": "MSI"}),
        ("exclude discordant", {"p1": "MSI", "p2": "MSI"}),
        ("source=mantis", {"p1": "MSI", "p2": "MSI", "p3": "MSS", "p4": "MSI", "p9": "MSI"}),
    ],
)
def test_the_rules(cohort: Path, rule: str, labels: dict[str, str]) -> None:
    always = {"p5": "MSS", "p6": "MSS", "p7": "MSS", "p8": "MSS"}
    assert make_label_report([cohort], rule=rule).labels == {**labels, **always}


def test_a_zone_without_a_call(cohort: Path) -> None:
    report = make_label_report([cohort], sources=["mantis=pancan_MANTIS:0.4..0.6"])
    calls = {p.patient_id: p.calls.get("mantis") for p in report.patients}
    assert (calls["p1"], calls["p2"], calls["p4"], calls["p3"]) == ("MSI", None, None, "MSS")
    assert discordant(report) == ["p3", "p9"]


def test_sources_in_several_tables_are_joined_by_patient(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("PATIENT,MSIStatus\np1,MSI-H\np2,MSS\n")
    (tmp_path / "b.tsv").write_text("#comment\nPATIENT_ID\tMSI_SENSOR_SCORE\tihc\np2\t11\tdMMR\n")
    report = make_label_report(
        [tmp_path / "a.csv", tmp_path / "b.tsv"], sources=["ihc=IHC:dMMR=MSI,pMMR=MSS"]
    )
    assert {p.patient_id: dict(p.calls) for p in report.patients} == {
        "p1": {"liu": "MSI"},
        "p2": {"liu": "MSS", "msisensor": "MSI", "ihc": "MSI"},
    }
    assert report.labels == {"p1": "MSI", "p2": "MSI"}


def test_a_patient_with_two_labels_by_one_source_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "PATIENT_ID,SAMPLE_ID,MSI_SCORE_MANTIS\np1,a,0.2\np1,b,0.5\np2,a,0.2\np2,b,0.3\n"
    )
    report = make_label_report([tmp_path / "t.csv"])
    assert [str(problem) for problem in report.problems] == [
        "patient p1: has two labels by 'mantis': 0.2 (MSS) and 0.5 (MSI). "
        "Keep the row that is right, or leave the patient out."
    ]
    assert report.labels == {"p2": "MSS"}
    write_label_report(report, tmp_path / "out")
    assert "Without a label: 0 whom no source calls, 0 by the rule, 1 with two labels by one" in (
        tmp_path / "out" / "label_report.txt"
    ).read_text().replace("\n", " ")


def test_the_files(cohort: Path, tmp_path: Path) -> None:
    write_label_report(make_label_report([cohort]), tmp_path / "out")
    with (tmp_path / "out" / "labels.csv").open() as file:
        assert {row["patient_id"]: row["label"] for row in csv.DictReader(file)} == {
            **dict.fromkeys(["p3", "p4", "p5", "p6", "p7", "p8"], "MSS"),
            **dict.fromkeys(["p1", "p2"], "MSI"),
        }
    with (tmp_path / "out" / "label_report.csv").open() as file:
        rows = {row["patient_id"]: row for row in csv.DictReader(file)}
    assert rows["p3"] == {
        "patient_id": "p3",
        "label": "MSS",
        "discordant": "yes",
        "liu_value": "MSI-H",
        "liu_call": "MSI",
        "mantis_value": "0.39",
        "mantis_call": "MSS",
        "msisensor_value": "9.9",
        "msisensor_call": "MSS",
    }
    assert [rows[p]["discordant"] for p in ("p1", "p9", "p10")] == ["no", "yes", ""]
    text = (tmp_path / "out" / "label_report.txt").read_text()
    assert "│ mantis    │ pancan_MANTIS     │ MSI from 0.4 " in text
    assert "Of 6 patients called by all 3 sources, 2 (33.3%) are discordant." in text
    assert "Of 9 patients called by two or more, 3 (33.3%) are discordant." in text
    assert "Rule consensus: 8 of 10 patients have a label, 6 MSS and 2 MSI." in text
    assert "Without a label: 1 whom no source calls, 1 by the rule." in text
    assert max(map(len, text.splitlines())) <= 100


def test_reading_of_sources() -> None:
    assert parse_source("m=X:0.4").reading == Threshold(0.4, 0.4)
    assert parse_source("mantis=X").reading == Threshold(0.4, 0.4)
    assert parse_source("msisensor=X").reading == Threshold(10, 10)
    assert parse_source("pcr=X").reading == Statuses(
        {"MSI-H": "MSI", "MSI": "MSI", "MSI-L": "MSS", "MSS": "MSS"}
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mantis", "is not NAME=COLUMN:READING"),
        ("mantis=X:", "is not NAME=COLUMN:READING"),
        ("mantis=X:high", "'high' is no threshold"),
        ("mantis=X:0.6..0.4", "'0.6..0.4' is no threshold"),
        ("ihc=X:dMMR=yes", "'dMMR=yes' gives a word no label"),
        ("ihc=MMR", "no table has a column 'MMR'"),
    ],
)
def test_a_wrong_source_is_told(cohort: Path, source: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_label_report([cohort], sources=[source])
    assert message in str(caught.value)


def test_wrong_rules_and_cells_are_told(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--rule source=pcr: there is no source 'pcr'\. Use"):
        make_label_report([cohort], rule="source=pcr")
    with pytest.raises(ConfigError, match=r"--rule majority: unknown rule"):
        make_label_report([cohort], rule="majority")
    bad = tmp_path / "bad.csv"
    bad.write_text("PATIENT,pancan_MANTIS\np1,high\n")
    with pytest.raises(TableError) as caught:
        make_label_report([bad])
    assert str(caught.value) == (
        f"{bad}:2, 'pancan_MANTIS': 'high' is no value of 'mantis' (MSI from 0.4). "
        "Mend the cell, or say how to read it with --source mantis=COLUMN:READING."
    )
    bad.write_text("PATIENT,age\np1,70\n")
    with pytest.raises(TableError, match="holds no source of labels that is known"):
        make_label_report([bad])
    with pytest.raises(TableError, match="'liu' is also in"):
        make_label_report([cohort, cohort])


@pytest.mark.real_data
def test_the_18_discordant_patients_of_tcga(real_data: Path) -> None:
    path = real_data / "labels" / "tcga_crc_msi_labels_merged.csv"
    report = make_label_report([path])
    assert len(report.patients) == 633
    assert len(report.complete) == 455
    assert sum(patient.discordant for patient in report.complete) == 18

    # The table's own calls of MANTIS and MSIsensor, compared with pandas.
    table = pd.read_csv(path, index_col="PATIENT")
    calls = pd.DataFrame(
        {
            "liu": table["liu2018_MSIStatus"].map({"MSI-H": "MSI", "MSI-L": "MSS", "MSS": "MSS"}),
            "mantis": table["mantis_call"],
            "msisensor": table["sensor_call"],
        }
    )
    whole = calls.dropna()
    differing = whole[whole.nunique(axis=1) > 1]
    assert [p.patient_id for p in report.complete if p.discordant] == sorted(differing.index)
    for pair in report.pairs:
        both = calls[[pair.first, pair.second]].dropna()
        counts = pd.crosstab(both[pair.first], both[pair.second]).to_numpy() / len(both)
        chance = counts.sum(0) @ counts.sum(1)
        assert pair.kappa == pytest.approx((np.trace(counts) - chance) / (1 - chance))
        assert pair.agreeing == (both[pair.first] == both[pair.second]).sum()
    most = whole.mode(axis=1)[0]
    assert {p: report.labels[p] for p in whole.index} == most.to_dict()
