"""Image files of a data set: which there are, how large they are, and whether they can be read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from medkd.importers.problems import LayoutError
from medkd.progress import progress

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

# So many names go to a thread at once: one at a time, handing them over costs more than the work.
_AT_ONCE = 256


def image_names(folder: Path) -> list[str]:
    """The names of the images that lie in ``folder`` itself, sorted; hidden files are passed over.

    Raises:
        LayoutError: there is no such folder.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if entry.name.lower().endswith(IMAGE_ENDINGS) and not entry.name.startswith(".")
            )
    except (FileNotFoundError, NotADirectoryError):
        raise LayoutError("no such folder", where=folder, remedy="Name the data set.") from None


def subfolders(folder: Path) -> list[Path]:
    """The folders in ``folder``, sorted; hidden ones are passed over.

    Raises:
        LayoutError: there is no such folder.
    """
    try:
        return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        raise LayoutError("no such folder", where=folder, remedy="Name the data set.") from None


def image_sizes(
    root: Path, names: Sequence[str], *, decode: bool
) -> Iterator[tuple[int, int] | str]:
    """Width and height in pixels of each image, in order; or, in words, why it cannot be read.

    Args:
        root: the names are relative to it.
        names: of the images.
        decode: read all pixels, which finds files that were cut off; otherwise the header alone.
    """

    def measured(part: Sequence[str]) -> list[tuple[int, int] | str]:
        return [_size(os.path.join(root, name), decode) for name in part]  # noqa: PTH118  (speed)

    parts = [names[at : at + _AT_ONCE] for at in range(0, len(names), _AT_ONCE)]
    # Decoding leaves Python's lock free, so that threads are enough.
    with (
        ThreadPoolExecutor(os.cpu_count()) as threads,
        progress("checking", len(names)) as advance,
    ):
        for sizes in threads.map(measured, parts):
            yield from sizes
            advance(len(sizes))


def _size(path: str, decode: bool) -> tuple[int, int] | str:
    try:
        with Image.open(path) as image:
            if decode:
                image.load()
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow tells of a damaged PNG by a SyntaxError, of an unknown format by an OSError.
        return "is empty" if _is_empty(path) else f"is no image that can be read: {error}"


def _is_empty(path: str) -> bool:
    try:
        return Path(path).stat().st_size == 0
    except OSError:
        return False
