"""How fast tiles are loaded for training, and what an index of a million tiles costs.

    taskset -c 0 python pipelines/benchmarks/loading.py

Tiles of 224 px of a drawn slide, the same JPEGs in a store and as files, brought to augmented
float32 batches by one process with one thread. The ways take turns in several rounds, after one
that does not count; figures are CPU time, medians over the rounds, and medians of each round's
quotients, so that other work on the machine weighs little. Files lie in the page cache.

Then an index of a million tiles of 500 slides is opened as ``medkd train`` opens it, in a process
of its own, and handed to a forked and to a spawned worker. The last line is a JSON object; ends
with status 1 where two ways that should bring the same pixels do not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before numpy is imported: its thread pools take their size when they are made.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from loading_index import index_figures  # noqa: E402
from monai.data import Dataset  # noqa: E402
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, ToTensord  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils.data import default_collate  # noqa: E402

from medkd.config import AugmentConfig  # noqa: E402
from medkd.datasets.augmentation import monai_transforms  # noqa: E402
from medkd.datasets.patches import PatchDataset, PatchItems, patch_items  # noqa: E402
from medkd.datasets.transforms import tile_transforms  # noqa: E402
from medkd.slides.store import StoredTile, encode_tile, write_index, writing_store  # noqa: E402
from medkd.slides.synthetic import SlideSpec, draw_slide  # noqa: E402
from medkd.training.augmentation import BatchAugmentation  # noqa: E402

SIDE_PX = 224
BATCH_TILES = 32
JPEG_QUALITY = 90
# Pillow and simplejpeg may decode one JPEG with different rounding, of 255 levels.
MOST_MEAN_DIFFERENCE = 1.0

Way = Callable[[], Tensor]


def write_tiles(folder: Path, count: int) -> tuple[PatchItems, list[dict[str, Any]]]:
    """The same tiles as a store and as files: items of medkd, and items of MONAI."""
    across = int(np.ceil(np.sqrt(count)))
    side_px = -(-across * SIDE_PX // 256) * 256
    slide = draw_slide(SlideSpec("MSI", seed=0, width_px=side_px, height_px=side_px, mpp=0.5))
    files: list[dict[str, Any]] = []
    with writing_store(folder / "S.zip") as store:
        for number in range(count):
            y, x = (SIDE_PX * place for place in divmod(number, across))
            jpeg = encode_tile(slide[y : y + SIDE_PX, x : x + SIDE_PX], JPEG_QUALITY)
            store.add(StoredTile(x, y, 1.0, 1.0), jpeg)
            path = folder / f"{number}.jpg"
            path.write_bytes(jpeg)
            files.append({"image": str(path), "label": 0})
    parameters = {"mpp": 0.5, "size_px": SIDE_PX}
    index = write_index(folder, [{"slide_id": "S", "patient_id": "P", "parameters": parameters}])
    return patch_items(index.assign(label="MSS"), folder, ("MSS", "MSI")), files


def ways_of(items: PatchItems, files: list[dict[str, Any]]) -> dict[str, Way]:
    """Each way brings all tiles once, in batches, and returns the last batch."""
    augment = AugmentConfig()
    options: dict[str, Any] = {"cache_mb": 0, "tile_bytes": 3 * SIDE_PX**2, "seed": 0}
    # What a reader of MONAI's documentation would write; image_only leaves the file's header out.
    load = [
        LoadImaged("image", reader="PILReader", image_only=True),
        EnsureChannelFirstd("image"),
    ]
    to_tensor = ToTensord("image", track_meta=False)
    augmentation = BatchAugmentation(augment)

    def batches(dataset: Any, finish: Callable[[dict[str, Any]], Tensor]) -> Way:
        def load_all() -> Tensor:
            for start in range(0, len(dataset), BATCH_TILES):
                numbers = range(start, min(start + BATCH_TILES, len(dataset)))
                kept = [
                    {key: item[key] for key in ("image", "label", "seed") if key in item}
                    for item in (dataset[number] for number in numbers)
                ]
                last = finish(default_collate(kept))
            return last

        return load_all

    def image(batch: dict[str, Any]) -> Tensor:
        return batch["image"]

    def augmented(batch: dict[str, Any]) -> Tensor:
        return augmentation(batch["image"], batch["seed"][:, 0])

    ours = {
        "plain": PatchDataset(items, tile_transforms(), **options),
        "loader": PatchDataset(items, tile_transforms(augment), **options),
        "device": PatchDataset(items, tile_transforms(), seeds_only=True, **options),
    }
    theirs = {
        "plain": Dataset(files, Compose([*load, to_tensor])),
        "loader": Dataset(files, Compose([*load, *monai_transforms(augment), to_tensor])),
    }
    return {
        "monai_files_plain": batches(theirs["plain"], image),
        "medkd_plain": batches(ours["plain"], image),
        "monai_files": batches(theirs["loader"], image),
        "medkd_loader": batches(ours["loader"], image),
        "medkd_device": batches(ours["device"], augmented),
    }


def measure(ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each way in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = time.process_time()
            way()
            if number:
                seconds[name].append(time.process_time() - began)
    return seconds


def main() -> int:
    """Measure, print, and end with the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tiles", type=int, default=64, help="tiles of a round")
    parser.add_argument("--index-tiles", type=int, default=1_000_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        ways = ways_of(*write_tiles(Path(name), arguments.tiles))
        # MONAI's reader has x before y.
        theirs = ways["monai_files_plain"]().float().transpose(2, 3)
        difference = float((theirs - ways["medkd_plain"]().float()).abs().mean())
        seconds = measure(ways, arguments.rounds)
    per_tile_ms = {
        name: 1000 * statistics.median(values) / arguments.tiles for name, values in seconds.items()
    }
    print(f"CPU time of a tile of {SIDE_PX} px, one thread")
    for name, value in per_tile_ms.items():
        print(f"  {name:<18} {value:7.2f} ms  {1000 / value:7.0f} tiles/s")
    print(f"  mean difference of the two decoders: {difference:.3f} of 255 levels")

    def ratio(slow: str, fast: str) -> float:
        pairs = zip(seconds[slow], seconds[fast], strict=True)
        return round(statistics.median(one / other for one, other in pairs), 2)

    result: dict[str, Any] = {
        "vs_monai_files": ratio("monai_files", "medkd_device"),
        "vs_monai_files_in_loader": ratio("monai_files", "medkd_loader"),
        "vs_monai_files_not_augmented": ratio("monai_files_plain", "medkd_plain"),
        "ms_per_tile": {name: round(value, 3) for name, value in per_tile_ms.items()},
        "mean_difference_levels": round(difference, 4),
    }
    result |= index_figures(arguments.index_tiles)
    print(json.dumps(result))
    return 0 if difference <= MOST_MEAN_DIFFERENCE else 1


if __name__ == "__main__":
    sys.exit(main())
