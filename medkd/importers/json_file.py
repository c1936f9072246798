"""JSON files of data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medkd.importers.problems import LayoutError


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in the file at ``path``; a byte-order mark is understood.

    Raises:
        LayoutError: no such file, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError):
        raise LayoutError("no such file", where=path, remedy="Name the file.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LayoutError(
            f"is not JSON: {error}", where=path, remedy="Fetch the file again."
        ) from None
    if not isinstance(content, dict):
        raise LayoutError("is not a JSON object", where=path, remedy="Name the right file.")
    return content
