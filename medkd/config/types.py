"""Types of values that more than one section of a configuration has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
# YAML gives lists and strings; the strict base would refuse both for tuples and paths.
FilePath = Annotated[Path, Field(strict=False)]
