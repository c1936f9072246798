"""How fast tiles can be had from a slide: medkd's readers against OpenSlide and cuCIM.

    python pipelines/benchmarks/tiling.py                   # draws slides of 16,384 px
    python pipelines/benchmarks/tiling.py --slide a.svs     # a slide of your own

All ways run in this one process, one after the other, several rounds; what is printed are medians
over the rounds. cuCIM takes part where it is installed (pip install cucim-cu12; the CPU is enough).
Two real slides take part where the folder of MEDKD_REAL_DATA has them. The last line is a JSON
object; its ratios are medkd's to the other way. Ends with status 1 where pixels are wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402
import openslide  # noqa: E402
import simplejpeg  # noqa: E402
import tifffile  # noqa: E402
from tiling_ways import Sweep, medkd_reader, native_level, sweep_of, ways_of  # noqa: E402

from medkd.config import TileConfig  # noqa: E402
from medkd.slides.readers import open_reader  # noqa: E402
from medkd.slides.synthetic import SlideSpec, draw_slide, write_slide  # noqa: E402
from medkd.slides.synthetic.drawing import Chroma  # noqa: E402
from medkd.slides.tile_slide import SlideTask, tile_slide  # noqa: E402

WANTED_MPP = 0.5
SIDE_PX = 224
# Tiles from (100, 100) lie across native tiles.
MISALIGNED_PX = 100

REAL_DATA = Path(
    os.environ.get(
        "MEDKD_REAL_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"
    )
)

# What medkd's pixels may differ from OpenSlide's, of 255 levels.
MOST_NATIVE_DIFFERENCE = 1
MOST_HALF_MEAN_DIFFERENCE = 3.0


def stage_against_openslide(path: Path, rounds: int) -> dict[str, Any]:
    """The whole tile stage of one slide (mask, quality, encoding, writing) with either reader."""
    rates: dict[str, list[float]] = {"jpeg": [], "openslide": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for reader, values in rates.items():
                wanted = {"reader": reader, "mpp": WANTED_MPP, "size_px": SIDE_PX}
                parameters = TileConfig.model_validate(wanted)
                task = SlideTask(reader, "patient", path, None, parameters, Path(folder))
                began = time.perf_counter()
                outcome = tile_slide(task)
                assert outcome.status == "ok", outcome.message
                values.append(outcome.record["tiles"]["used"] / (time.perf_counter() - began))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print("\nthe whole tile stage")
    for name, rate in medians.items():
        print(f"  {name:<18} {rate:8.0f} tiles/s")
    return {"stage_vs_openslide": round(medians["jpeg"] / medians["openslide"], 2)}


def sparse_slide(path: Path, side_px: int) -> None:
    """A slide at 0.25 um/px of which only 8,192 px square in the middle were scanned."""
    native_px = 256
    scanned = draw_slide(SlideSpec("MSI", seed=1, width_px=8192, height_px=8192, mpp=0.25))
    # On a whole native tile of every level, so that the levels show the same place.
    corner_px = side_px // 2 // (native_px * 64) * native_px * 64

    def tiles(side: int, image: np.ndarray, corner: int) -> Iterator[bytes]:
        for top in range(-corner, side - corner, native_px):
            for left in range(-corner, side - corner, native_px):
                if 0 <= top < len(image) and 0 <= left < len(image):
                    tile = image[top : top + native_px, left : left + native_px]
                    yield simplejpeg.encode_jpeg(
                        np.ascontiguousarray(tile), quality=80, colorsubsampling="420"
                    )
                else:
                    yield b""

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        while side_px >= 1024 and len(scanned) >= native_px:
            tiff.write(
                tiles(side_px, scanned, corner_px),
                shape=(side_px, side_px, 3),
                dtype=np.uint8,
                tile=(native_px, native_px),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                description="Aperio Image Library v1\r\nsparse|MPP = 0.25|Synthetic = medkd",
                metadata=None,
            )
            side_px, corner_px, side = side_px // 4, corner_px // 4, len(scanned) // 4
            scanned = scanned.reshape(side, 4, side, 4, 3).mean((1, 3)).astype(np.uint8)


def peak_mb(path: Path) -> float:
    """Largest memory of a process that tiles the slide, its libraries included."""
    done = subprocess.run(
        [sys.executable, __file__, "--peak-of", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.splitlines()[-1])


def tile_and_tell_peak(path: Path) -> None:
    """Tile the slide in this process and print the peak, megabytes."""
    with tempfile.TemporaryDirectory() as folder:
        task = SlideTask("slide", "patient", path, None, TileConfig(), Path(folder))
        outcome = tile_slide(task)
    assert outcome.status == "ok", outcome.message
    # Not getrusage: it counts what the parent had when it began this process.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) // 1024)


def timed(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Median tiles per second of each way; in every round all ways run once."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            count = way()
            rates[name].append(count / (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in rates.items()}


def reading(title: str, sweep: Sweep, rounds: int) -> dict[str, float | None]:
    """Measure every way of reading the sweep, print the rates, and return medkd's ratios."""
    reader = medkd_reader(sweep)
    name, why = reader.properties.reader, reader.properties.reader_reason
    reader.close()
    rates = timed(ways_of(sweep), rounds)
    print(
        f"\n{title}: {len(sweep.places)} tiles of {sweep.side_px} px at {sweep.wanted_mpp:g} um/px,"
        f" {sweep.read_px} px of level {sweep.level}; medkd's reader is {name} ({why})"
    )
    for way, rate in sorted(rates.items(), key=lambda item: item[1]):
        print(f"  {way:<18} {rate:8.0f} tiles/s   {rate / rates['openslide']:5.1f} x OpenSlide")
    sys.stdout.flush()

    def ratio(of: str, to: str) -> float | None:
        return round(rates[of] / rates[to], 2) if to in rates else None

    return {
        "vs_openslide": ratio("medkd", "openslide"),
        "vs_cucim": ratio("medkd", "cucim"),
        "vs_cucim_batched_2": ratio("medkd_2_threads", "cucim_batched_2"),
        "of_decode_limit": ratio("medkd", "decoding_alone"),
    }


