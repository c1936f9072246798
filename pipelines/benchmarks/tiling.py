"""How fast tiles can be had from a slide: medkd's readers against OpenSlide and cuCIM.

    python pipelines/benchmarks/tiling.py                   # draws slides of 16,384 px
    python pipelines/benchmarks/tiling.py --slide a.svs     # a slide of your own

All ways run in this one process, one after the other, several rounds; what is printed are medians
over the rounds. cuCIM takes part where it is installed (pip install cucim-cu12; the CPU is enough).
The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import importlib.util
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
from PIL import Image  # noqa: E402

from medkd.config import TileConfig  # noqa: E402
from medkd.slides.jpeg_reader import JpegReader  # noqa: E402
from medkd.slides.jpeg_tiles import read_jpeg_levels, read_tile_bytes  # noqa: E402
from medkd.slides.readers import open_reader  # noqa: E402
from medkd.slides.synthetic import SlideSpec, draw_slide, write_slide  # noqa: E402
from medkd.slides.synthetic.drawing import Chroma  # noqa: E402
from medkd.slides.tile_slide import SlideTask, tile_slide  # noqa: E402

Places = list[tuple[int, int]]
WANTED_MPP = 0.5
SIDE_PX = 224


def through_openslide(path: Path, places: Places, extent_px: int) -> int:
    """Region by region at level 0, made smaller with PIL: what most pipelines do."""
    with openslide.OpenSlide(path) as slide:
        for place in places:
            region = slide.read_region(place, 0, (extent_px, extent_px)).convert("RGB")
            np.asarray(region.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR))
    return len(places)


def through_cucim(path: Path, places: Places, extent_px: int) -> int:
    """The same with cuCIM on the CPU."""
    from cucim import CuImage

    slide = CuImage(str(path))
    for place in places:
        region = np.asarray(slide.read_region(place, (extent_px, extent_px), 0))
        image = Image.fromarray(region)
        np.asarray(image.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR))
    return len(places)


def through_cucim_batches(path: Path, places: Places, extent_px: int) -> int:
    """cuCIM's own batches with 2 workers, read only."""
    from cucim import CuImage

    slide = CuImage(str(path))
    batches = slide.read_region(
        places, (extent_px, extent_px), 0, num_workers=2, batch_size=16, prefetch_factor=4
    )
    return sum(len(np.asarray(batch)) for batch in batches)


def through_medkd(path: Path, places: Places, extent_px: int, threads: int = 1) -> int:  # noqa: ARG001
    """medkd's native JPEG reader."""
    reader = open_reader(path, TileConfig(reader="jpeg", mpp=WANTED_MPP, size_px=SIDE_PX))
    assert isinstance(reader, JpegReader)
    count = 0
    for tile in reader.read_tiles(places, SIDE_PX, WANTED_MPP, threads=threads):
        count += isinstance(tile, np.ndarray)
    reader.close()
    return count


