"""Image files of a data set: which there are, how large they are, and whether they can be read."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from medkd.importers.problems import LayoutError, Problem
from medkd.progress import progress
from medkd.slides.imported_tiles import WITHOUT_TAG, turned_by_exif

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
    root: Path, names: Sequence[str], *, decode: bool, turned: bool = True
) -> Iterator[tuple[int, int] | Problem]:
    """Width and height in pixels of each image, in order; or why it is left out.

    Args:
        root: the names are relative to it.
        names: of the images.
        decode: read all pixels, which finds files that were cut off; otherwise the header alone.
        turned: take images that EXIF data turn. To find these takes all of a PNG, where the data
            may lie behind the pixels, and the header of others.
    """

    def measured(part: Sequence[str]) -> list[tuple[int, int] | Problem]:
        # Joined as text, for speed.
        return [_size(os.path.join(root, name), decode, turned) for name in part]  # noqa: PTH118

    parts = [names[at : at + _AT_ONCE] for at in range(0, len(names), _AT_ONCE)]
    # Decoding leaves Python's lock free, so that threads are enough.
    with (
        ThreadPoolExecutor(os.cpu_count()) as threads,
        progress("checking", len(names)) as advance,
    ):
        for sizes in threads.map(measured, parts):
            yield from sizes
            advance(len(sizes))


def _size(path: str, decode: bool, turned: bool) -> tuple[int, int] | Problem:
    try:
        with Image.open(path) as image:
            if not turned and (fault := turned_by_exif(image)):
                return Problem("turned", str(Path(path)), fault, WITHOUT_TAG)
            if decode:
                image.load()
            return image.size
    except (
        OSError,
        SyntaxError,
        ValueError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        # Pillow tells of a damaged PNG by a SyntaxError, of an unknown format by an OSError.
        what = "is empty" if _is_empty(path) else f"is no image that can be read: {error}"
        return Problem("unreadable", str(Path(path)), what[:200], "Fetch the file again.")


def _is_empty(path: str) -> bool:
    try:
        return Path(path).stat().st_size == 0
    except OSError:
        return False
