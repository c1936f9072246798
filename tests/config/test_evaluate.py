"""The section evaluate: what is refused, and how that is told."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from medkd.config.evaluate import EvaluateConfig


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prevalences": (0.15, 1.0)}, r"prevalences.1\n.*less than 1 "),
        ({"prevalences": ()}, r"prevalences\n.*at least 1 item"),
        ({"prevalences": (0.1, 0.1)}, r"a value stands twice in 'prevalences'"),
        ({"sensitivities": (0.0,)}, r"sensitivities.0\n.*greater than 0 "),
        ({"subgroups": ("sight",)}, r"subgroups.0\n.*'site', 'scanner', 'stage' or 'sex'"),
        ({"subgroups": ("sex", "sex")}, r"a value stands twice in 'subgroups'"),
        ({"permutations": 10}, r"permutations\n.*greater than or equal to 100 "),
        ({"min_patients": 0}, r"min_patients\n.*greater than or equal to 1 "),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvaluateConfig(**wrong)


def test_lists_are_taken_as_yaml_has_them() -> None:
    config = EvaluateConfig.model_validate({"prevalences": [0.1, 0.2], "subgroups": []})
    assert (config.prevalences, config.subgroups) == ((0.1, 0.2), ())
