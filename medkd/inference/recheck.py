"""Whether a result is of this slide and model, and comes out again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from medkd.errors import SlideError
from medkd.inference.earlier_result import read_result
from medkd.inference.engine import Students, infer_slide
from medkd.inference.infer_stage import build_result
from medkd.inference.package import ModelPackage
from medkd.inference.result import Result
from medkd.slides.openslide_reader import fingerprint

_HASH_DIGITS = 12


class Verdict(StrEnum):
    """What a comparison gives. Only ``differs`` speaks against the result."""

    AGREES = "agrees"
    DIFFERS = "differs"
    OTHER_VERSION = "other version"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True)
class Check:
    """One comparison, in words: what was recorded, and what is so now."""

    what: str
    recorded: str
    now: str
    verdict: Verdict


def result_folder(path: Path) -> Path:
    """The folder of one slide's result, named by itself or by a file in it."""
    return path.parent if path.is_file() else path


def recheck(
    folder: Path, package: ModelPackage, slide: Path | None, *, tolerance: float
) -> tuple[Check, ...]:
    """Compare a result with its model and slide, and with what they give today.

    The slide is called again, at the resolution that the result was given by hand if it was, once
    it and the model are known to be the same. Nothing is written.

    Args:
        folder: of one slide, as 'medkd infer' wrote it.
        package: the model.
        slide: its file; None: only the model is compared.
        tolerance: the most that scores, from 0 to 1, may differ by. Other processors round float32
            otherwise, by about 1e-6.

    Raises:
        SlideError: the slide cannot be read.
        StageError: there is no result.
    """
    recorded = read_result(folder)
    checks = _model_checks(recorded, package)
    if slide is None:
        return (*checks, *_unchecked("slide", "called again"))
    checks.append(_slide_check(recorded, slide))
    if any(check.verdict is Verdict.DIFFERS for check in checks):
        return (*checks, *_unchecked("called again"))
    now = _called_again(recorded, package, slide)
    return (*checks, *_setting_checks(recorded, now), *_outcome_checks(recorded, now, tolerance))


def reproduces(checks: tuple[Check, ...]) -> bool:
    """Whether nothing speaks against the result."""
    return not any(check.verdict is Verdict.DIFFERS for check in checks)


def _model_checks(recorded: Result, package: ModelPackage) -> list[Check]:
    manifest = package.manifest
    assert manifest.operating_point is not None  # load_package refuses a package without one
    return [
        _same("model", recorded.model.sha256, package.sha256, shown=_HASH_DIGITS),
        _same("model's name", recorded.model.name, manifest.name),
        _same("model's version", recorded.model.version, manifest.version),
        Check(
            "operating point",
            f"{recorded.operating_point.threshold:.6g}",
            f"{manifest.operating_point.threshold:.6g}",
            _verdict(recorded.operating_point == manifest.operating_point),
        ),
    ]


def _slide_check(recorded: Result, slide: Path) -> Check:
    try:
        mark = fingerprint(slide)
    except OSError as error:
        raise SlideError(
            "unreadable_file",
            f"cannot be read: {error.strerror}",
            where=slide,
            remedy="Name the file that was called with --slide.",
        ) from error
    if recorded.slide_fingerprint is None:
        return Check("slide", "not recorded", mark[:_HASH_DIGITS], Verdict.NOT_CHECKED)
    return _same("slide", recorded.slide_fingerprint, mark, shown=_HASH_DIGITS)


def _called_again(recorded: Result, package: ModelPackage, slide: Path) -> Result:
    # As it was given then, so that it is what it was from, too.
    mpp, source = recorded.mpp.value, recorded.mpp.source
    inference = infer_slide(
        slide,
        package,
        Students(package),
        slide_id=recorded.slide_id,
        mpp=mpp if source == "--mpp" else None,
        table_mpp=mpp if source == "slides.csv" else None,
    )
    return build_result(inference, package, inference.timing_s)


def _setting_checks(recorded: Result, now: Result) -> list[Check]:
    checks = [
        _same("mpp, um/px", f"{recorded.mpp.value:.6g}", f"{now.mpp.value:.6g}"),
        _same("mpp is from", recorded.mpp.source, now.mpp.source),
        _same("ICC profile", recorded.reading.icc, now.reading.icc),
        _version("reader", recorded.reading.reader, now.reading.reader),
    ]
    for name in sorted(recorded.software.keys() | now.software.keys()):
        was, is_ = recorded.software.get(name, "none"), now.software.get(name, "none")
        checks.append(_version(name, was, is_))
    return checks


def _outcome_checks(recorded: Result, now: Result, tolerance: float) -> list[Check]:
    was, is_ = recorded.tiles, now.tiles
    lower, upper = recorded.interval or (None, None)
    lower_now, upper_now = now.interval or (None, None)
    figures = [
        ("score", recorded.score, now.score),
        ("probability", recorded.probability_msi, now.probability_msi),
        ("interval, lower", lower, lower_now),
        ("interval, upper", upper, upper_now),
        *(
            (f"score of {name}", recorded.students.get(name), now.students.get(name))
            for name in sorted(recorded.students.keys() | now.students.keys())
        ),
    ]
    return [
        _same("call", recorded.call, now.call),
        *(_close(what, before, after, tolerance) for what, before, after in figures),
        _same("tiles on the grid", str(was.candidate), str(is_.candidate)),
        _same("tiles used", str(was.used), str(is_.used)),
        _same("tiles unreadable", str(was.unreadable), str(is_.unreadable)),
        _same("tiles rejected", _counts(was.rejected), _counts(is_.rejected)),
    ]


def _verdict(is_so: bool) -> Verdict:
    return Verdict.AGREES if is_so else Verdict.DIFFERS


def _same(what: str, recorded: str, now: str, *, shown: int | None = None) -> Check:
    return Check(what, recorded[:shown], now[:shown], _verdict(recorded == now))


def _version(what: str, recorded: str, now: str) -> Check:
    verdict = Verdict.AGREES if recorded == now else Verdict.OTHER_VERSION
    return Check(what, recorded, now, verdict)


def _close(what: str, recorded: float | None, now: float | None, tolerance: float) -> Check:
    if recorded is None or now is None:
        agrees = recorded is now
    else:
        agrees = math.isclose(recorded, now, rel_tol=0, abs_tol=tolerance)
    return Check(what, _figure(recorded), _figure(now), _verdict(agrees))


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.6f}"


def _counts(rejected: dict[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(rejected.items()) if n) or "none"


def _unchecked(*whats: str) -> list[Check]:
    return [Check(what, "", "", Verdict.NOT_CHECKED) for what in whats]
