"""How long the leakage audit of a training takes, and whether it finds what was planted.

    python pipelines/benchmarks/leakage_audit.py                  # 100,000 drawn tiles
    python pipelines/benchmarks/leakage_audit.py --tiles 5000

Draws tissue, cuts it to distinct tiles of 224 px in zip stores, plants copies that were turned and
encoded again among the test patients, and audits twice: cold, and with the hashes that the first
audit kept. Then the search alone, over a million random hashes. The last line is a JSON object.
Ends with status 1 where a planted copy is missed or another pair is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import simplejpeg  # noqa: E402

from medkd.config import Config, DataConfig  # noqa: E402
from medkd.datasets.leakage import LeakageReport, audit  # noqa: E402
from medkd.datasets.near_duplicates import candidate_pairs  # noqa: E402
from medkd.datasets.tables import SlideRow  # noqa: E402
from medkd.files import write_json  # noqa: E402
from medkd.slides.store import (  # noqa: E402
    StoredTile,
    TileStore,
    encode_tile,
    writing_store,
)
from medkd.slides.synthetic import SlideSpec, draw_slide  # noqa: E402

SIDE_PX = 224
TILES_OF_A_SLIDE = 500
PLANTED = 50
ROLES = {"train": 0.6, "validation": 0.2, "test": 0.2}
DRAWN_PX = 4096


def drawn_tissue() -> list[np.ndarray]:
    """Areas of drawn tissue, uint8, side x side x 3."""
    specs = [
        SlideSpec(
            "MSI" if seed % 2 else "MSS", seed, width_px=DRAWN_PX, height_px=DRAWN_PX, mpp=0.5
        )
        for seed in range(4)
    ]
    return [draw_slide(spec) for spec in specs]


def tile_pixels(areas: list[np.ndarray], random: np.random.Generator) -> np.ndarray:
    """A tile with tissue from anywhere, blended with another: no two show the same."""
    parts: list[np.ndarray] = []
    while len(parts) < 2:
        area = areas[random.integers(len(areas))]
        top, left = random.integers(0, DRAWN_PX - SIDE_PX, 2)
        part = area[top : top + SIDE_PX, left : left + SIDE_PX]
        if part[::8, ::8].mean() < 215:
            parts.append(part.astype(np.float32))
    return np.sqrt(parts[0] * parts[1]).astype(np.uint8)


def write_cohort(folder: Path, tiles: int) -> tuple[list[SlideRow], pd.DataFrame]:
    """Stores of ``tiles`` tiles, a slide of 500 for each patient, and their index with roles."""
    random = np.random.default_rng(0)
    areas = drawn_tissue()
    slides = max(5, tiles // TILES_OF_A_SLIDE)
    role_of = np.repeat(
        list(ROLES), np.diff(np.rint(np.cumsum([0, *ROLES.values()]) * slides).astype(int))
    )
    rows, parts = [], []
    for number, role in enumerate(role_of):
        name, label = f"S{number:04d}", ("MSI", "MSS")[number % 2]
        rows.append(SlideRow(name, folder / f"{name}.svs", f"P{number:04d}", label))
        places = [(index * SIDE_PX, 0) for index in range(tiles // slides)]
        with writing_store(folder / f"{name}.zip") as store:
            for x, y in places:
                store.add(StoredTile(x, y, 1, 1), encode_tile(tile_pixels(areas, random), 90))
        write_json(folder / f"{name}.json", {"slide": {"fingerprint": name}})
        part = pd.DataFrame(places, columns=["x", "y"])
        parts.append(
            part.assign(slide_id=name, patient_id=f"P{number:04d}", label=label, role=role)
        )
    return rows, pd.concat(parts, ignore_index=True)


def plant(folder: Path, tiles: pd.DataFrame) -> None:
    """Copies of training tiles, turned, mirrored and encoded again, over the first of the test."""
    sources = tiles[tiles["role"] == "train"].iloc[:: len(tiles) // 2 // PLANTED][:PLANTED]
    target = tiles.loc[tiles["role"] == "test", "slide_id"].iloc[0]
    copies = []
    for number, (slide, x, y) in enumerate(sources[["slide_id", "x", "y"]].itertuples(index=False)):
        with TileStore(folder / f"{slide}.zip") as store:
            pixels = np.rot90(store.read(x, y), number % 4)
        pixels = pixels[:, ::-1] if number % 8 > 3 else pixels
        quality = (90, 75, 50)[number % 3]
        copies.append(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420"))
    with TileStore(folder / f"{target}.zip") as store:
        kept = [(tile, store.read_bytes(tile.x, tile.y)) for tile in store.tiles()]
    with writing_store(folder / f"{target}.zip") as writer:
        for number, (tile, data) in enumerate(kept):
            writer.add(tile, copies[number] if number < len(copies) else data)


def timed_audit(
    config: Config, rows: list[SlideRow], tiles: pd.DataFrame
) -> tuple[LeakageReport, float]:
    """The audit and its seconds."""
    split = tiles[["patient_id", "label", "role"]].drop_duplicates()
    began = time.perf_counter()
    found = audit(config, rows, split, tiles)
    return found, time.perf_counter() - began


def search_seconds(tiles: int) -> float:
    """How long the search takes over random hashes, 60% of them of one role."""
    hashes = np.random.default_rng(0).integers(0, 2**64, tiles, np.uint64)
    began = time.perf_counter()
    candidate_pairs(hashes[: tiles * 6 // 10], hashes[tiles * 6 // 10 :])
    return time.perf_counter() - began


def main() -> None:
    """Draw, plant, audit twice, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tiles", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tiles").mkdir()
        config = Config(output=folder, data=DataConfig(classes=("MSS", "MSI")))
        rows, tiles = write_cohort(folder / "tiles", arguments.tiles)
        plant(folder / "tiles", tiles)
        print(f"{len(tiles):,} tiles of {len(rows)} slides drawn", flush=True)
        report, cold_s = timed_audit(config, rows, tiles)
        _, again_s = timed_audit(config, rows, tiles)
    found = sum(finding.count for finding in report.findings)
    result: dict[str, Any] = {
        "tiles": len(tiles),
        "seconds": round(cold_s, 1),
        "tiles_per_s": round(len(tiles) / cold_s),
        "seconds_with_kept_hashes": round(again_s, 2),
        "search_of_1_000_000_s": round(search_seconds(1_000_000), 1),
        "planted": PLANTED,
        "found": found,
        "cpu_count": os.cpu_count(),
    }
    for finding in report.findings:
        print(finding.what)
    print(json.dumps(result))
    if found != PLANTED:
        sys.exit(1)


if __name__ == "__main__":
    main()
