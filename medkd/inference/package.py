"""The model package: students, preprocessing, operating point, provenance. Nothing is unpickled.

Every file's SHA-256 stands in ``model.json`` and is checked when the package is loaded; the hash of
``model.json`` names the model in every result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from medkd.errors import ModelPackageError
from medkd.files import make_folder, sha256_of_json, write_bytes, write_json
from medkd.inference.manifest import Manifest
from medkd.inference.model_card import model_card
from medkd.inference.package_files import MANIFEST, check_files, hashes_of, read_manifest
from medkd.slide_level.calibration import CalibrationMap
from medkd.slide_level.conformal import ConformalSets
from medkd.slide_level.out_of_distribution import OutOfDistribution
from medkd.slide_level.slide_head import PackagedSlideHead

SCHEMA_VERSION = 1
CARD = "model_card.md"


@dataclass(frozen=True)
class ModelPackage:
    """A package whose every file was checked.

    Attributes:
        folder: where it lies.
        manifest: what it says.
        sha256: of the manifest, and so of all its files.
    """

    folder: Path
    manifest: Manifest
    sha256: str

    @property
    def negative(self) -> str:
        """Name of what is not the positive class."""
        manifest = self.manifest
        return " or ".join(name for name in manifest.classes if name != manifest.positive)


def write_package(folder: Path, content: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Write a package; ``model.json`` comes last, so a folder that has it is whole.

    Args:
        folder: replaced file by file.
        content: a :class:`Manifest` as plain values, without ``files``.
        files: relative path to content of every other file but the model card.
    """
    make_folder(folder)
    (folder / MANIFEST).unlink(missing_ok=True)
    for name, data in files.items():
        make_folder((folder / name).parent)
        write_bytes(folder / name, data)
    _write_manifest(folder, dict(content), sorted(files))


def freeze_decisions(
    folder: Path,
    *,
    slide_head: PackagedSlideHead,
    out_of_distribution: OutOfDistribution,
    files: Mapping[str, bytes],
    trained_mpp: tuple[float, float] | None,
    calibration: CalibrationMap,
    operating_point: Mapping[str, Any],
    conformal: ConformalSets | None,
    test_performance: Mapping[str, Any],
) -> ModelPackage:
    """Freeze how tiles become scores, and scores calls; the students are left as they are.

    Args:
        folder: of the package.
        slide_head: how tiles become scores.
        out_of_distribution: what slides are held against.
        files: relative path to content, of a learned pooling and of what slides are held against.
        trained_mpp: least and largest resolution of level 0 of training slides, um/px.
        calibration, operating_point, conformal: fitted to these scores.
        test_performance: as in ``evaluation.json``.
    """
    package = load_package(folder, needs_operating_point=False)
    content = package.manifest.model_dump(mode="json")
    learned, compared = package.manifest.slide_head.learned, package.manifest.out_of_distribution
    earlier = [*(learned.onnx.values() if learned else ()), compared.file if compared else None]
    dropped = {CARD, *(name for name in earlier if name is not None)}
    names = [name for name in content.pop("files") if name not in dropped]
    content["slide_head"] = slide_head.model_dump(mode="json")
    content["out_of_distribution"] = out_of_distribution.model_dump(mode="json")
    content["trained_mpp"] = trained_mpp
    content["calibration"] = calibration.model_dump(mode="json")
    content["operating_point"] = dict(operating_point)
    content["conformal"] = conformal.model_dump(mode="json") if conformal is not None else None
    content["test_performance"] = dict(test_performance)
    content["recalibration"] = None
    (folder / MANIFEST).unlink()
    for name in dropped.difference(files, {CARD}):
        (folder / name).unlink()
    for name, data in files.items():
        make_folder((folder / name).parent)
        write_bytes(folder / name, data)
    _write_manifest(folder, content, [*names, *files])
    return load_package(folder)


def _write_manifest(folder: Path, content: dict[str, Any], names: list[str]) -> None:
    # Written through the model, so that what is written is what will be read.
    draft = Manifest.model_validate({**content, "files": {}})
    write_bytes(folder / CARD, model_card(draft).encode("utf-8"))
    whole = draft.model_copy(update={"files": hashes_of(folder, [*names, CARD])})
    if whole.operating_point is not None:
        point = whole.operating_point.model_copy(update={"fitted_to_sha256": fitted_to(whole)})
        whole = whole.model_copy(update={"operating_point": point})
    write_json(folder / MANIFEST, whole.model_dump(mode="json"))


_DECIDES_PROBABILITY = {
    "classes",
    "positive",
    "preprocessing",
    "students",
    "slide_head",
    "calibration",
    "conformal",
}


def fitted_to(manifest: Manifest) -> str:
    """SHA-256 of everything that decides the probability of a slide.

    It ties an operating point to the model that it was chosen for. Files count by their own hash.
    """
    networks = {n: h for n, h in manifest.files.items() if PurePosixPath(n).suffix == ".onnx"}
    decides = manifest.model_dump(mode="json", include=_DECIDES_PROBABILITY)
    return sha256_of_json({**decides, "networks": networks})


def load_package(folder: Path, *, needs_operating_point: bool = True) -> ModelPackage:
    """Read a package and check every file of it.

    Raises:
        ModelPackageError: something is missing, changed, added, or of another schema.
    """
    manifest, sha256 = read_manifest(folder, Manifest, SCHEMA_VERSION, "classification")
    _check_files(folder, manifest)
    _check_operating_point(folder, manifest)
    if needs_operating_point and manifest.operating_point is None:
        raise ModelPackageError(
            "has no operating point",
            where=folder,
            remedy="Run 'medkd predict' and 'medkd aggregate' on the run first.",
        )
    return ModelPackage(folder, manifest, sha256)


def _check_files(folder: Path, manifest: Manifest) -> None:
    learned, compared = manifest.slide_head.learned, manifest.out_of_distribution
    needed = {name: one.name for one in manifest.students for name in (one.onnx, one.safetensors)}
    if learned is not None:
        for one in manifest.students:
            needed[learned.onnx.get(one.name) or "slide head"] = one.name
    if compared is not None and compared.file is not None:
        needed[compared.file] = "the training slides"
    check_files(folder, manifest.files, needed)


def _check_operating_point(folder: Path, manifest: Manifest) -> None:
    """Refuse an operating point that was chosen for another model or calibration."""
    point, own = manifest.operating_point, fitted_to(manifest)
    if point is None or point.fitted_to_sha256 == own:
        return
    of = "unknown" if point.fitted_to_sha256 is None else point.fitted_to_sha256[:12]
    raise ModelPackageError(
        f"has the operating point of another model or calibration ({of}; this one is {own[:12]})",
        where=folder / MANIFEST,
        remedy="Run 'medkd aggregate' on this model's run, or 'medkd recalibrate'.",
    )
