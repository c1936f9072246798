"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_DEFAULT_REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real slides and labels; the test is skipped where it is absent."""
    folder = Path(os.environ.get("MEDKD_REAL_DATA", _DEFAULT_REAL_DATA))
    if not (folder / "slides").is_dir():
        pytest.skip(f"no real data: MEDKD_REAL_DATA or {folder} has no folder 'slides'")
    return folder


@pytest.fixture(scope="session")
def real_slides(real_data: Path) -> Path:
    """The folder of real slides."""
    return real_data / "slides"