def decoding_alone(path: Path, places: Places, extent_px: int) -> int:
    """simplejpeg decodes every native tile that these places need, once, at half scale."""
    with openslide.OpenSlide(path) as slide:
        level = read_jpeg_levels(path, slide.level_dimensions)[0]
    width, height = level.tile_width_px, level.tile_height_px
    needed = {
        (row, column)
        for x, y in places
        for row in range(y // height, (y + extent_px - 1) // height + 1)
        for column in range(x // width, (x + extent_px - 1) // width + 1)
    }
    descriptor = os.open(path, os.O_RDONLY)
    streams = [read_tile_bytes(descriptor, level, *at) for at in sorted(needed)]
    os.close(descriptor)
    prefix = level.prefix
    for data in streams:
        simplejpeg.decode_jpeg(
            b"\xff\xd8" + prefix + data[2:], "RGB", min_height=height // 2, min_width=width // 2,
            min_factor=2,
        )  # fmt: skip
    return len(places)


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


def places_of(path: Path, extent_px: int, most: int, start_px: int) -> Places:
    """A grid without overlap, row by row, of at most ``most`` places."""
    with openslide.OpenSlide(path) as slide:
        width, height = slide.dimensions
    rows = range(start_px, height - extent_px + 1, extent_px)
    columns = range(start_px, width - extent_px + 1, extent_px)
    return [(x, y) for y in rows for x in columns][:most]


def timed(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """Median tiles per second of each way; in every round all ways run once."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            count = way()
            rates[name].append(count / (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in rates.items()}


def reading(path: Path, tiles: int, start_px: int, rounds: int) -> dict[str, float]:
    """Tiles per second, ready for the model, of every way of reading them."""
    with openslide.OpenSlide(path) as slide:
        mpp = float(slide.properties["openslide.mpp-x"])
    extent_px = round(SIDE_PX * WANTED_MPP / mpp)
    places = places_of(path, extent_px, tiles, start_px)
    # OpenSlide is an order of magnitude slower: fewer places say as much.
    fewer = places[: max(len(places) // 6, 1)]
    ways: dict[str, Callable[[], int]] = {
        "openslide": lambda: through_openslide(path, fewer, extent_px),
        "medkd": lambda: through_medkd(path, places, extent_px),
        "medkd_2_threads": lambda: through_medkd(path, places, extent_px, threads=2),
        "decoding_alone": lambda: decoding_alone(path, places, extent_px),
    }
    if importlib.util.find_spec("cucim"):
        ways["cucim"] = lambda: through_cucim(path, fewer, extent_px)
        ways["cucim_batched_2"] = lambda: through_cucim_batches(path, places, extent_px)
    return timed(ways, rounds)


def report(title: str, rates: dict[str, float]) -> dict[str, float | None]:
    """Print the rates, and return medkd's ratios to them."""
    print(f"\n{title}")
    for name, rate in sorted(rates.items(), key=lambda item: item[1]):
        print(f"  {name:<18} {rate:8.0f} tiles/s   {rate / rates['openslide']:5.1f} x OpenSlide")

    def ratio(of: str, to: str) -> float | None:
        return round(rates[of] / rates[to], 2) if to in rates else None

    return {
        "vs_openslide": ratio("medkd", "openslide"),
        "vs_cucim": ratio("medkd", "cucim"),
        "vs_cucim_batched_2": ratio("medkd_2_threads", "cucim_batched_2"),
        "of_decode_limit": ratio("medkd", "decoding_alone"),
    }


def drawn(folder: Path, side_px: int, chroma: Chroma) -> Path:
    """A synthetic slide at 0.25 um/px."""
    path = folder / f"{chroma}.svs"
    print(f"drawing a slide of {side_px} px at 0.25 um/px, chroma {chroma}", flush=True)
    spec = SlideSpec("MSI", seed=1, width_px=side_px, height_px=side_px, mpp=0.25, chroma=chroma)
    write_slide(spec, path)
    return path


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--slide", type=Path, help="an own slide instead of drawn ones")
    parser.add_argument("--side-px", type=int, default=16384, help="of the drawn slides")
    parser.add_argument("--tiles", type=int, default=600, help="at most so many in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-of", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        tile_and_tell_peak(arguments.peak_of)
        return
    # Tiles from (100, 100) lie across native tiles.
    start_px = 100
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.slide:
            rates = reading(arguments.slide, arguments.tiles, start_px, arguments.rounds)
            found = report(str(arguments.slide), rates)
        else:
            for chroma in ("420", "444"):
                path = drawn(Path(folder), arguments.side_px, chroma)
                rates = reading(path, arguments.tiles, start_px, arguments.rounds)
                ratios = report(f"misaligned, chroma {chroma}", rates)
                # Most scanners write 4:2:0; the other one's ratios are told beside it.
                found |= ratios if chroma == "420" else {f"{k}_444": v for k, v in ratios.items()}
                if chroma == "420":
                    found |= stage_against_openslide(path, arguments.rounds)
            found["peak_mb"] = 0
            print()
            for side_px in (25_000, 100_000):
                path = Path(folder) / f"sparse-{side_px}.svs"
                sparse_slide(path, side_px)
                peak = peak_mb(path)
                print(f"peak memory, slide of {side_px:,} px: {peak:.0f} MB", flush=True)
                found["peak_mb"] = max(found["peak_mb"], peak)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