def suffixed(found: dict[str, Any], suffix: str) -> dict[str, Any]:
    """The same under longer names."""
    return {f"{key}_{suffix}": value for key, value in found.items()}


def of_drawn(path: Path, tiles: int, rounds: int, name: str) -> dict[str, Any]:
    """A drawn slide at 0.25 um/px: tiles across native tiles, on their grid, and resampled."""
    across = sweep_of(path, 0.25, WANTED_MPP, SIDE_PX, start_px=MISALIGNED_PX, most=tiles)
    found = dict(reading(f"{name}, misaligned", across, rounds))
    level = native_level(across)
    assert level is not None
    # Tiles of two by two whole native tiles, halved: nothing is decoded that is not wanted.
    side_px = level.tile_width_px
    on_grid = sweep_of(path, 0.25, WANTED_MPP, side_px, start_px=0, most=tiles)
    assert on_grid.read_px == 2 * level.tile_width_px == 2 * level.tile_height_px
    assert not np.any(np.array(on_grid.places) % level.tile_width_px)
    found |= suffixed(reading(f"{name}, aligned", on_grid, rounds), "aligned")
    # No scanner's pixels are 0.25 um to the digit: what the decoder halved is then resampled too.
    resampled = sweep_of(path, 0.2527, WANTED_MPP, SIDE_PX, start_px=MISALIGNED_PX, most=tiles)
    return found | suffixed(reading(f"{name}, as if 0.2527", resampled, rounds), "resampled")


def of_real_slides(rounds: int) -> dict[str, Any]:
    """Two real slides: JPEG, where medkd reads native tiles, and JPEG 2000, where it does not."""
    jpeg = REAL_DATA / "slides" / "CMU-1-Small-Region.svs"
    jpeg_2000 = REAL_DATA / "slides" / "TCGA-CR-7395-01A-01-TS1.svs"
    found: dict[str, Any] = {}
    for path, mpp, wanted_mpp, suffix in (
        (jpeg, 0.499, 0.499, "cmu_native"),
        (jpeg, 0.499, 1.0, "cmu_1um"),
        (jpeg_2000, 0.25, 0.25, "tcga_native"),
        (jpeg_2000, 0.25, 0.5, "tcga_half_um"),
    ):
        if not path.is_file():
            print(f"\n{path.name} is left out: it is not in {path.parent} (MEDKD_REAL_DATA)")
            continue
        sweep = sweep_of(path, mpp, wanted_mpp, SIDE_PX, start_px=MISALIGNED_PX, most=1000)
        found |= suffixed(reading(path.name, sweep, rounds), suffix)
    return found


