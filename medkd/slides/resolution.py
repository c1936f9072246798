"""Which micrometres per pixel to believe of a slide."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medkd.config import TileConfig
from medkd.errors import SlideError

MAX_ANISOTROPY = 0.05
"""Pixels whose sides differ by more than this are refused: tiles would be stretched."""

# Scanners of one nominal power differ: 0.22 to 0.28 at 40x. Beyond this the two contradict.
_MAX_POWER_CONFLICT = 0.3


@dataclass(frozen=True)
class MppMetadata:
    """What a slide's file says about its resolution; None where it says nothing."""

    mpp_x: float | None = None
    mpp_y: float | None = None
    objective_power: float | None = None


@dataclass(frozen=True)
class Resolution:
    """The mpp that is believed, where it came from, and what is odd about it."""

    mpp: float
    source: str
    warnings: tuple[str, ...] = ()


def believed_resolution(
    metadata: MppMetadata,
    parameters: TileConfig,
    path: Path,
    *,
    table_mpp: float | None = None,
    override_mpp: float | None = None,
) -> Resolution:
    """Choose the mpp of level 0: ``--mpp``, slides.csv, the file, objective power if asked.

    Raises:
        SlideError: ``missing_mpp``, ``implausible_mpp`` (the file's value is outside
            ``mpp_range``), ``anisotropic_mpp``, or ``too_coarse`` for the tiles that are wanted.
    """
    if override_mpp is not None:
        resolution = Resolution(override_mpp, "--mpp", _difference(metadata, override_mpp, "--mpp"))
    elif table_mpp is not None:
        warnings = _difference(metadata, table_mpp, "slides.csv")
        resolution = Resolution(table_mpp, "slides.csv", warnings)
    elif metadata.mpp_x is not None and metadata.mpp_y is not None:
        resolution = _from_file(metadata.mpp_x, metadata.mpp_y, metadata, parameters, path)
    elif parameters.use_objective_power and metadata.objective_power:
        mpp = 10 / metadata.objective_power
        warning = (
            f"mpp {mpp:g} was guessed from the objective power {metadata.objective_power:g}x, "
            "the file gives no mpp"
        )
        resolution = Resolution(mpp, "objective power", (warning,))
    else:
        power = metadata.objective_power
        or_power = f" (objective power is {power:g}x)" if power else ""
        raise SlideError(
            "missing_mpp",
            f"the slide does not say its resolution (mpp){or_power}",
            where=path,
            remedy="Give it in the column 'mpp' of slides.csv, or with --mpp where the command "
            "has that option" + (", or set tile.use_objective_power to true." if power else "."),
        )
    _check_fine_enough(resolution, parameters, path)
    return resolution


def _from_file(
    mpp_x: float, mpp_y: float, metadata: MppMetadata, parameters: TileConfig, path: Path
) -> Resolution:
    if max(mpp_x, mpp_y) > (1 + MAX_ANISOTROPY) * min(mpp_x, mpp_y):
        raise SlideError(
            "anisotropic_mpp",
            f"its pixels are not square: mpp {mpp_x:.4g} across and {mpp_y:.4g} down",
            where=path,
            remedy="If that is wrong, give the true value with --mpp or in the column 'mpp' of "
            "slides.csv.",
        )
    mpp = (mpp_x + mpp_y) / 2
    low, high = parameters.mpp_range
    if not low <= mpp <= high:
        raise SlideError(
            "implausible_mpp",
            f"its mpp {mpp:.4g} is outside the plausible range {low:g} to {high:g}",
            where=path,
            remedy="Give the true value with --mpp or in the column 'mpp' of slides.csv, or "
            "widen tile.mpp_range.",
        )
    warnings: tuple[str, ...] = ()
    power = metadata.objective_power
    if power and abs(mpp * power / 10 - 1) > _MAX_POWER_CONFLICT:
        warnings = (
            f"mpp {mpp:.4g} and objective power {power:g}x contradict each other "
            f"({power:g}x suggests {10 / power:.4g}); mpp was believed",
        )
    return Resolution(mpp, "metadata", warnings)


def _difference(metadata: MppMetadata, mpp: float, source: str) -> tuple[str, ...]:
    told = metadata.mpp_x
    if told is None or abs(told / mpp - 1) <= MAX_ANISOTROPY:
        return ()
    return (f"mpp {mpp:.4g} from {source} was believed; the file says {told:.4g}",)


def _check_fine_enough(resolution: Resolution, parameters: TileConfig, path: Path) -> None:
    # The tolerance lets a slide of 0.55 pass a limit of 1.1 x 0.5, whatever the rounding.
    if resolution.mpp <= parameters.mpp * parameters.max_upsampling * (1 + 1e-9):
        return
    raise SlideError(
        "too_coarse",
        f"its mpp {resolution.mpp:.4g} ({resolution.source}) is too coarse for tiles of "
        f"{parameters.mpp:g} um/px",
        where=path,
        remedy="Use a scan of higher resolution, correct the mpp (--mpp or slides.csv), or "
        "choose a coarser tile.mpp.",
    )
