from __future__ import annotations

from pathlib import Path

import pytest

from medkd.config import TileConfig
from medkd.errors import SlideError
from medkd.slides.resolution import MppMetadata, believed_resolution

SLIDE = Path("folder/a.svs")


def believed(metadata=MppMetadata(), table=None, override=None, **parameters):  # noqa: B008
    return believed_resolution(
        metadata, TileConfig(**parameters), SLIDE, table_mpp=table, override_mpp=override
    )


def refused(metadata=MppMetadata(), table=None, override=None, **parameters) -> SlideError:  # noqa: B008
    with pytest.raises(SlideError) as caught:
        believed(metadata, table, override, **parameters)
    assert str(caught.value).startswith("folder/a.svs: ")
    assert "\n" not in str(caught.value)
    return caught.value


def test_order_of_belief():
    metadata = MppMetadata(0.5, 0.5, 20)
    chosen = believed(metadata, table=0.4, override=0.3)
    assert (chosen.mpp, chosen.source) == (0.3, "--mpp")
    chosen = believed(metadata, table=0.4)
    assert (chosen.mpp, chosen.source) == (0.4, "slides.csv")
    chosen = believed(metadata)
    assert (chosen.mpp, chosen.source, chosen.warnings) == (0.5, "metadata", ())


def test_objective_power_only_if_asked():
    metadata = MppMetadata(objective_power=40)
    chosen = believed(metadata, use_objective_power=True)
    assert (chosen.mpp, chosen.source) == (0.25, "objective power")
    assert chosen.warnings == (
        "mpp 0.25 was guessed from the objective power 40x, the file gives no mpp",
    )
    error = refused(metadata)
    assert error.reason == "missing_mpp"
    assert "objective power is 40x" in str(error)
    assert "tile.use_objective_power" in str(error)


def test_missing_mpp_names_both_remedies():
    error = refused(use_objective_power=True)
    assert error.reason == "missing_mpp"
    assert "does not say its resolution (mpp)" in str(error)
    assert "slides.csv" in error.remedy
    assert "--mpp" in error.remedy


@pytest.mark.parametrize("mpp", [1000.0, 28.97, 0.001])
def test_implausible_mpp(mpp):
    error = refused(MppMetadata(mpp, mpp))
    assert error.reason == "implausible_mpp"
    assert f"its mpp {mpp:.4g} is outside the plausible range 0.1 to 4" in str(error)
    assert "--mpp" in error.remedy
    assert "slides.csv" in error.remedy
    assert "tile.mpp_range" in error.remedy
    assert believed(MppMetadata(mpp, mpp), override=0.5).mpp == 0.5


def test_anisotropic_mpp():
    assert believed(MppMetadata(0.50, 0.52)).mpp == pytest.approx(0.51)
    error = refused(MppMetadata(0.50, 0.53))
    assert error.reason == "anisotropic_mpp"
    assert "not square: mpp 0.5 across and 0.53 down" in str(error)
    assert "--mpp" in error.remedy


def test_conflict_with_objective_power_is_a_warning():
    (warning,) = believed(MppMetadata(0.25, 0.25, 20)).warnings
    assert "mpp 0.25 and objective power 20x contradict each other" in warning
    # Real scanners: 0.2282 and 0.2738 at 40x, 0.499 at 20x.
    for mpp, power in ((0.2282, 40), (0.2738, 40), (0.499, 20)):
        assert believed(MppMetadata(mpp, mpp, power)).warnings == ()


def test_a_value_that_contradicts_the_file_is_a_warning():
    assert believed(MppMetadata(0.5, 0.5), table=0.51).warnings == ()
    (warning,) = believed(MppMetadata(0.5, 0.5), table=0.25).warnings
    assert warning == "mpp 0.25 from slides.csv was believed; the file says 0.5"


def test_too_coarse():
    assert believed(MppMetadata(0.55, 0.55)).mpp == 0.55
    error = refused(MppMetadata(0.56, 0.56))
    assert error.reason == "too_coarse"
    assert "its mpp 0.56 (metadata) is too coarse for tiles of 0.5 um/px" in str(error)
    assert "tile.mpp" in error.remedy
    assert refused(table=1.0).reason == "too_coarse"
    assert believed(table=1.0, max_upsampling=2.0).mpp == 1.0
