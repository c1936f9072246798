"""The students of a package as torch networks, built anew from name and safetensors."""

from __future__ import annotations

from safetensors.torch import load_file

from medkd.errors import ConfigError, ModelPackageError
from medkd.inference.manifest import Student
from medkd.inference.package import ModelPackage
from medkd.networks.staged import Network
from medkd.networks.timm_models import PREFIX as TIMM
from medkd.networks.zoo import build_network

_USE_ONNX = "Export it --to onnx, openvino or mlflow, which take the student's ONNX as it is."


class NoTorchNetworkError(ModelPackageError):
    """A student's name alone does not say how its network is built."""


def torch_student(package: ModelPackage, student: Student) -> Network:
    """The network of a student with its weights, in evaluation mode; nothing is unpickled.

    Raises:
        NoTorchNetworkError: it is an ensemble or a bridge of several networks, or a class that
            does not come with medkd.
        ModelPackageError: it is of 8-bit integers, or the weights do not fit the network.
    """
    what = f"'{student.network}' of {student.name} cannot be built as a torch network"
    record = package.manifest.quantisation
    if record is not None:
        raise ModelPackageError(
            f"{what}: it is of 8-bit integers",
            where=package.folder,
            remedy=f"Export version {record.from_version}, whose students are in float32.",
        )
    if ":" in student.network and not student.network.startswith(TIMM):
        # Importing what a file names would run whatever the file's author likes.
        raise NoTorchNetworkError(
            f"{what}: a package's word is not enough to import a class",
            where=package.folder,
            remedy=_USE_ONNX,
        )
    try:
        network = build_network(
            student.network,
            classes=len(package.manifest.classes),
            width=student.width,
            stem_stride=student.stem_stride,
            max_pool=student.max_pool,
            where=str(package.folder),
        )
    except ConfigError as error:
        raise NoTorchNetworkError(
            f"{what}: {error.what}", where=package.folder, remedy=_USE_ONNX
        ) from error
    weights = load_file(package.folder / student.safetensors)
    # What parts of a network share stands in the file once.
    wanted = network.state_dict()
    shared = {name for name, _ in network.named_parameters()}
    shared |= {name for name, _ in network.named_buffers()}
    missing = sorted(shared - weights.keys() | weights.keys() - wanted.keys())
    if missing or any(wanted[name].shape != value.shape for name, value in weights.items()):
        raise ModelPackageError(
            f"{what}: its weights are of another architecture",
            where=package.folder / student.safetensors,
            remedy="Train again; the package cannot be exported.",
        )
    network.load_state_dict(weights, strict=False)
    return network.eval()
