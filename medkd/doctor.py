"""What a user needs to know about the machine before, or at two in the morning."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from medkd.config import Config
from medkd.errors import MedkdError

_LIBRARIES = (
    "torch", "monai", "lightning-fabric", "mlflow", "openslide-python", "onnxruntime",
    "simplejpeg", "pyarrow",
)  # fmt: skip
_LEAST_FREE_GB = 2.0


@dataclass(frozen=True)
class Finding:
    """One line of the examination; ``remedy`` is empty where all is well."""

    what: str
    found: str
    ok: bool = True
    remedy: str = ""


def examine(config: Config) -> list[Finding]:
    """Look at Python, libraries, devices, memory, disk, OpenSlide and the MLflow store."""
    findings = [
        Finding("Python", platform.python_version()),
        Finding("processor", f"{os.cpu_count()} cores, {platform.machine()}"),
        *(_library(name) for name in _LIBRARIES),
    ]
    for what, look in (
        ("memory", _memory),
        ("OpenSlide reads a slide", _openslide),
        ("devices", _devices),
        ("output folder", lambda: _disk(config.output)),
        ("MLflow store", lambda: _store(config)),
    ):
        findings.append(_try(what, look))
    return findings


def _try(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, look())
    except MedkdError as error:
        return Finding(what, error.what, ok=False, remedy=f"{error.where}: {error.remedy}")
    except Exception as error:  # the doctor must get to the end of the round
        return Finding(what, f"{type(error).__name__}: {error}", ok=False, remedy=str(error))


def _library(name: str) -> Finding:
    try:
        return Finding(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(
            name, "not installed", ok=False, remedy="Install medkd again: pip install medkd."
        )


def _memory() -> str:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{total / 2**30:.1f} GiB"


def _openslide() -> str:
    import tempfile

    import openslide

    from medkd.slides.synthetic import SlideSpec, write_slide

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check.svs"
        spec = SlideSpec(label="MSS", seed=0, width_px=512, height_px=512, mpp=0.5, site="A")
        write_slide(spec, path)
        with openslide.OpenSlide(path) as slide:
            slide.read_region((0, 0), 0, (64, 64))
    return f"library {openslide.__library_version__}"


def _devices() -> str:
    import torch

    if not torch.cuda.is_available():
        return "CPU alone"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names)


def _disk(folder: Path) -> str:
    from medkd.errors import OutputError

    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        raise OutputError(
            "no permission to write", where=existing, remedy="Choose another output folder."
        )
    free_gb = shutil.disk_usage(existing).free / 1e9
    if free_gb < _LEAST_FREE_GB:
        raise OutputError(
            f"{free_gb:.1f} GB free", where=existing, remedy="Free some space on this disk."
        )
    return f"{folder}, {free_gb:.0f} GB free"


def _store(config: Config) -> str:
    from medkd.tracking import connect, tracking_uri

    uri = tracking_uri(config)
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not path.exists():
        # Looking must not make anything.
        return f"{uri} (made by the first training)"
    connect(config)
    return uri
