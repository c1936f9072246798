"""``export.json``: what a file of a bare network cannot say of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medkd import __version__
from medkd.export.box_check import BoxAgreement
from medkd.export.check import Agreement
from medkd.export.kinds import ExportKind
from medkd.files import write_json
from medkd.inference.detector_package import DetectorPackage
from medkd.inference.package import ModelPackage

RECORD = "export.json"


def write_record(
    folder: Path,
    package: ModelPackage | DetectorPackage,
    kind: ExportKind,
    agreement: Agreement | BoxAgreement,
    more: Mapping[str, Any],
) -> None:
    """Write ``export.json``: which model, how it agreed, and the manifest of the package.

    The manifest says how tiles are cut, and how their probabilities become a call; a detector's how
    large its square is, and how its predictions become boxes.
    """
    write_json(
        folder / RECORD,
        {
            "schema_version": 1,
            "kind": kind.value,
            "software": f"medkd {__version__}",
            "model_sha256": package.sha256,
            "agreement": asdict(agreement),
            **more,
            "manifest": package.manifest.model_dump(mode="json", exclude={"files"}),
        },
    )
