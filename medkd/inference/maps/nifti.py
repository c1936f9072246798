"""Tiles as voxels: a NIfTI volume one voxel thick, with an affine in millimetres."""

from __future__ import annotations

import gzip

import nibabel
import numpy as np

from medkd.inference.maps.grid import SECTION_MM, TileGrid

_NAME_BYTES, _DESCRIPTION_BYTES = 15, 79


def nifti_map(
    values: np.ndarray, grid: TileGrid, mpp: float, *, name: str, description: str
) -> bytes:
    """A gzipped NIfTI-1 volume of the grid: float32, columns x rows x 1, nan where no tile is.

    A voxel's centre is the centre of its tile. NIfTI's axes point to the right, anterior and
    superior (RAS+). A slide has no such sides, so it is laid down the way viewers show an axial
    slice (right side of a patient on the left of the screen, front above): the slide's x grows
    towards the left and its y, which runs down, towards the back. Both are therefore negative in
    the affine, and in the LPS+ axes of ITK, SimpleITK and DICOM they are the slide's millimetres as
    they are. Neither mirrors nor turns the slide in a viewer of that convention.

    Args:
        values: float, rows x columns.
        grid: that they lie on.
        mpp: micrometres per level-0 pixel.
        name: what the values are; 15 bytes of it are kept.
        description: of the file; 79 bytes of it are kept.
    """
    step_mm, centre_mm = grid.step_px * mpp / 1000, grid.extent_px * mpp / 2000
    affine = np.diag([-step_mm, -step_mm, SECTION_MM, 1.0])
    affine[:2, 3] = -centre_mm
    image = nibabel.Nifti1Image(values.T[:, :, np.newaxis].astype(np.float32), affine)
    image.set_sform(affine, "scanner")
    image.set_qform(affine, "scanner")
    header = image.header
    header.set_xyzt_units("mm")
    header.set_intent("estimate", name=_cut(name, _NAME_BYTES))
    header["cal_min"], header["cal_max"] = 0, 1
    header["descrip"] = _cut(description, _DESCRIPTION_BYTES)
    # Without the time of day, the same slide gives the same bytes.
    return gzip.compress(image.to_bytes(), mtime=0)


def _cut(text: str, length: int) -> bytes:
    return text.encode("ascii", "replace")[:length]
