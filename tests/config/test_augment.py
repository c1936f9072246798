"""The section train.augment: what is refused, and how that is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from medkd.config import AugmentConfig, load_config
from medkd.errors import ConfigError


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"blur_p": 1.5}, r"blur_p\n.*less than or equal to 1 "),
        ({"flip_p": -0.1}, r"flip_p\n.*greater than or equal to 0 "),
        ({"colour_scale": float("nan")}, r"colour_scale\n.*less than or equal to 1 "),
        ({"hue": 0.6}, r"hue\n.*less than or equal to 0.5 "),
        ({"blur_sigma_px": (2.0, 1.0)}, r"blur_sigma_px\n.*give the least, then the largest"),
        ({"blur_sigma_px": 2.0}, r"blur_sigma_px\n.*valid tuple"),
        ({"blur_sigma_px": (0.0, 1.0)}, r"blur_sigma_px.0\n.*greater than or equal to 0.01 "),
        ({"cutout_px": (0, 4)}, r"cutout_px.0\n.*greater than or equal to 1 "),
        ({"cutout_px": (2.5, 4)}, r"cutout_px.0\n.*valid integer"),
        ({"cutout_holes": 0}, r"cutout_holes\n.*greater than or equal to 1 "),
        ({"affine_degrees": (1, 2)}, r"affine_degrees\n.*valid number"),
    ],
)
def test_what_is_out_of_range_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AugmentConfig(**wrong)


@pytest.mark.parametrize("word", ["true", "false"])
def test_a_plain_truth_is_told_to_be_a_section(tmp_path: Path, word: str) -> None:
    path = tmp_path / "medkd.yaml"
    path.write_text(f"train:\n  augment: {word}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == (
        f"{path}:2: 'train.augment' (it is {word.capitalize()}): is a section: write "
        f"'{{enabled: {word}}}', or set its key 'enabled'. Change the value."
    )


def test_its_keys_are_known_in_a_file_and_in_an_assignment(tmp_path: Path) -> None:
    path = tmp_path / "medkd.yaml"
    path.write_text("train:\n  augment: {stain_p: 0.5, cutout_px: [4, 8]}\n")
    augment = load_config(path, ("train.augment.where=loader",)).train.augment
    assert (augment.stain_p, augment.cutout_px, augment.where) == (0.5, (4, 8), "loader")
    path.write_text("train:\n  augment:\n    stain: 0.5\n")
    with pytest.raises(ConfigError, match=r":3: unknown key 'train.augment.stain'. Did you mean"):
        load_config(path)
