"""``metadata.json`` of a MONAI bundle, as MONAI's bundle specification wants it."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Literal

from pydantic import Field

from medkd import __version__
from medkd.inference.manifest import Manifest
from medkd.schema import Strict

SCHEMA_URL = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)


class Tensors(Strict):
    """What goes into a network, or comes out of it."""

    type: Literal["image", "probabilities"]
    format: str
    num_channels: int = Field(ge=1)
    spatial_shape: tuple[int, ...]
    dtype: Literal["float32"] = "float32"
    value_range: tuple[float, float]
    is_patch_data: bool
    channel_def: dict[str, str]


class NetworkData(Strict):
    """Inputs and outputs of a network."""

    inputs: dict[Literal["image"], Tensors] = Field(min_length=1)
    outputs: dict[Literal["pred"], Tensors] = Field(min_length=1)


class BundleMetadata(Strict):
    """``metadata.json``: the keys that MONAI's own schema requires, and a few that it knows."""

    schema_: str = Field(alias="schema", min_length=1)
    version: str
    changelog: dict[str, str]
    monai_version: str
    pytorch_version: str
    numpy_version: str
    required_packages_version: dict[str, str]
    name: str
    task: str
    description: str
    authors: str
    copyright: str
    data_type: str
    image_classes: str
    pred_classes: str
    intended_use: str
    network_data_format: NetworkData


def bundle_metadata(manifest: Manifest) -> BundleMetadata:
    """The metadata of the bundle that is made of a package."""
    tile, origin = manifest.preprocessing.tile, manifest.provenance
    classes = {str(index): name for index, name in enumerate(manifest.classes)}
    image = Tensors(
        type="image",
        format="magnitude",
        num_channels=3,
        spatial_shape=(tile.size_px, tile.size_px),
        value_range=(0, 1),
        is_patch_data=True,
        channel_def={"0": "red", "1": "green", "2": "blue"},
    )
    pred = Tensors(
        type="probabilities",
        format="classes",
        num_channels=len(classes),
        spatial_shape=(),
        value_range=(0, 1),
        is_patch_data=True,
        channel_def=classes,
    )
    synthetic = " Trained on synthetic slides." if origin.trained_on_synthetic else ""
    return BundleMetadata(
        schema=SCHEMA_URL,
        version=manifest.version,
        changelog={manifest.version: f"exported from the model package {manifest.name}"},
        monai_version=version("monai"),
        pytorch_version=version("torch").partition("+")[0],
        numpy_version=version("numpy"),
        required_packages_version={
            "medkd": __version__,
            "onnxruntime": version("onnxruntime"),
        },
        name=manifest.name,
        task=f"Slide-level call of {' or '.join(manifest.classes)} on H&E whole-slide images",
        description=f"{len(manifest.students)} student networks, taught by {origin.method}, score "
        f"tiles of {tile.size_px} px at {tile.mpp:g} um/px; their probabilities are pooled to a "
        f"call of the slide.{synthetic}",
        authors="not stated",
        copyright="not stated",
        data_type="whole-slide image",
        image_classes="RGB of an H&E-stained tile, scaled to [0, 1]",
        pred_classes="mean probability of the students for "
        + ", ".join(f"{name} ({index})" for index, name in classes.items()),
        intended_use="Research use only. Not a medical device.",
        network_data_format=NetworkData(inputs={"image": image}, outputs={"pred": pred}),
    )


def metadata_schema() -> dict[str, Any]:
    """The JSON schema of our metadata; it asks for all that MONAI's own asks for, and for more."""
    return BundleMetadata.model_json_schema(by_alias=True)
