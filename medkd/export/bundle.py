"""A MONAI bundle: weights, configuration and metadata that ``python -m monai.bundle`` runs."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
import monai
import numpy as np
import torch
from monai.bundle import ConfigWorkflow

from medkd import __version__
from medkd.errors import ModelPackageError
from medkd.export.bundle_metadata import SCHEMA_URL, bundle_metadata, metadata_schema
from medkd.export.bundle_network import StudentEnsemble
from medkd.export.check import Said, check_same, positive_of, reference
from medkd.export.torch_students import torch_student
from medkd.files import make_folder, write_bytes, write_json, write_text
from medkd.inference.package import ModelPackage
from medkd.inference.package_files import MANIFEST

_WEIGHTS = "models/model.pt"
_PACKAGE = "models/package"

_LOGGING = """\
[loggers]
keys=root

[handlers]
keys=console

[formatters]
keys=plain

[logger_root]
level=INFO
handlers=console

[handler_console]
class=StreamHandler
level=INFO
formatter=plain
args=(sys.stdout,)

[formatter_plain]
format=%(asctime)s %(levelname)s %(message)s
"""


def write_bundle(package: ModelPackage, folder: Path) -> tuple[str, ...]:
    """Write the bundle; returns what is to be told of it.

    Raises:
        ModelPackageError: a student cannot be built as a torch network, or the bundle says
            something else of tiles than the students.
    """
    manifest = package.manifest
    students = {one.name: torch_student(package, one) for one in manifest.students}
    network = inference_config(package)["network_def"]
    ensemble = StudentEnsemble(network["students"], network["classes"])
    for name, student in students.items():
        ensemble.students[name].load_state_dict(student.state_dict())
    content = io.BytesIO()
    torch.save(ensemble.state_dict(), content)
    make_folder(folder / "models")
    write_bytes(folder / _WEIGHTS, content.getvalue())
    for name in (*manifest.files, MANIFEST):
        make_folder((folder / _PACKAGE / name).parent)
        write_bytes(folder / _PACKAGE / name, (package.folder / name).read_bytes())
    for name in ("configs", "docs"):
        make_folder(folder / name)
    write_json(folder / "configs" / "inference.json", inference_config(package))
    metadata = bundle_metadata(manifest).model_dump(mode="json", by_alias=True)
    write_json(folder / "configs" / "metadata.json", metadata)
    write_json(folder / "configs" / "metadata.schema.json", metadata_schema())
    write_text(folder / "configs" / "logging.conf", _LOGGING)
    write_text(folder / "docs" / "README.md", _rendered("bundle_readme.md.j2", package))
    write_text(folder / "LICENSE", _rendered("bundle_license.txt.j2", package))
    held = positive_of(reference(package), package)
    agreement = check_same("MONAI bundle", package, held, _said_by_monai(folder, held.tiles))
    return (f"MONAI {monai.__version__}; docs/README.md says how it is run.", str(agreement))


def inference_config(package: ModelPackage) -> dict[str, Any]:
    """``inference.json``: MONAI's names for what is run, in MONAI's configuration language."""
    students = [
        student.model_dump(include={"name", "network", "width", "stem_stride", "max_pool"})
        for student in package.manifest.students
    ]
    return {
        "imports": ["$import torch", "$from medkd.export.bundle_run import slides_of"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/slides'",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "medkd.export.bundle_network.StudentEnsemble",
            "students": students,
            "classes": len(package.manifest.classes),
        },
        "network": "$@network_def.to(@device).eval()",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "EnsureChannelFirst", "channel_dim": -1},
                {
                    "_target_": "ScaleIntensityRange",
                    **{"a_min": 0, "a_max": 255, "b_min": 0.0, "b_max": 1.0},
                },
                {"_target_": "ToTensor", "track_meta": False},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$slides_of(@dataset_dir)",
        },
        "inferer": {"_target_": "SimpleInferer"},
        "evaluator": {
            "_target_": "medkd.export.bundle_run.SlideEvaluator",
            "dataset": "@dataset",
            "network": "@network",
            "preprocessing": "@preprocessing",
            "inferer": "@inferer",
            "device": "@device",
            "package_dir": f"$@bundle_root + '/{_PACKAGE}'",
            "output_dir": "@output_dir",
        },
        # TF32 on a GPU would change probabilities in the third decimal. Of the weights, tensors
        # alone are read: torch refuses any other content of the file.
        "initialize": [
            "$setattr(torch.backends.cudnn, 'allow_tf32', False)",
            f"$@network.load_state_dict(torch.load(@bundle_root + '/{_WEIGHTS}', "
            "map_location=@device, weights_only=True))",
        ],
        "run": ["$@evaluator.run()"],
    }


def _rendered(template: str, package: ModelPackage) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medkd.export"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(
        manifest=package.manifest,
        sha256=package.sha256,
        medkd=__version__,
        monai=monai.__version__,
        schema_url=SCHEMA_URL,
    )


def _said_by_monai(folder: Path, tiles: np.ndarray) -> dict[str, Said]:
    """What the bundle says of tiles, its configuration read and its weights loaded by MONAI."""
    with warnings.catch_warnings(), _without_log():
        warnings.simplefilter("ignore")
        workflow = ConfigWorkflow(
            config_file=str(folder / "configs" / "inference.json"),
            workflow_type="infer",
            logging_file=False,
            bundle_root=str(folder),
            # A slide that is never opened: what it is asked is tiles.
            dataset_dir="drawn.svs",
        )
        workflow.initialize()
        lacking = workflow.check_properties()
        if lacking:
            raise ModelPackageError(
                f"as MONAI bundle it lacks {', '.join(lacking)}",
                where=folder,
                remedy="Nothing was written. Please report it, with the version of MONAI.",
            )
        seen = workflow.evaluator.students(tiles)
    return {name: {"probabilities": p[:, None]} for name, p in seen.probabilities.items()}


@contextmanager
def _without_log() -> Iterator[None]:
    """MONAI logs what it reads; the export tells it better."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
