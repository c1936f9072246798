"""The infer stage of a detector: detections.json, coco.json and drawn pictures of all images."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from medkd import __version__
from medkd.errors import OutputError, StageError
from medkd.files import make_folder, output_errors, write_bytes, write_json
from medkd.inference.detect import Detector
from medkd.inference.detection_result import (
    DetectorModel,
    FailedFile,
    FoundInImages,
    LookedAt,
    coco_of,
    found_boxes,
)
from medkd.inference.detector_package import DetectorPackage
from medkd.inference.drawing import Draw
from medkd.inference.drawn_boxes import drawn_boxes
from medkd.inference.image_files import ImageFile, read_upright
from medkd.inference.overlap import overlapped, usable_cores
from medkd.inference.video import Frames, expected_frames, frames, require_video
from medkd.logs import log_event
from medkd.progress import progress

RESULT, COCO, DRAWN = "detections.json", "coco.json", "drawn"
_DRAWN_ENDINGS = (".jpg", ".jpeg", ".png")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DetectSummary:
    """What was written, and a line for each file that failed."""

    result: FoundInImages
    failed: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Picture:
    """An image, or a frame; ``read`` gives its pixels, uint8 height x width x 3."""

    file: str
    read: Callable[[], np.ndarray]
    drawn: str
    draw: Draw
    frame: int | None = None
    time_s: float | None = None


def detect_in_images(
    files: Sequence[ImageFile],
    package: DetectorPackage,
    out: Path,
    *,
    wanted: Frames | None = None,
    draw: Draw | None = None,
    detector: Detector | None = None,
    threads: int | None = None,
) -> DetectSummary:
    """Look at every image and frame; a file that cannot be used costs one line.

    Args:
        files: with names that differ.
        package: the model.
        out: gets ``detections.json``, ``coco.json`` and ``drawn``, in place of an earlier result's,
            which stays until this one is whole.
        wanted: frames of videos; None: all.
        draw: None: all images, and of videos the frames with a box that is called.
        detector: of the package, where it is loaded already.
        threads: that look, an image each; None: one for each core that may be used.

    Raises:
        ConfigError: there is a video, and PyAV is not installed.
        ModelPackageError: a student is broken.
        OutputError: ``out`` cannot be written, or holds a folder 'drawn' of something else.
    """
    wanted = wanted or Frames()
    if any(file.is_video for file in files):
        require_video()
    make_folder(out)
    if (out / DRAWN).exists() and not (out / RESULT).exists():
        raise OutputError(
            "is there, and is of no result",
            where=out / DRAWN,
            remedy="Remove it, or choose another output folder.",
        )
    detector = detector or Detector(package)
    expected = sum(expected_frames(f.path, wanted) if f.is_video else 1 for f in files)
    looked_at: list[LookedAt] = []
    failed: list[tuple[str, StageError]] = []
    with output_errors(out), tempfile.TemporaryDirectory(prefix=".drawn-", dir=out) as place:
        unfinished = Path(place)

        def look(picture: _Picture) -> LookedAt | StageError:
            return _looked_at(picture, package, detector, unfinished)

        pictures = _pictures(files, wanted, draw, failed)
        with (
            progress("looking", expected) as advance,
            closing(overlapped(look, pictures, threads=threads or usable_cores())) as outcomes,
        ):
            done = 0
            for done, (picture, outcome) in enumerate(outcomes, start=1):
                if isinstance(outcome, StageError):
                    failed.append((picture.file, outcome))
                else:
                    looked_at.append(outcome)
                    log_event(
                        _log,
                        "image_looked_at",
                        file=outcome.file,
                        frame=outcome.frame,
                        boxes=len(outcome.boxes),
                        called=outcome.called,
                    )
                if done <= expected:
                    advance(note=picture.file)
            # Videos may have fewer frames than they say, or none.
            advance(max(0, expected - done))
        for name, error in failed:
            log_event(_log, "image_failed", file=name, reason=error.what)
        result = _result(package, looked_at, failed)
        _put_in_place(result, unfinished, out)
    return DetectSummary(result, tuple(str(error) for _, error in failed))


def _pictures(
    files: Sequence[ImageFile],
    wanted: Frames,
    draw: Draw | None,
    failed: list[tuple[str, StageError]],
) -> Iterator[_Picture]:
    """What there is to look at; videos that cannot be read go to ``failed``."""
    for file in files:
        if not file.is_video:
            ending = "" if file.path.suffix.lower() in _DRAWN_ENDINGS else ".png"
            yield _Picture(
                file.name,
                lambda path=file.path: read_upright(path),  # type: ignore[misc]
                f"{file.name}{ending}",
                draw or Draw.ALL,
            )
            continue
        try:
            for frame in frames(file.path, wanted):
                yield _Picture(
                    file.name,
                    lambda pixels=frame.pixels: pixels,  # type: ignore[misc]
                    f"{file.name}/frame_{frame.number:06d}.jpg",
                    draw or Draw.CALLED,
                    frame.number,
                    round(frame.time_s, 6),
                )
        except StageError as error:
            failed.append((file.name, error))


def _looked_at(
    picture: _Picture, package: DetectorPackage, detector: Detector, unfinished: Path
) -> LookedAt | StageError:
    try:
        pixels = picture.read()
    except StageError as error:
        return error
    manifest = package.manifest
    boxes = found_boxes(detector(pixels), manifest.classes, manifest.threshold)
    called = any(box.called for box in boxes)
    drawn = None
    if picture.draw is Draw.ALL or (picture.draw is Draw.CALLED and called):
        drawn = f"{DRAWN}/{picture.drawn}"
        content = drawn_boxes(
            pixels,
            boxes,
            manifest.classes,
            note=f"{manifest.name} {manifest.version}, boxes from {manifest.threshold:.2f} on. "
            "Research use only.",
            ending=Path(picture.drawn).suffix,
        )
        make_folder((unfinished / drawn).parent)
        write_bytes(unfinished / drawn, content)
    height, width = pixels.shape[:2]
    return LookedAt(
        file=picture.file,
        frame=picture.frame,
        time_s=picture.time_s,
        width=width,
        height=height,
        drawn=drawn,
        boxes=boxes,
    )


def _result(
    package: DetectorPackage,
    looked_at: Sequence[LookedAt],
    failed: Sequence[tuple[str, StageError]],
) -> FoundInImages:
    manifest = package.manifest
    return FoundInImages(
        model=DetectorModel(name=manifest.name, version=manifest.version, sha256=package.sha256),
        classes=manifest.classes,
        threshold=manifest.threshold,
        images=tuple(looked_at),
        # Without the path, which may tell of a patient.
        failed=tuple(FailedFile(file=name, reason=error.what) for name, error in failed),
        software={"medkd": __version__, "onnxruntime": version("onnxruntime")},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _put_in_place(result: FoundInImages, unfinished: Path, out: Path) -> None:
    """``detections.json`` comes last: where it is, the others are whole and its own."""
    (out / RESULT).unlink(missing_ok=True)
    if (out / DRAWN).exists():
        (out / DRAWN).replace(unfinished / "earlier")
    if (unfinished / DRAWN).exists():
        (unfinished / DRAWN).replace(out / DRAWN)
    write_json(out / COCO, coco_of(result))
    write_json(out / RESULT, result.model_dump(mode="json", by_alias=True))
