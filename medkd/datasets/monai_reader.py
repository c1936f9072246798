"""MONAI's whole-slide datasets on this project's slide readers: a true mpp, nothing invented."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.config import DtypeLike, PathLike
from monai.data import BaseWSIReader
from monai.utils import dtype_numpy_to_torch, dtype_torch_to_numpy

from medkd.config import TileConfig
from medkd.errors import SlideError
from medkd.slides.open_slides import OpenSlides
from medkd.slides.reader import RegionUnreadableError, SlideProperties, SlideReader
from medkd.slides.readers import open_reader

NO_LEVEL = -1
"""``level`` in the metadata of a patch that was asked for by mpp or power, not by level."""


class _Request(NamedTuple):
    """The resolution of one request: um/px, level-0 pixels per pixel, the level named by it."""

    mpp: float
    downsample: float
    level: int


class MedkdWSIReader(BaseWSIReader):
    """A MONAI whole-slide reader whose pixels are those of ``medkd tile``, before JPEG.

    A request for an mpp or a power is read from the next finer level and resampled to it exactly;
    no level that is merely near is taken instead. With ``mpp`` (or ``power``) given here, level 0
    *means* that resolution in :meth:`get_data`, :meth:`get_mpp`, :meth:`get_power` and
    :meth:`get_downsample_ratio`, for MONAI's datasets ask for level 0 unless told otherwise. The
    other levels stay those of the file. Locations, and :meth:`get_size` at level 0, are in the
    file's level-0 pixels always; so for a probability map choose a ``mask_level`` above 0.

    ``PatchWSIDataset`` takes locations for centres unless ``center_location=False``, and finds
    the corner by half the patch size in *level-0* pixels, which is right at level 0 alone. Give
    it corners.

    It can be pickled. Slides are opened where they are read, in each process anew, and stay open
    between reads. Threads may share it; they read one after another.

    Args:
        level: of the pyramid, where a request names no resolution; 0 unless given.
        mpp: micrometres per pixel, where a request names no resolution or level 0.
        power: the same as an objective power; counted from the one that the file tells. Scanners
            of one power differ by a fifth in mpp, so ``mpp`` is the better choice.
        parameters: which resolutions are believed and how much a slide may be enlarged:
            ``mpp_range``, ``use_objective_power`` and ``max_upsampling``; and what reads them,
            ``reader``. The rest is not used.
        table_mpp: micrometres per pixel of level 0 by path, for slides that do not say it or say
            it wrongly; as the column ``mpp`` of slides.csv.
        open_slides: how many slides stay open in each process; one may keep 256 MB of decoded
            tiles.
        channel_dim: where the colour channel is in a patch.
        dtype: of a patch, numpy's or torch's; torch's gives tensors.
        device: of a patch that is a tensor; ``cuda`` makes it one.
        mode: only ``RGB``: no transparency is kept.

    Raises:
        ValueError: both ``mpp`` and ``power``, either of them with a level above 0, a resolution
            that is not positive, an mpp that differs in x and y, or another mode.
    """

    supported_suffixes = [  # noqa: RUF012  (so it is in MONAI)
        *("svs", "tif", "tiff", "ndpi", "mrxs", "scn", "bif", "svslide", "vms", "vmu", "dcm"),
    ]
    backend = "medkd"

    def __init__(
        self,
        level: int | None = None,
        mpp: float | tuple[float, float] | None = None,
        power: float | None = None,
        *,
        parameters: TileConfig | None = None,
        table_mpp: Mapping[str, float] | Mapping[Path, float] | None = None,
        open_slides: int = 4,
        channel_dim: int = 0,
        dtype: DtypeLike | torch.dtype = np.uint8,
        device: torch.device | str | None = None,
        mode: str = "RGB",
    ) -> None:
        _check_mode(mode)
        own = {"mpp": None if mpp is None else _square(mpp), "power": power}
        _check_resolution(**own, level=level or None)  # MONAI gives level 0 to a class of reader
        super().__init__(
            level=level, mpp=own["mpp"], channel_dim=channel_dim, dtype=dtype, device=device
        )
        # MONAI's own readers know whole powers only.
        self.power: float | None = power  # type: ignore[assignment]
        parameters = parameters or TileConfig()
        self._max_upsampling = parameters.max_upsampling
        # How fine a slide must be is a matter of each request, not of opening it.
        self._parameters = parameters.model_copy(update={"max_upsampling": math.inf})
        self._table_mpp = {Path(path): value for path, value in (table_mpp or {}).items()}
        self._slides = OpenSlides(open_slides)

    def read(  # type: ignore[override]  # there are no further options
        self, data: Sequence[PathLike] | PathLike
    ) -> SlideProperties | list[SlideProperties]:
        """Settle the resolution of a slide, or of several.

        Returns:
            What is known of the slide, or a list; it stands for the slide in the other methods.
            It holds no file, so it may be kept and sent to other processes.

        Raises:
            SlideError: a slide cannot be opened, or its mpp is missing or not believed.
        """
        paths = [data] if isinstance(data, str | os.PathLike) else data
        found = []
        for path in paths:
            with self._open(Path(path)) as slide:
                found.append(slide.properties)
        return found if len(found) > 1 else found[0]

    def get_data(  # type: ignore[override]
        self,
        wsi: SlideProperties | Sequence[SlideProperties],
        location: Sequence[int] | None = (0, 0),
        size: Sequence[int] | None = None,
        level: int | None = None,
        mpp: float | tuple[float, float] | None = None,
        power: float | None = None,
        mode: str | None = None,
    ) -> tuple[np.ndarray | torch.Tensor, dict[str, Any]]:
        """Read a patch, or the same patch of several slides.

        Args:
            wsi: as :meth:`read` gives it.
            location: (row, column) of its top left corner, level-0 pixels.
            size: (height, width), pixels of the wanted resolution; the whole slide unless given.
            level, mpp, power: the wanted resolution, one of them at most; see the class.
            mode: ``RGB``.

        Returns:
            The patch, 3 x height x width, RGB (the channel at ``channel_dim``; patches of several
            slides are joined along it), and its metadata. That has MONAI's keys (``path``,
            ``location``, ``size``, ``level``, ``count``, ``spatial_shape``,
            ``original_channel_dim``, ``backend``) and ``mpp`` of the patch, ``slide_mpp`` of
            level 0, ``mpp_source``, and ``synthetic`` (drawn, not scanned). ``level`` is
            :data:`NO_LEVEL` for a resampled patch. Of several slides each key from ``path`` to
            ``synthetic`` but the shapes is a list.

        Raises:
            SlideError: ``outside_slide``, ``unreadable_region``, ``too_coarse`` for the wanted
                mpp, ``missing_power``, or the slide can no longer be opened.
            ValueError: the request contradicts itself.
        """
        _check_mode(mode or self.mode)
        slides = [wsi] if isinstance(wsi, SlideProperties) else wsi
        corner = (0, 0) if location is None else (location[0], location[1])
        patches, records = [], []
        for slide in slides:
            request = self._request(slide, level, mpp, power)
            shape = _whole(slide, request) if size is None else (int(size[0]), int(size[1]))
            if size is None and any(corner):
                raise ValueError("a patch that begins elsewhere than at (0, 0) needs a 'size'")
            if min(shape) <= 0:
                raise ValueError(f"'size' must be greater than zero, not {shape}")
            patch = self._pixels(slide, corner, shape, request.mpp)
            patches.append(patch)
            records.append(
                self._get_metadata(slide, patch, corner, shape, request.level)
                | {
                    "mpp": request.mpp,
                    "slide_mpp": slide.mpp,
                    "mpp_source": slide.mpp_source,
                    "synthetic": slide.synthetic,
                }
            )
        if len({patch.shape for patch in patches}) > 1:
            raise ValueError("patches of several slides must be of one size: give 'size'")
        joined = patches[0] if len(patches) == 1 else np.concatenate(patches, self.channel_dim)
        return self._converted(joined), _joined_metadata(records)

    def get_size(self, wsi: SlideProperties, level: int) -> tuple[int, int]:
        """(height, width) at a level, whole pixels; at level 0 always the file's own."""
        if level == 0:
            return wsi.height_px, wsi.width_px
        return _whole(wsi, self._request(wsi, level))

    def get_level_count(self, wsi: SlideProperties) -> int:
        """How many levels the file has."""
        return len(wsi.level_downsamples)

    def get_downsample_ratio(self, wsi: SlideProperties, level: int) -> float:
        """Level-0 pixels per pixel of what :meth:`get_data` gives at a level."""
        return self._request(wsi, level).downsample

    def get_file_path(self, wsi: SlideProperties) -> str:
        """The absolute path of the slide."""
        return str(wsi.path.absolute())

    def get_mpp(self, wsi: SlideProperties, level: int) -> tuple[float, float]:
        """Micrometres per pixel, down and across, of what :meth:`get_data` gives at a level."""
        mpp = self._request(wsi, level).mpp
        return mpp, mpp

    def get_power(self, wsi: SlideProperties, level: int) -> float:
        """The objective power of what :meth:`get_data` gives at a level.

        Raises:
            SlideError: ``missing_power``, the file does not tell it.
        """
        return _objective_power(wsi) / self.get_downsample_ratio(wsi, level)

    def get_valid_level(
        self,
        wsi: SlideProperties,
        level: int | None,
        mpp: float | tuple[float, float] | None,
        power: float | None,
    ) -> int:
        """The level that a request names; :data:`NO_LEVEL` where it is resampled instead."""
        return self._request(wsi, level, mpp, power).level

    def close(self) -> None:
        """Release the files that this process has open; a later read opens them again."""
        self._slides.close()

    def _get_patch(
        self,
        wsi: SlideProperties,
        location: tuple[int, int],
        size: tuple[int, int],
        level: int,
        dtype: DtypeLike,
        mode: str,
    ) -> np.ndarray:
        # Part of MONAI's contract; get_data needs more than a level can say.
        _check_mode(mode)
        return self._pixels(wsi, location, size, self._request(wsi, level).mpp).astype(dtype)

    @contextmanager
    def _open(self, path: Path) -> Iterator[SlideReader]:
        def opened() -> SlideReader:
            return open_reader(path, self._parameters, table_mpp=self._table_mpp.get(path))

        with self._slides.using(path, opened) as slide:
            yield slide

    def _request(
        self,
        slide: SlideProperties,
        level: int | None = None,
        mpp: float | tuple[float, float] | None = None,
        power: float | None = None,
    ) -> _Request:
        _check_resolution(level=level, mpp=mpp, power=power)
        has_own = self.mpp is not None or self.power is not None
        if mpp is None and power is None and (level is None or (level == 0 and has_own)):
            level, mpp, power = None if has_own else self.level, self.mpp, self.power
        if mpp is not None:
            wanted = _square(mpp)
        elif power is not None:
            wanted = slide.mpp * _objective_power(slide) / power
        else:
            return _level_request(slide, level or 0)
        self._check_fine_enough(slide, wanted)
        return _Request(wanted, wanted / slide.mpp, NO_LEVEL)

    def _check_fine_enough(self, slide: SlideProperties, mpp: float) -> None:
        # As in medkd.slides.resolution: 0.55 passes a limit of 1.1 x 0.5, whatever the rounding.
        if slide.mpp <= mpp * self._max_upsampling * (1 + 1e-9):
            return
        raise SlideError(
            "too_coarse",
            f"its mpp {slide.mpp:.4g} ({slide.mpp_source}) is too coarse for patches of "
            f"{mpp:.4g} um/px",
            where=slide.path,
            remedy="Use a scan of higher resolution, correct its mpp with 'table_mpp', or ask "
            "for a coarser mpp.",
        )

    def _pixels(
        self,
        slide: SlideProperties,
        location: tuple[int, int],
        size: tuple[int, int],
        mpp: float,
    ) -> np.ndarray:
        (row, column), (height, width) = location, size
        with self._open(slide.path) as reader:
            try:
                region = reader.read_region(column, row, width, height, mpp)
            except RegionUnreadableError as error:
                raise SlideError(
                    "unreadable_region",
                    f"the patch of {height} x {width} px at row {row}, column {column} "
                    f"cannot be read: {error}",
                    where=slide.path,
                    remedy="Copy or export the slide again, or leave this location out.",
                ) from error
            except ValueError as error:
                raise SlideError(
                    "outside_slide",
                    f"the patch of {height} x {width} px of {mpp:.4g} um at row {row}, column "
                    f"{column} reaches beyond the slide's {slide.height_px} rows and "
                    f"{slide.width_px} columns",
                    where=slide.path,
                    remedy="A location is (row, column) of the top left corner at level 0; with "
                    "PatchWSIDataset use center_location=False.",
                ) from error
        return np.moveaxis(region, -1, self.channel_dim)

    def _converted(self, patch: np.ndarray) -> np.ndarray | torch.Tensor:
        on_gpu = self.device is not None and torch.device(self.device).type == "cuda"
        if isinstance(self.dtype, torch.dtype):
            patch = patch.astype(dtype_torch_to_numpy(self.dtype), copy=False)
            return torch.as_tensor(patch, device=self.device)
        patch = patch.astype(self.dtype, copy=False)
        if not on_gpu:
            return patch
        return torch.as_tensor(patch, dtype=dtype_numpy_to_torch(self.dtype), device=self.device)


