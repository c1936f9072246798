"""A slide's ICC profile: what its colours mean, and how they are brought to sRGB."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import openslide
from PIL import Image, ImageCms

from medkd.config import TileConfig
from medkd.errors import SlideError


class Colour(NamedTuple):
    """What is done about a slide's colours.

    Attributes:
        icc: whether a profile is there, and what became of it.
        description: the profile's own words.
        transform: to sRGB; None where pixels are left as they are.
    """

    icc: Literal["none", "ignored", "applied"]
    description: str = ""
    transform: ImageCms.ImageCmsTransform | None = None

    def __call__(self, image: Image.Image) -> Image.Image:
        """Bring ``image``, RGB, to sRGB where the profile is to be applied; in place."""
        if self.transform is not None:
            ImageCms.applyTransform(image, self.transform, inPlace=True)
        return image


def colour_of(handle: openslide.OpenSlide, parameters: TileConfig, path: Path) -> Colour:
    """Look at the profile of an open slide, and apply or ignore it as ``parameters.icc`` says.

    Raises:
        SlideError: it is to be applied and cannot be.
    """
    try:
        profile = handle.color_profile
        if profile is None:
            return Colour("none")
        description = " ".join(ImageCms.getProfileDescription(profile).split())
        if parameters.icc == "ignore":
            return Colour("ignored", description)
        transform = ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            "RGB",
            "RGB",
            ImageCms.Intent(ImageCms.getDefaultIntent(profile)),
        )
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        if parameters.icc == "ignore":
            return Colour("ignored", "unreadable")
        raise SlideError(
            "unusable_icc_profile",
            f"its ICC profile cannot be applied: {error}",
            where=path,
            remedy="Export the slide again, or set tile.icc to ignore for all slides.",
        ) from error
    return Colour("applied", description, transform)
