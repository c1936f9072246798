"""What was measured of a slide before it is called. Plain Python, so that infer starts fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SlideQuality:
    """Of a slide, or of several slides of a patient together.

    Attributes:
        tissue_mm2: area of tissue.
        used: tiles that were predicted.
        out_of_focus: tiles with tissue that were rejected as out of focus.
        unreadable: tiles with tissue that could not be read.
        mpp: resolution of level 0 of each slide where it is known, micrometres per pixel.
        distances: from the training slides, of what is compared; of several slides the largest.
    """

    tissue_mm2: float
    used: int
    out_of_focus: int = 0
    unreadable: int = 0
    mpp: tuple[float, ...] = ()
    distances: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> SlideQuality:
        """From a record of the tile stage; imported tiles have no counts and may have no mpp."""
        tiles, mpp = record.get("tiles"), record.get("slide", {}).get("mpp")
        known = () if mpp is None else (float(mpp),)
        if not tiles:
            return cls(float(record["tissue_area_mm2"]), 0, mpp=known)
        return cls(
            float(record["tissue_area_mm2"]),
            tiles["used"],
            tiles["rejected"].get("out_of_focus", 0),
            tiles["unreadable"],
            known,
        )

    def __add__(self, other: SlideQuality) -> SlideQuality:
        """Both slides together."""
        return SlideQuality(
            self.tissue_mm2 + other.tissue_mm2,
            self.used + other.used,
            self.out_of_focus + other.out_of_focus,
            self.unreadable + other.unreadable,
            self.mpp + other.mpp,
            {
                what: max(one.distances[what] for one in (self, other) if what in one.distances)
                for what in {**self.distances, **other.distances}
            },
        )

    @property
    def share_out_of_focus(self) -> float:
        """Of tiles with tissue."""
        return self._share(self.out_of_focus)

    @property
    def share_unreadable(self) -> float:
        """Of tiles with tissue."""
        return self._share(self.unreadable)

    def _share(self, tiles: int) -> float:
        return tiles / max(self.used + self.out_of_focus + self.unreadable, 1)
