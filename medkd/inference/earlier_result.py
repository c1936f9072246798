"""Results that are there already: of which slide and model they are."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from medkd.errors import StageError
from medkd.inference.result import Result
from medkd.schema import faults

RESULT_NAME = "result.json"


def read_result(folder: Path) -> Result:
    """What ``folder/result.json`` says.

    Raises:
        StageError: there is none, or it is not one of a medkd that this one knows.
    """
    path = folder / RESULT_NAME
    again = "Call the slide again with 'medkd infer'."
    try:
        return Result.model_validate_json(path.read_bytes())
    except ValidationError as error:
        _, what, _ = faults(error, Result, lambda _: str(path))[0]
        raise StageError(what, where=path, remedy=again) from None
    except (FileNotFoundError, NotADirectoryError):
        raise StageError(
            "no such file",
            where=path,
            remedy="Name the folder of one slide that 'medkd infer' or 'medkd watch' wrote.",
        ) from None
    except OSError as error:
        raise StageError(
            f"cannot be read: {error.strerror}", where=path, remedy="Look at its permissions."
        ) from error


def result_of(
    folder: Path, *, fingerprint: str, model_sha256: str, mpp: float | None = None
) -> Result | None:
    """The result in ``folder`` if it is of this slide and model; None: there is no such.

    Args:
        folder: of one slide.
        fingerprint: of the slide, see :func:`medkd.slides.openslide_reader.fingerprint`.
        model_sha256: of the model package.
        mpp: what the user says of level 0, um/px; None: nothing.
    """
    try:
        result = read_result(folder)
    except StageError:
        return None
    if (result.slide_fingerprint, result.model.sha256) != (fingerprint, model_sha256):
        return None
    told = result.mpp.value if result.mpp.source in ("--mpp", "slides.csv") else None
    return result if told == mpp else None
