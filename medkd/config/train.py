"""The networks, and how they are trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from medkd.config.types import FilePath, Positive
from medkd.schema import Strict

ClassWeights = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False)]


class NetworkConfig(Strict):
    """One network of the zoo."""

    network: str = Field(
        description="A name from 'medkd networks', wrn-D-K, timm:NAME, or package.module:NAME for "
        "a network of your own."
    )
    width: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Factor on the number of channels (ResNets only)."
    )
    stem_stride: Literal[1, 2] | None = Field(
        None, description="Stride of the first convolution (ResNets only); null: 2."
    )
    max_pool: bool | None = Field(
        None, description="Whether the stem ends in a max-pool (ResNets only); null: it does."
    )
    pretrained: bool = Field(
        False,
        description="Start from the weights that come with the network (efficientnet-lite0 and "
        "timm:NAME only).",
    )
    weights: FilePath | None = Field(
        None,
        description="Start from these weights: networks/<node>.safetensors of an earlier run. A "
        "frozen teacher that has them is not trained.",
    )


class TrainConfig(Strict):
    """Co-training a teacher and students under a distillation graph."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        "kd_ml", description="Name of the run; its files go to runs/<name>."
    )
    method: str = Field(
        "kd_ml", description="A method of 'medkd methods list', or a YAML file's path."
    )
    teacher: NetworkConfig = Field(
        NetworkConfig(network="resnet50"),
        description="The teacher's network; with width, stem_stride, max_pool, pretrained or "
        "weights if they are to differ ('medkd networks', docs/networks.md).",
    )
    students: Annotated[tuple[NetworkConfig, ...], Field(strict=False, min_length=1)] = Field(
        (NetworkConfig(network="resnet18"), NetworkConfig(network="resnet18")),
        description="The students' networks, one entry each, with the same options.",
    )
    epochs: Positive = Field(20, description="Passes over the training tiles.")
    teacher_epochs: Positive | None = Field(
        None,
        description="Passes that a frozen teacher without 'weights' is trained for beforehand; "
        "null: as many as 'epochs'.",
    )
    batch_size: Positive = Field(64, description="Tiles per step.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-3, description="Peak learning rate.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="AdamW's weight decay.")
    warmup_epochs: Annotated[float, Field(ge=0)] = Field(
        0.5, description="Epochs of linear warm-up; a cosine to zero follows."
    )
    max_tiles_per_slide: Positive | None = Field(
        None, description="Draw at most this many tiles of a slide in each epoch; null: all."
    )
    augment: bool = Field(True, description="Flips, quarter turns and colour jitter.")
    balance: Literal["none", "class"] = Field(
        "class", description="Draw tiles so that every class is seen equally often."
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of a label that is spread over all classes."
    )
    class_weights: ClassWeights | None = Field(
        None, description="Factor on the loss of each class, in their order; null: none."
    )
    non_finite: Literal["stop", "continue"] = Field(
        "stop",
        description="When a network gives numbers that are not finite: end the run, or leave that "
        "network out and go on with the others (looks at the device in every step).",
    )
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field(
        "32-true", description="Fabric's precision."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to train.")
    loader_workers: Annotated[int, Field(ge=0)] = Field(
        0, description="Processes that load tiles beside the training process."
    )
    save_minutes: Annotated[float, Field(ge=0)] = Field(
        10.0,
        description="The state is saved so often within an epoch, and after each; 0: in each step.",
    )
    cache_mb: Annotated[float, Field(ge=0)] = Field(
        2000, description="Memory for decoded tiles (MONAI's CacheDataset), megabytes."
    )
