"""Commands that show data before anything is trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medkd.errors import ConfigError

if TYPE_CHECKING:
    from medkd.config import Config
    from medkd.datasets.tables import SlideRow


def preview_tiles(
    config: Config, rows: Sequence[SlideRow], out: Path, tiles: int, draws: int
) -> None:
    """Write a sheet of training tiles as stored and as augmented, and print where it lies."""
    if out.suffix.lower() != ".png":
        raise ConfigError(
            "is no PNG", where=f"--out {out}", remedy="Name a file such as tiles.png."
        )
    from medkd.training.preview_stage import augmentation_words, write_preview

    seen = write_preview(config, rows, out, tiles=tiles, draws=draws)
    if len(seen.tiles) < tiles:
        print(f"There are only {len(seen.tiles)} training tiles.")
    print(f"train.augment: {augmentation_words(config.train.augment)}")
    print(f"Preview of {len(seen.tiles)} training tiles, {draws} draws each: {out}")