def pixel_differences(path: Path, mpp: float) -> dict[str, float]:
    """medkd's pixels against OpenSlide's on 40 places of a slide that is JPEG, of 255 levels.

    Returns:
        The largest difference of any pixel at native resolution, and at half of it the mean
        difference to averages of 2 x 2 pixels.
    """
    largest, means = 0, []
    full = sweep_of(path, mpp, 2 * mpp, SIDE_PX, start_px=MISALIGNED_PX, most=10**6)
    reader = medkd_reader(full)
    with openslide.OpenSlide(path) as slide:
        for x, y in full.places[:: max(len(full.places) // 40, 1)]:
            region = slide.read_region((x, y), 0, (2 * SIDE_PX, 2 * SIDE_PX)).convert("RGB")
            theirs = np.asarray(region).astype(int)
            native = reader.read_region(x, y, 2 * SIDE_PX, 2 * SIDE_PX, mpp)
            largest = max(largest, int(np.abs(native - theirs).max()))
            averages = theirs.reshape(SIDE_PX, 2, SIDE_PX, 2, 3).mean((1, 3))
            half = reader.read_region(x, y, SIDE_PX, SIDE_PX, 2 * mpp)
            means.append(float(np.abs(half - averages).mean()))
    reader.close()
    return {"native_max_difference": largest, "half_mean_difference": statistics.fmean(means)}


def pixels(slides: dict[Path, float]) -> dict[str, float]:
    """Print how medkd's pixels differ from OpenSlide's on each slide (its mpp), return the most."""
    print("\npixels, against OpenSlide's, of 255 levels")
    most = {"native_max_difference": 0.0, "half_mean_difference": 0.0}
    for path, mpp in slides.items():
        found = pixel_differences(path, mpp)
        print(
            f"  {path.name:<24} native: {found['native_max_difference']:.0f} at most; "
            f"half: {found['half_mean_difference']:.2f} in the mean"
        )
        most = {key: round(max(value, found[key]), 2) for key, value in most.items()}
    return most


def wrong_pixels(found: dict[str, Any]) -> str | None:
    """What is wrong with the pixels, or None."""
    native, half = found["native_max_difference"], found["half_mean_difference"]
    if native <= MOST_NATIVE_DIFFERENCE and half <= MOST_HALF_MEAN_DIFFERENCE:
        return None
    return (
        f"wrong pixels: native resolution differs by {native:g} (at most "
        f"{MOST_NATIVE_DIFFERENCE}), half of it by {half:g} in the mean (at most "
        f"{MOST_HALF_MEAN_DIFFERENCE:g})"
    )


def drawn(folder: Path, side_px: int, chroma: Chroma) -> Path:
    """A synthetic slide at 0.25 um/px."""
    path = folder / f"{chroma}.svs"
    print(f"drawing a slide of {side_px} px at 0.25 um/px, chroma {chroma}", flush=True)
    spec = SlideSpec("MSI", seed=1, width_px=side_px, height_px=side_px, mpp=0.25, chroma=chroma)
    write_slide(spec, path)
    return path


def of_own_slide(path: Path, mpp: float | None, tiles: int, rounds: int) -> dict[str, Any]:
    """A slide of the user's."""
    reader = open_reader(path, TileConfig(), override_mpp=mpp)
    mpp = reader.properties.mpp
    reader.close()
    sweep = sweep_of(path, mpp, WANTED_MPP, SIDE_PX, start_px=MISALIGNED_PX, most=tiles)
    found: dict[str, Any] = dict(reading(path.name, sweep, rounds))
    # What a scanner's own level at half resolution shows is not the decoder's doing.
    halved = sweep_of(path, mpp, 2 * mpp, SIDE_PX, start_px=MISALIGNED_PX, most=1)
    if native_level(halved) is not None and halved.level == 0:
        found |= pixels({path: mpp})
    return found


def of_all(folder: Path, side_px: int, tiles: int, rounds: int) -> dict[str, Any]:
    """Drawn slides, real ones, pixels and memory."""
    found: dict[str, Any] = {}
    native: dict[Path, float] = {}
    for chroma in ("420", "444"):
        path = drawn(folder, side_px, chroma)
        native[path] = 0.25
        ratios = of_drawn(path, tiles, rounds, f"chroma {chroma}")
        # Most scanners write 4:2:0; the other one's ratios are told beside it.
        found |= ratios if chroma == "420" else suffixed(ratios, "444")
        if chroma == "420":
            found |= stage_against_openslide(path, rounds)
    found |= of_real_slides(rounds)
    real = REAL_DATA / "slides" / "CMU-1-Small-Region.svs"
    if real.is_file():
        native[real] = 0.499
    found |= pixels(native)
    found["peak_mb"] = 0
    print()
    for sparse_px in (25_000, 100_000):
        path = folder / f"sparse-{sparse_px}.svs"
        sparse_slide(path, sparse_px)
        peak = peak_mb(path)
        print(f"peak memory, slide of {sparse_px:,} px: {peak:.0f} MB", flush=True)
        found["peak_mb"] = max(found["peak_mb"], peak)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--slide", type=Path, help="an own slide instead of drawn ones")
    parser.add_argument("--mpp", type=float, help="of that slide, where it does not say")
    parser.add_argument("--side-px", type=int, default=16384, help="of the drawn slides")
    parser.add_argument("--tiles", type=int, default=600, help="at most so many in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-of", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        tile_and_tell_peak(arguments.peak_of)
        return
    if arguments.slide:
        found = of_own_slide(arguments.slide, arguments.mpp, arguments.tiles, arguments.rounds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = of_all(Path(folder), arguments.side_px, arguments.tiles, arguments.rounds)
    print(json.dumps(found))
    sys.exit(wrong_pixels(found) if "native_max_difference" in found else None)


if __name__ == "__main__":
    main()
