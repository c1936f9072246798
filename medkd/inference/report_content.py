"""What a report says, the same on every medium."""

from __future__ import annotations

from dataclasses import dataclass

from medkd.inference.manifest import Manifest
from medkd.inference.result import Result
from medkd.slide_level.out_of_distribution import in_words as limit_in_words
from medkd.slide_level.slide_head import in_words


@dataclass(frozen=True)
class ReportTable:
    """Rows under a title.

    Attributes:
        title: of the table.
        rows: cells as text; all but the first column are numbers or words to their right.
        head: titles of columns; empty: none.
        bold: numbers of rows that matter more.
        bad: numbers of rows of which the last cell is a failure.
        notes: sentences below.
    """

    title: str
    rows: tuple[tuple[str, ...], ...]
    head: tuple[str, ...] = ()
    bold: frozenset[int] = frozenset()
    bad: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportContent:
    """The words and figures of a report.

    Attributes:
        banner: what must be seen first; empty: nothing.
        tables: of students, quality, tiles and slide.
        facts: of the model: name and value, each a line; a value may have parts in fixed width,
            between backquotes.
        footer: at the end.
    """

    banner: str
    tables: tuple[ReportTable, ...]
    facts: tuple[tuple[str, str], ...]
    footer: str


def report_content(result: Result, manifest: Manifest) -> ReportContent:
    """What the report of one slide says.

    Args:
        result: what ``result.json`` holds.
        manifest: of the model.
    """
    return ReportContent(
        banner=_banner(result),
        tables=(_students(result), _quality(result), _tiles(result), _slide(result, manifest)),
        facts=_facts(result, manifest),
        footer=", ".join(f"{name} {version}" for name, version in result.software.items())
        + f". {result.timing_s['total']:.1f} s. {result.created}. Not a medical device; no call "
        "may guide the care of a patient.",
    )


def _banner(result: Result) -> str:
    told = []
    if result.synthetic.slide:
        told.append("This slide is synthetic: it was drawn, not scanned.")
    if result.synthetic.model:
        told.append(
            "The model was trained on synthetic slides; its calls mean nothing in a clinic."
        )
    return " ".join(told)


def _students(result: Result) -> ReportTable:
    rows = [(name, f"{score:.3f}") for name, score in result.students.items()]
    bold = set()
    if result.probability_msi is not None and result.interval is not None:
        bold.add(len(rows))
        rows.append(("together", f"{result.score:.3f}"))
        if result.calibration != "none":
            bold.add(len(rows))
            rows.append((f"calibrated ({result.calibration})", f"{result.probability_msi:.3f}"))
        lower, upper = result.interval
        rows.append(("interval", f"{lower:.3f} to {upper:.3f}"))
        rows.append(("disagreement (largest minus smallest)", f"{result.disagreement:.3f}"))
        if result.mutual_information is not None:
            rows.append(("mutual information, nats", f"{result.mutual_information:.3f}"))
    return ReportTable("Students", tuple(rows), ("network", "score"), frozenset(bold))


def _quality(result: Result) -> ReportTable:
    gates = result.qc.gates
    checked = (
        (
            gate.name,
            f"{round(gate.value, 3):g}",
            f"{round(gate.limit, 3):g}",
            "passed" if gate.passed else "failed",
        )
        for gate in gates
    )
    names_of: dict[str, list[str]] = {}
    for one in result.qc.not_checked:
        names_of.setdefault(one.reason, []).append(one.name)
    return ReportTable(
        "Quality",
        (*checked, *((one.name, "", "", "not checked") for one in result.qc.not_checked)),
        ("check", "found", "limit", ""),
        bad=frozenset(n for n, gate in enumerate(gates) if not gate.passed),
        notes=tuple(
            f"Not checked{f' ({names[0]})' if len(names_of) > 1 else ''}: {reason}."
            for reason, names in names_of.items()
        ),
    )


def _tiles(result: Result) -> ReportTable:
    tiles = result.tiles
    rejected = ((f"rejected: {r.replace('_', ' ')}", f"{n:,}") for r, n in tiles.rejected.items())
    return ReportTable(
        "Tiles",
        (
            ("candidates on the grid", f"{tiles.candidate:,}"),
            ("used", f"{tiles.used:,}"),
            ("unreadable", f"{tiles.unreadable:,}"),
            *rejected,
        ),
    )


def _slide(result: Result, manifest: Manifest) -> ReportTable:
    tile, stain = manifest.preprocessing.tile, manifest.preprocessing.stain
    return ReportTable(
        "Slide",
        (
            ("tissue", f"{result.tissue_area_mm2:.2f} mm²"),
            ("resolution of level 0", f"{result.mpp.value:.4g} µm/px"),
            ("taken from", result.mpp.source),
            ("read by", result.reading.reader),
            ("tiles", f"{tile.size_px} px at {tile.mpp:g} µm/px"),
            ("stain normalisation", stain.method.capitalize() if stain else "none"),
        ),
    )


def _facts(result: Result, manifest: Manifest) -> tuple[tuple[str, str], ...]:
    origin, point = manifest.provenance, result.operating_point
    patients = ", ".join(f"{count} {role}" for role, count in origin.patients.items())
    target = "" if point.target_sensitivity is None else f" ({point.target_sensitivity:.0%})"
    low, high = point.sensitivity_interval
    return (
        ("name and version", f"{result.model.name} {result.model.version}"),
        ("SHA-256", f"`{result.model.sha256}`"),
        ("method", f"{origin.method}, MLflow run `{origin.run_id}`"),
        ("score", f"A slide's score is {in_words(manifest.slide_head)}."),
        ("training data", f"{patients} patients, digest `{origin.data_digest[:16]}`"),
        (
            "operating point",
            f"{point.threshold:.4f}: {point.method}{target}, chosen on {point.date} on "
            f"{point.patients} {point.cohort}, {point.positives} of them positive; sensitivity "
            f"there {point.sensitivity:.2f} ({low:.2f} to {high:.2f})",
        ),
        *_distances(manifest),
    )


def _distances(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    compared = manifest.out_of_distribution
    if compared is None or not compared.checks:
        return ()
    return tuple((f"limit of {check.what}", limit_in_words(check)) for check in compared.checks)
