"""What every test may use."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from medkd.config import Config, load_config
from medkd.datasets.tables import SlideRow, read_slides

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


@dataclass(frozen=True)
class Cohort:
    """A small synthetic cohort, tiled and split. ``config`` trains in seconds."""

    folder: Path
    config: Config
    rows: tuple[SlideRow, ...]

    def variant(self, *assignments: str) -> Config:
        """The configuration with some keys changed."""
        return load_config(self.folder / "medkd.yaml", assignments)


SMALL_EXPERIMENT = """\
output: .
data: {slides: slides/slides.csv}
tile: {mpp: 1.0, size_px: 64, workers: 2}
split: {train: 0.5, validation: 0.25, test: 0.25}
train:
  name: small
  teacher: {network: resnet10, width: 0.125}
  students: [{network: resnet10, width: 0.0625}, {network: resnet10, width: 0.0625}]
  epochs: 2
  batch_size: 32
  learning_rate: 0.002
  max_tiles_per_slide: 20
  device: cpu
infer: {min_tiles: 5, min_tissue_mm2: 0.01}
mlflow: {experiment: small, registered_model: small}
"""


@pytest.fixture(scope="session")
def cohort_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with slides, tiles and split; tests copy it, none writes to it."""
    from medkd.datasets.split import run_split_stage
    from medkd.datasets.tables import read_slides
    from medkd.slides.synthetic import write_cohort
    from medkd.slides.tile_stage import run_tile_stage

    folder = tmp_path_factory.mktemp("cohort")
    (folder / "medkd.yaml").write_text(SMALL_EXPERIMENT)
    config = load_config(folder / "medkd.yaml")
    write_cohort(folder / "slides", patients=16, seed=3, width_px=1024, height_px=1024, mpp=0.5)
    rows = read_slides(config.data.slides, config.data.classes)
    summary = run_tile_stage(rows, config.tile, config.tiles_folder)
    assert not summary.failed, summary.failed
    run_split_stage(rows, config)
    return folder


@pytest.fixture
def cohort(cohort_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cohort:
    """A copy of the small cohort for one test."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "experiment"
    shutil.copytree(cohort_template, folder)
    config = load_config(folder / "medkd.yaml")
    return Cohort(folder, config, read_slides(config.data.slides, config.data.classes))
