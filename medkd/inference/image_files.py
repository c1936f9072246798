"""What a detector is to look at: images, folders of them, and videos."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from medkd.errors import ConfigError, StageError
from medkd.importers.images import IMAGE_ENDINGS

VIDEO_ENDINGS = (
    ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".webm", ".wmv",
)  # fmt: skip


@dataclass(frozen=True)
class ImageFile:
    """A file to look at.

    Attributes:
        path: of the file.
        name: in results: the file's name, or its path below the folder that was named.
    """

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        """Whether its ending is a video's."""
        return self.path.suffix.lower() in VIDEO_ENDINGS


@dataclass(frozen=True)
class FoundImages:
    """Files to look at, in order, and how many files of folders are something else."""

    files: tuple[ImageFile, ...]
    left_aside: int


def find_images(named: Sequence[Path], *, out: Path | None = None) -> FoundImages:
    """Files that are named, and the images and videos in folders that are, at any depth.

    In folders an image is known by its ending; hidden files and folders, and linked folders, are
    passed over. A file that is named twice is looked at once.

    Args:
        named: files and folders.
        out: of the results; it is not searched, as it may hold pictures of an earlier result.

    Raises:
        ConfigError: nothing is named, folders hold no image, or two files have one name.
    """
    files: dict[str, ImageFile] = {}
    left_aside = 0
    for path in named:
        inside = _files_below(path, out) if path.is_dir() else [path]
        for each in inside:
            name = each.name if each is path else each.relative_to(path).as_posix()
            file = ImageFile(each, name)
            is_known = file.is_video or each.suffix.lower() in IMAGE_ENDINGS
            if not is_known and each is not path:
                left_aside += 1
                continue
            first = files.setdefault(name, file)
            if first.path.resolve() != each.resolve():
                raise ConfigError(
                    f"has the same name in the results as {first.path}",
                    where=each,
                    remedy="Name the folder that both lie in, or give each an --out of its own.",
                )
    if not files:
        raise ConfigError(
            "there is no image to look at",
            where=", ".join(map(str, named)) or "medkd infer",
            remedy=f"Name images ({', '.join(IMAGE_ENDINGS)}), videos, or folders of them.",
        )
    return FoundImages(tuple(files.values()), left_aside)


def _files_below(folder: Path, out: Path | None) -> list[Path]:
    found = []
    passed_over = None if out is None else out.resolve()
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and Path(parent, name).resolve() != passed_over
        )
        found += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
    return found


def read_upright(path: Path) -> np.ndarray:
    """The image at ``path`` as viewers show it, turned where its EXIF data says so.

    Returns:
        RGB, uint8 height x width x 3. Of several pages the first; transparency is left out.

    Raises:
        StageError: there is no such image, it cannot be decoded, or it has more than 8 bits.
    """
    try:
        with Image.open(path) as image:
            # Pillow would cut 16 bits off at 255: white.
            if image.mode.startswith(("I", "F")):
                raise StageError(
                    f"has more than 8 bits a pixel (Pillow's mode {image.mode})",
                    where=path,
                    remedy="Save it with 8 bits a channel.",
                )
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except FileNotFoundError:
        raise StageError("no such file", where=path, remedy="Check the path.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow tells of a damaged PNG by a SyntaxError.
        told = "it is no image" if isinstance(error, Image.UnidentifiedImageError) else error
        raise StageError(
            f"cannot be decoded: {told}", where=path, remedy="Save the image again."
        ) from error
