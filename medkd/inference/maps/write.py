"""The maps that were asked for, made and written together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from medkd.errors import ConfigError
from medkd.files import atomic_path, make_folder
from medkd.inference.engine import SlideInference
from medkd.inference.package import ModelPackage
from medkd.inference.result import Result

MapKind = Literal["geojson", "nifti", "tiff", "dicom"]

MAP_FILES: dict[MapKind, tuple[str, ...]] = {
    "geojson": ("heatmap.geojson",),
    "nifti": ("heatmap.nii.gz", "disagreement.nii.gz"),
    "tiff": ("heatmap.tif",),
    "dicom": ("heatmap.dcm", "tissue.dcm", "report.dcm"),
}
"""Every file of each kind; one student alone disagrees with none."""


def check_map_kinds(kinds: Sequence[str]) -> None:
    """Refuse what no slide could be given, before the first one is read.

    Raises:
        ConfigError: there is no such kind of map, or the extra that it needs is not installed.
    """
    for kind in kinds:
        if kind not in MAP_FILES:
            raise ConfigError(
                f"there is no map of the kind '{kind}'",
                where="maps",
                remedy=f"Choose among {', '.join(get_args(MapKind))}.",
            )
    if "dicom" in kinds and find_spec("highdicom") is None:
        raise ConfigError(
            "DICOM maps need highdicom, which is not installed",
            where="maps",
            remedy="Install it: pip install 'medkd[dicom]'; or leave dicom out.",
        )


def map_files(
    inference: SlideInference,
    result: Result,
    kinds: Sequence[str],
    *,
    package: ModelPackage,
    keep_uids: bool = False,
) -> dict[str, bytes]:
    """File name to content of the maps of one slide; docs/maps.md says what each holds.

    Args:
        inference: of the slide.
        result: of the same.
        kinds: of maps, see :data:`MapKind`.
        package: the model.
        keep_uids: DICOM maps join the slide's study; else they make up a study of their own.

    Raises:
        ConfigError: as :func:`check_map_kinds`.
        SlideError: DICOM maps of a slide that is not DICOM, or that does not say where it lies.
    """
    from medkd.inference.maps.grid import disclaimer, tile_grid

    check_map_kinds(kinds)
    positive = package.manifest.positive
    about = f"medkd. {disclaimer(result)}"
    grid = tile_grid(inference.properties, package.manifest.preprocessing.tile)
    values = grid.values(inference.tiles, [tile.probability for tile in inference.tiles])
    files: dict[str, bytes] = {}
    if "geojson" in kinds:
        from medkd.inference.maps.geojson import geojson_map

        files["heatmap.geojson"] = geojson_map(inference, result, package)
    if "nifti" in kinds:
        from medkd.inference.maps.nifti import nifti_map

        mpp = inference.properties.mpp
        files["heatmap.nii.gz"] = nifti_map(
            values, grid, mpp, name=f"p({positive})", description=about
        )
        if len(package.manifest.students) > 1:
            spread = grid.values(inference.tiles, [tile.disagreement for tile in inference.tiles])
            files["disagreement.nii.gz"] = nifti_map(
                spread, grid, mpp, name="disagreement", description=about
            )
    if "tiff" in kinds:
        from medkd.inference.maps.tiff import tiff_map

        shown = f"Probability of {positive} by tile, viridis from 0 to 1, over the slide in grey."
        files["heatmap.tif"] = tiff_map(inference, f"{shown} {about}")
    if "dicom" in kinds:
        from medkd.inference.maps.dicom import dicom_maps

        files |= dicom_maps(inference, result, package, grid, values, keep_uids=keep_uids)
    return files


def write_maps(
    inference: SlideInference,
    result: Result,
    folder: Path,
    kinds: Sequence[str],
    *,
    package: ModelPackage,
    keep_uids: bool = False,
) -> tuple[Path, ...]:
    """Write the maps of one slide, all or none; earlier maps that are not made again are removed.

    Args:
        inference, result, kinds, package, keep_uids: as for :func:`map_files`.
        folder: of the slide.

    Returns:
        What was written.

    Raises:
        ConfigError, SlideError: as :func:`map_files`.
        OutputError: no permission, or no space.
    """
    files = map_files(
        inference,
        result,
        kinds,
        package=package,
        keep_uids=keep_uids,
    )
    make_folder(folder)
    with ExitStack() as written:
        for name, content in files.items():
            written.enter_context(atomic_path(folder / name)).write_bytes(content)
    # A map of an earlier model beside the new result would be taken for the new one's.
    for name in (name for names in MAP_FILES.values() for name in names if name not in files):
        (folder / name).unlink(missing_ok=True)
    return tuple(folder / name for name in files)
