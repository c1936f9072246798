"""The networks, and how they are trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medkd.config.augment import AugmentConfig
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
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Peak learning rate of this network; null: train.learning_rate."
    )
    weights: FilePath | None = Field(
        None,
        description="Start from these weights: networks/<node>.safetensors of an earlier run. A "
        "frozen teacher that has them is not trained.",
    )
    train_only: Literal["head"] | None = Field(
        None,
        description="'head': train the classifier alone, on a backbone that stays as its weights "
        "are (a linear probe, for foundation models); null: train all of it.",
    )

    pyramid_channels: Positive | None = Field(
        None,
        description="Width of this network's pyramid and heads, where it is a detector; null: "
        "detection.channels.",
    )

    @model_validator(mode="after")
    def _a_probe_has_something_to_probe(self) -> NetworkConfig:
        # A network of the user's own may bring weights that nothing here knows of.
        own = ":" in self.network and not self.network.startswith("timm:")
        if self.train_only and not (self.pretrained or self.weights or own):
            raise ValueError(
                "'train_only: head' needs 'pretrained: true' or 'weights': a backbone that nobody "
                "trained has nothing to tell"
            )
        return self


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
    batch_size: Positive = Field(
        64, description="Tiles per step, over all devices and forwards together."
    )
    accumulate: Positive = Field(
        1,
        description="Forwards that a step's tiles are divided into, where memory is short; batch "
        "norm sees each of them by itself.",
    )
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="AdamW, or SGD with momentum.")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="SGD's momentum.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-3, description="Peak learning rate.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.01, description="Of weights; biases and norms have none."
    )
    warmup_epochs: Annotated[float, Field(ge=0)] = Field(
        0.5, description="Epochs of linear warm-up to the peak learning rate."
    )
    schedule: Literal["cosine", "step", "constant"] = Field(
        "cosine",
        description="After the warm-up: a cosine to zero, a drop at each of 'drop_epochs', or no "
        "change.",
    )
    drop_epochs: Annotated[tuple[Positive, ...], Field(strict=False)] = Field(
        (), description="Epochs after which 'schedule: step' lowers the learning rate."
    )
    drop_factor: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="By what it is multiplied then."
    )
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Longest gradient of each network; longer ones are shortened. null: any."
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Validate and ship moving averages of the weights with this decay per step "
        "(0.999, say); null: the weights themselves.",
    )
    early_stop_epochs: Positive | None = Field(
        None,
        description="Stop after so many epochs without a lower validation log loss; null: never.",
    )
    max_tiles_per_slide: Positive | None = Field(
        None, description="Draw at most this many tiles of a slide in each epoch; null: all."
    )
    balance: Literal["none", "class", "patient", "site"] = Field(
        "class",
        description="Draw tiles so that every class is seen equally often; within a class, every "
        "patient, or every site of the table of slides, too.",
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
        "network's step out and go on.",
    )
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field(
        "32-true", description="Fabric's precision."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to train.")
    devices: Positive = Field(
        1,
        description="Devices that a step's tiles are divided among, each with all networks; on a "
        "CPU: processes.",
    )
    channels_last: bool = Field(
        True, description="Channels-last memory, faster for convolutions on most devices."
    )
    compile: Literal["none", "networks", "joint"] = Field(
        "none",
        description="torch.compile of each network's stages by themselves, or of the cohort's "
        "whole forward with all losses.",
    )
    cuda_graphs: bool = Field(
        False, description="Let a compiled forward be replayed as CUDA graphs (GPU only)."
    )
    recompute: bool = Field(
        False,
        description="Activation checkpointing: keep each stage's input only and run the stage "
        "again in the backward pass; about a third less memory, half as much time again.",
    )
    loader_workers: Annotated[int, Field(ge=0)] = Field(
        0, description="Processes that load tiles beside the training process."
    )
    save_minutes: Annotated[float, Field(ge=0)] = Field(
        10.0,
        description="The state is saved so often within an epoch, and after each; 0: in each step.",
    )
    rho_steps: Annotated[int, Field(ge=0)] = Field(
        2,
        description="Before training, time so many joint steps against each network's own, for "
        "the metric rho; 0: not.",
    )
    save_steps: Positive | None = Field(
        None, description="The state is saved after so many steps, too; null: by time alone."
    )
    cache_mb: Annotated[float, Field(ge=0)] = Field(
        2000, description="Memory for decoded tiles (MONAI's CacheDataset), megabytes."
    )
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="after")
    def _a_step_can_be_divided(self) -> TrainConfig:
        if self.batch_size % (self.devices * self.accumulate):
            raise ValueError(
                f"'batch_size' {self.batch_size} cannot be divided among 'devices' {self.devices} "
                f"times 'accumulate' {self.accumulate}"
            )
        return self

    @model_validator(mode="after")
    def _settings_go_together(self) -> TrainConfig:
        if self.schedule == "step" and not self.drop_epochs:
            raise ValueError("'schedule: step' needs 'drop_epochs'")
        if self.drop_epochs and self.schedule != "step":
            raise ValueError("'drop_epochs' needs 'schedule: step'")
        if self.cuda_graphs and self.compile == "none":
            raise ValueError("'cuda_graphs' needs 'compile: networks' or 'compile: joint'")
        return self
