"""How long a synthetic slide takes to draw and to write, on one core.

Pin it for a fair figure: ``taskset -c 0 python pipelines/benchmarks/synthetic_slides.py``. The last
line of the output is a JSON array with one object of medians (seconds) for each mpp.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

# Before numpy is imported: its thread pools take their size when they are made.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from medkd.slides.synthetic import SlideSpec, draw_slide, write_slide  # noqa: E402


def measure(mpp: float, side_px: int, repeats: int, folder: Path) -> dict[str, float | int]:
    """Median seconds to draw, to write and in all, over slides of both classes."""
    # The first slide at an mpp also draws the bank of nuclei; a cohort pays for that once.
    write_slide(SlideSpec("MSS", seed=0, width_px=512, height_px=512, mpp=mpp), folder / "0.svs")
    draw_s, total_s = [], []
    for seed in range(repeats):
        spec = SlideSpec(
            "MSI" if seed % 2 else "MSS", seed=seed, width_px=side_px, height_px=side_px, mpp=mpp
        )
        began = time.perf_counter()
        draw_slide(spec)
        drawn = time.perf_counter()
        write_slide(spec, folder / "slide.svs")
        draw_s.append(drawn - began)
        total_s.append(time.perf_counter() - drawn)
    return {
        "mpp": mpp,
        "side_px": side_px,
        "repeats": repeats,
        "draw_s": round(statistics.median(draw_s), 3),
        # write_slide draws too, so what is left of it is the encoding, the pyramid and the disk.
        "write_s": round(statistics.median(total_s) - statistics.median(draw_s), 3),
        "total_s": round(statistics.median(total_s), 3),
        "total_max_s": round(max(total_s), 3),
    }


def main() -> None:
    """Measure at both mpp and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=6, help="slides per mpp")
    parser.add_argument("--side-px", type=int, default=4096, help="width and height of a slide")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for mpp in (0.25, 0.5):
            results.append(measure(mpp, arguments.side_px, arguments.repeats, Path(folder)))
            print(", ".join(f"{key} {value}" for key, value in results[-1].items()), flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