def _level_request(slide: SlideProperties, level: int) -> _Request:
    downsamples = slide.level_downsamples
    if not 0 <= level < len(downsamples):
        raise ValueError(
            f"{slide.path}: there is no level {level}, only 0 to {len(downsamples) - 1}; "
            "ask by 'mpp' for a resolution that all slides have"
        )
    return _Request(slide.mpp * downsamples[level], downsamples[level], level)


def _whole(slide: SlideProperties, request: _Request) -> tuple[int, int]:
    """(height, width) of the whole slide, pixels; a rest at the far edges is left out."""
    return (
        max(math.floor(slide.height_px / request.downsample + 1e-6), 1),
        max(math.floor(slide.width_px / request.downsample + 1e-6), 1),
    )


def _objective_power(slide: SlideProperties) -> float:
    if slide.objective_power is None:
        raise SlideError(
            "missing_power",
            "the slide does not say its objective power",
            where=slide.path,
            remedy="Ask for a resolution by 'mpp' instead of 'power'.",
        )
    return slide.objective_power


def _joined_metadata(records: list[dict[str, Any]]) -> dict[str, Any]:
    if len(records) == 1:
        return records[0]
    common = ("backend", "original_channel_dim", "spatial_shape")
    return {
        key: value if key in common else [record[key] for record in records]
        for key, value in records[0].items()
    }


def _square(mpp: float | Sequence[float]) -> float:
    """One mpp of MONAI's one or two."""
    sides = {float(side) for side in np.atleast_1d(mpp)}
    if len(sides) > 1:
        raise ValueError(f"'mpp' must be the same down and across, not {mpp}: pixels are square")
    return sides.pop()


def _check_resolution(**resolutions: float | tuple[float, float] | None) -> None:
    given = {name: value for name, value in resolutions.items() if value is not None}
    if len(given) > 1:
        told = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(f"only one of 'level', 'mpp' and 'power' may be given, not {told}")
    for name in given.keys() - {"level"}:
        if not np.all(np.isfinite(given[name])) or not np.all(np.asarray(given[name]) > 0):
            raise ValueError(f"'{name}' must be greater than zero, not {given[name]}")


def _check_mode(mode: str) -> None:
    if mode != "RGB":
        raise ValueError(f"'mode' must be RGB, not {mode!r}: slides are read without transparency")
