"""Synthetic slides as files that OpenSlide opens as Aperio's, and cohorts of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import cast

import numpy as np
import simplejpeg
import tifffile
from PIL import Image, ImageDraw, ImageFont

from medkd.files import (
    atomic_path,
    make_folder,
    remove_stale_temporaries,
    sha256_of_json,
    write_text,
)
from medkd.slides.synthetic.drawing import (
    ARTEFACTS,
    SITES,
    Artefact,
    Chroma,
    Label,
    SlideSpec,
    draw_slide,
    severity_at,
)

# Part of every slide's digest: raise it when the same specification comes to give another picture.
_DRAWING_VERSION = 4
_TILE_PX = 256
_SUBSAMPLING: dict[Chroma, tuple[int, int]] = {"444": (1, 1), "422": (2, 1), "420": (2, 2)}
_SHARE_OF_PATIENTS_WITH_TWO_SLIDES = 0.25
_SHARE_OF_SLIDES_WITH_AN_ARTEFACT = 0.2


def write_slide(spec: SlideSpec, path: Path) -> None:
    """Draw a slide and write it as a pyramidal, JPEG-tiled file in Aperio's layout.

    The same specification gives the same bytes. ``aperio.Synthetic`` in the file's properties is
    ``medkd``, so that everything made from it can say that it was drawn.

    Raises:
        OutputError: no permission, or no space; nothing is left behind.
    """
    image = draw_slide(spec)
    with atomic_path(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=False) as tiff:
        _write_level(tiff, image, spec, _description(spec))
        small = _shrink_to(image, 1024)
        # Aperio keeps a thumbnail in strips behind level 0, and names the file's parts by order.
        tiff.write(
            _whole_jpeg(small),
            shape=small.shape,
            dtype=small.dtype,
            rowsperstrip=small.shape[0],
            photometric="ycbcr",
            subsampling=(1, 1),
            compression="jpeg",
            description=f"Aperio Image Library\r\n{spec.width_px}x{spec.height_px} -> "
            f"{small.shape[1]}x{small.shape[0]} - |{_keys(spec)}",
            metadata=None,
            software=False,
        )
        level = image
        while min(level.shape[:2]) >= 4 * _TILE_PX:
            level = _shrink(level, 4)
            _write_level(tiff, level, spec, _description(spec, level))
        if spec.with_label_and_macro:
            for name, associated in (("label", _label(spec)), ("macro", _macro(spec, small))):
                tiff.write(
                    _whole_jpeg(associated),
                    shape=associated.shape,
                    dtype=associated.dtype,
                    rowsperstrip=associated.shape[0],
                    photometric="ycbcr",
                    subsampling=(1, 1),
                    compression="jpeg",
                    subfiletype=1 if name == "label" else 9,
                    description=f"Aperio Image Library\r\n{name} "
                    f"{associated.shape[1]}x{associated.shape[0]}",
                    metadata=None,
                    software=False,
                )


def _keys(spec: SlideSpec) -> str:
    return (
        f"AppMag = {round(10 / spec.mpp)}|MPP = {spec.mpp:.4f}|Synthetic = medkd"
        f"|Specification = {_digest(spec)}"
    )


def _digest(spec: SlideSpec) -> str:
    content = {**vars(spec), "artefacts": sorted(spec.artefacts), "drawing": _DRAWING_VERSION}
    return sha256_of_json(content)[:16]


def _description(spec: SlideSpec, level: np.ndarray | None = None) -> str:
    quality = SITES[spec.site].jpeg_quality
    size = f"{spec.width_px}x{spec.height_px}"
    smaller = "" if level is None else f" -> {level.shape[1]}x{level.shape[0]}"
    return (
        f"Aperio Image Library\r\n{size} [0,0 {size}] ({_TILE_PX}x{_TILE_PX}){smaller} "
        f"JPEG/YCC Q={quality}|{_keys(spec)}"
    )


def _write_level(
    tiff: tifffile.TiffWriter, image: np.ndarray, spec: SlideSpec, description: str
) -> None:
    tiff.write(
        _tiles(image, SITES[spec.site].jpeg_quality, spec.chroma),
        shape=image.shape,
        dtype=image.dtype,
        tile=(_TILE_PX, _TILE_PX),
        photometric="ycbcr",
        subsampling=_SUBSAMPLING[spec.chroma],
        compression="jpeg",
        description=description,
        metadata=None,
        software=False,
    )


def _tiles(image: np.ndarray, quality: int, chroma: Chroma) -> Iterator[bytes]:
    height, width = image.shape[:2]
    for top in range(0, height, _TILE_PX):
        for left in range(0, width, _TILE_PX):
            tile = image[top : top + _TILE_PX, left : left + _TILE_PX]
            missing = (_TILE_PX - tile.shape[0], _TILE_PX - tile.shape[1])
            if any(missing):
                tile = np.pad(tile, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
            yield _jpeg(tile, quality, chroma)


def _jpeg(image: np.ndarray, quality: int, chroma: Chroma = "444") -> bytes:
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling=chroma
    )


def _whole_jpeg(image: np.ndarray) -> Iterator[bytes]:
    yield _jpeg(image, 85)


def _shrink(image: np.ndarray, factor: int) -> np.ndarray:
    # As Aperio does, what is left over at the right and below is dropped: blocks stay whole.
    height, width = (side - side % factor for side in image.shape[:2])
    image = image[:height, :width]
    return np.asarray(Image.fromarray(image).reduce(factor))


def _shrink_to(image: np.ndarray, longest_px: int) -> np.ndarray:
    factor = max(-(-max(image.shape[:2]) // longest_px), 2)
    return _shrink(image, factor)


def _label(spec: SlideSpec) -> np.ndarray:
    """A paper label with a name, a number and a date, all of them made up."""
    image = Image.new("RGB", (400, 300), (250, 248, 235))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(34)
    for line, text in enumerate((f"DOE, JANE {spec.seed}", "1956-07-08", "S26-0815 B2")):
        draw.text((25, 40 + 70 * line), text, fill=(10, 10, 60), font=font)
    return np.asarray(image)


def _macro(spec: SlideSpec, small: np.ndarray) -> np.ndarray:
    """The whole glass: label at the left, tissue at the right."""
    image = Image.new("RGB", (1200, 400), (225, 228, 232))
    image.paste(Image.fromarray(_label(spec)).resize((360, 270)), (20, 60))
    tissue = Image.fromarray(small)
    tissue.thumbnail((700, 360))
    image.paste(tissue, (440, 20))
    return np.asarray(image)


@dataclass(frozen=True)
class CohortSlide:
    """One slide of a synthetic cohort."""

    slide_id: str
    patient_id: str
    spec: SlideSpec


def cohort_specs(
    *,
    patients: int = 40,
    seed: int = 0,
    share_msi: float = 0.45,
    width_px: int = 2048,
    height_px: int = 2048,
    mpp: float = 0.5,
) -> tuple[CohortSlide, ...]:
    """What :func:`write_cohort` draws.

    Slides of a patient share class, site and severity. Each site has half of each class; artefacts
    and second slides are drawn without a look at the class. Severities are spread evenly over the
    quantiles of each class, so that a small cohort overlaps no more and no less than a large one.

    Raises:
        ValueError: an option is out of range.
    """
    if patients < 1:
        raise ValueError(f"a cohort needs at least one patient, not {patients}")
    if not 0 <= share_msi <= 1:
        raise ValueError(f"share_msi must lie between 0 and 1, not {share_msi}")
    random = np.random.default_rng((seed, 10))
    is_msi = np.zeros(patients, bool)
    is_msi[: round(patients * share_msi)] = True
    random.shuffle(is_msi)
    site_number = np.zeros(patients, int)
    quantile = np.zeros(patients)
    for of_class in (np.flatnonzero(is_msi), np.flatnonzero(~is_msi)):
        count = len(of_class)
        alternating = (np.arange(count) + random.integers(2)) % 2
        site_number[of_class] = random.permutation(alternating)
        quantile[of_class] = random.permutation((np.arange(count) + random.random(count)) / count)
    has_two = np.zeros(patients, bool)
    has_two[: round(patients * _SHARE_OF_PATIENTS_WITH_TWO_SLIDES)] = True
    random.shuffle(has_two)
    slides: list[CohortSlide] = []
    for number, msi in enumerate(is_msi):
        label: Label = "MSI" if msi else "MSS"
        severity = severity_at(label, float(quantile[number]))
        for index in range(2 if has_two[number] else 1):
            artefacts: frozenset[Artefact] = frozenset()
            if random.random() < _SHARE_OF_SLIDES_WITH_AN_ARTEFACT:
                artefacts = frozenset({ARTEFACTS[random.integers(len(ARTEFACTS))]})
            patient_id = f"SYN-{number + 1:04d}"
            spec = SlideSpec(
                label=label,
                seed=int(random.integers(2**31)),
                width_px=width_px,
                height_px=height_px,
                mpp=mpp,
                site=sorted(SITES)[site_number[number]],
                severity=severity,
                artefacts=artefacts,
            )
            slides.append(CohortSlide(f"{patient_id}-{index + 1}", patient_id, spec))
    return tuple(slides)


def write_cohort(
    folder: Path,
    *,
    patients: int = 40,
    seed: int = 0,
    share_msi: float = 0.45,
    width_px: int = 2048,
    height_px: int = 2048,
    mpp: float = 0.5,
    workers: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a cohort: ``<slide_id>.svs`` files and ``slides.csv``.

    A whole file of the same specification is left as it is: it would come out the same. Slides of
    an earlier, larger cohort are left too, but ``slides.csv`` does not list them.

    Args:
        folder: for the slides; made where it is missing.
        patients: how many; about a quarter have two slides.
        seed: of everything.
        share_msi: share of patients whose tumour is MSI.
        width_px, height_px, mpp: of each slide.
        workers: processes that draw.
        on_progress: called with (slides done, slides in all), at the start and after each.

    Returns:
        The path of slides.csv; the paths in it are relative to it.

    Raises:
        ValueError: an option is out of range.
        OutputError: no permission, or no space.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    slides = cohort_specs(
        patients=patients,
        seed=seed,
        share_msi=share_msi,
        width_px=width_px,
        height_px=height_px,
        mpp=mpp,
    )
    make_folder(folder)
    remove_stale_temporaries(folder)
    missing = [s for s in slides if not _is_whole(folder / f"{s.slide_id}.svs", s.spec)]
    done = len(slides) - len(missing)
    if on_progress is not None:
        on_progress(done, len(slides))
    if missing:
        # Spawned, not forked: the caller may hold threads, and this is what other systems do.
        with ProcessPoolExecutor(min(workers, len(missing)), get_context("spawn")) as pool:
            futures = [
                pool.submit(write_slide, s.spec, folder / f"{s.slide_id}.svs") for s in missing
            ]
            try:
                for future in as_completed(futures):
                    future.result()
                    done += 1
                    if on_progress is not None:
                        on_progress(done, len(slides))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(["slide_id", "path", "patient_id", "label", "site", "scanner"])
    for s in slides:
        writer.writerow(
            [s.slide_id, f"{s.slide_id}.svs", s.patient_id, s.spec.label, s.spec.site, "synthetic"]
        )
    table = folder / "slides.csv"
    write_text(table, content.getvalue())
    return table


def _is_whole(path: Path, spec: SlideSpec) -> bool:
    """Whether ``path`` was drawn from ``spec`` and ends where its tables say it does."""
    if not path.exists():
        return False
    try:
        with tifffile.TiffFile(path) as tiff:
            if f"Specification = {_digest(spec)}" not in tiff.pages.first.description:
                return False
            pages = [cast("tifffile.TiffPage", page) for page in tiff.pages]
            ends = [
                offset + length
                for page in pages
                for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True)
            ]
            # A file that was cut has lost its last pages, or the end of one.
            return len(pages) == _page_count(spec) and max(ends) <= path.stat().st_size
    except Exception:
        # Whatever the parser trips over, the answer is to draw the slide again.
        return False


def _page_count(spec: SlideSpec) -> int:
    count, side = 2, min(spec.width_px, spec.height_px)
    while side >= 4 * _TILE_PX:
        count, side = count + 1, side // 4
    return count + 2 * spec.with_label_and_macro
