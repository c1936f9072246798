"""The schema of a configuration file. One file serves every stage of an experiment."""

from __future__ import annotations

import copy
import math
import textwrap
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticUndefined

from medkd.errors import ConfigError
from medkd.schema import Strict, faults, set_in
from medkd.yaml_file import KeyPath, YamlDocument, parse_yaml, read_yaml

Micrometres = Annotated[float, Field(gt=0)]
SlideMpp = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
# YAML gives lists and strings; the strict base would refuse both for tuples and paths.
FilePath = Annotated[Path, Field(strict=False)]
ClassNames = Annotated[tuple[str, ...], Field(strict=False)]
ClassWeights = Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(strict=False)]


class DataConfig(Strict):
    """Which slides, and what is to be told apart."""

    slides: FilePath = Field(
        Path("slides.csv"),
        description="Table of slides: slide_id, path, patient_id, label; optional site, scanner, "
        "mpp. Relative paths are relative to this file.",
    )
    classes: Annotated[tuple[str, ...], Field(strict=False, min_length=2)] = Field(
        ("MSS", "MSI"), description="The classes, in the order of the networks' outputs."
    )
    positive: str = Field("MSI", description="The class that a slide's probability speaks of.")

    @model_validator(mode="after")
    def _classes_are_told_apart(self) -> DataConfig:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class stands twice in 'classes'")
        if self.positive not in self.classes:
            raise ValueError(f"'positive' must be one of the classes {list(self.classes)}")
        return self


class TileConfig(Strict):
    """How a slide becomes patches. Recorded with every tile store and model package."""

    mpp: SlideMpp = Field(0.5, description="Resolution of a tile, micrometres per pixel.")
    size_px: Annotated[int, Field(ge=16, le=4096)] = Field(
        224, description="Side of a tile, pixels at that resolution."
    )
    size_um: Micrometres | None = Field(
        None,
        description="Side of a tile, micrometres; then 'mpp' follows from it and 'size_px' and is "
        "left out.",
    )
    step_px: Positive | None = Field(
        None, description="Distance between tiles, pixels; null: the side (no overlap)."
    )
    min_tissue: Fraction = Field(0.5, description="Least share of a tile that must be tissue.")
    min_focus: Annotated[float, Field(ge=0)] = Field(
        0.05,
        description="Least focus score of a tile; sharp tissue is above 0.07, blurred by 3 um "
        "below 0.05. 0 keeps blurred tiles.",
    )
    max_pen: Fraction = Field(0.1, description="Largest share of a tile that may be pen ink.")
    max_fold: Fraction = Field(
        0.2, description="Largest share of a tile that may be folded tissue; 1 keeps folds."
    )
    max_white: Fraction = Field(
        0.9,
        description="Largest share of a tile that may be white in its own pixels, whatever the "
        "thumbnail shows there. Blank tiles are above 0.97, very loose tissue is about 0.75, other "
        "tissue below 0.3.",
    )
    annotations: FilePath | None = Field(
        None,
        description="Folder with <slide_id>.geojson (QuPath), areas in level-0 pixels; null: none. "
        "infer looks at no annotations.",
    )
    annotations_include: ClassNames = Field(
        (), description="Classes of areas that tiles must lie in; none: everywhere."
    )
    annotations_exclude: ClassNames = Field(
        (), description="Classes of areas that tiles must not lie in."
    )
    max_unreadable: Fraction = Field(
        0.1,
        description="A slide fails if more than this share of the tiles that had to be read "
        "could not be.",
    )
    mpp_range: Annotated[tuple[float, float], Field(strict=False)] = Field(
        (0.1, 4.0), description="A slide's own resolution outside this range is not believed."
    )
    max_upsampling: Annotated[float, Field(ge=1)] = Field(
        1.1, description="How much coarser than 'mpp' a slide may be; beyond, it is refused."
    )
    use_objective_power: bool = Field(
        False, description="Where mpp is missing, take 10 / objective power (a guess, recorded)."
    )
    reader: Literal["auto", "jpeg", "openslide", "cucim"] = Field(
        "auto",
        description="What reads slides: 'jpeg' decodes the native tiles of JPEG pyramids, fast; "
        "'openslide' reads every format; 'auto' takes the first where it can. 'cucim' (an extra) "
        "reads only pyramids whose every native tile was checked before.",
    )
    icc: Literal["ignore", "apply"] = Field(
        "ignore",
        description="Whether a slide's ICC profile is applied, so that colours become sRGB; such "
        "a slide is read through OpenSlide. infer repeats it.",
    )
    store: Literal["jpeg", "coordinates"] = Field(
        "jpeg",
        description="'jpeg' keeps a copy of each tile; 'coordinates' just its place: training and "
        "infer then read the slide itself, without that JPEG's loss.",
    )
    jpeg_quality: Annotated[int, Field(ge=50, le=100)] = Field(
        90, description="JPEG quality of stored tiles; infer repeats the same encoding."
    )
    time_limit_s: Annotated[float, Field(gt=0)] = Field(
        3600.0, description="A slide that takes longer is given up, seconds."
    )
    workers: Positive = Field(2, description="Slides read at the same time, a process each.")

    @model_validator(mode="before")
    @classmethod
    def _size_gives_mpp(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        size_um, size_px = content.get("size_um"), content.get("size_px", cls._default("size_px"))
        if not isinstance(size_um, int | float) or not isinstance(size_px, int):
            return content  # without it, or told as a fault of its own
        if size_um <= 0 or size_px < 1:
            return content
        mpp = content.get("mpp")
        if isinstance(mpp, int | float) and not math.isclose(mpp * size_px, size_um, rel_tol=1e-9):
            raise ValueError(
                f"'size_um' {size_um:g} over 'size_px' {size_px} is {size_um / size_px:g} um/px, "
                f"and 'mpp' is {mpp:g}: leave 'mpp' out (or set it to null)"
            )
        return {**content, "mpp": size_um / size_px}

    @classmethod
    def _default(cls, name: str) -> Any:
        return cls.model_fields[name].default

    @model_validator(mode="after")
    def _annotations_have_a_use(self) -> TileConfig:
        if self.annotations and not (self.annotations_include or self.annotations_exclude):
            raise ValueError(
                "'annotations' needs a class in 'annotations_include' or 'annotations_exclude'"
            )
        both = sorted({*self.annotations_include} & {*self.annotations_exclude})
        if both:
            raise ValueError(
                f"{both[0]!r} stands in both 'annotations_include' and 'annotations_exclude'"
            )
        return self

    def recorded(self) -> dict[str, Any]:
        """What decides a store's content.

        How many processes made it does not, nor how long they might take, nor where the
        annotations lay: each slide's record has a digest of its own.
        """
        never = {"workers", "time_limit_s", "annotations", "size_um"}  # mpp says the last
        return self.model_dump(mode="json", exclude=never)

    def packaged(self) -> dict[str, Any]:
        """What a model package says of its tiles: what was drawn on slides stays behind."""
        drawn = {"annotations", "annotations_include", "annotations_exclude"}
        return self.model_dump(mode="json", exclude=drawn | {"size_um"})


class SplitConfig(Strict):
    """Roles are given to patients, never to slides or tiles."""

    train: Fraction = Field(0.6, description="Share of the patients, in each class.")
    validation: Fraction = Field(0.2, description="Chooses the epoch and the operating point.")
    test: Fraction = Field(0.2, description="Seen once, at the end.")

    @model_validator(mode="after")
    def _shares_add_up(self) -> SplitConfig:
        if abs(self.train + self.validation + self.test - 1) > 1e-6:
            raise ValueError("'train', 'validation' and 'test' must add up to 1")
        if min(self.train, self.validation, self.test) <= 0:
            raise ValueError("each of 'train', 'validation' and 'test' must be above 0")
        return self


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


class SlideLevelConfig(Strict):
    """From tile probabilities to calls."""

    target_sensitivity: Annotated[float, Field(gt=0, le=1)] = Field(
        0.95, description="The operating point reaches this on validation patients."
    )
    bootstrap_resamples: Annotated[int, Field(ge=100)] = Field(
        2000, description="Resamples of patients (cohort) and of tiles (one slide)."
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(
        0.95, description="Level of every interval."
    )


class InferConfig(Strict):
    """Quality gates that are frozen into the model package."""

    min_tiles: Positive = Field(10, description="Fewer usable tiles give 'no result'.")
    min_tissue_mm2: Annotated[float, Field(ge=0)] = Field(
        0.1, description="Less tissue gives 'no result', square millimetres."
    )
    max_disagreement: Annotated[float, Field(gt=0)] = Field(
        0.25, description="Students whose slide scores spread wider give 'indeterminate'."
    )


class MlflowConfig(Strict):
    """Where runs are tracked. The variable MLFLOW_TRACKING_URI comes first if it is set."""

    tracking_uri: str | None = Field(
        None, description="An MLflow tracking URI; null: sqlite in the output folder."
    )
    experiment: str = Field("medkd", description="Name of the MLflow experiment.")
    registered_model: str | None = Field(
        "medkd-msi", description="Name in MLflow's model registry; null: do not register."
    )


class Config(Strict):
    """A whole experiment."""

    output: FilePath = Field(
        Path("medkd-output"), description="Folder that every stage writes to and reads from."
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Of the split and the training.")
    data: DataConfig = DataConfig()
    tile: TileConfig = TileConfig()
    split: SplitConfig = SplitConfig()
    train: TrainConfig = TrainConfig()
    slide_level: SlideLevelConfig = SlideLevelConfig()
    infer: InferConfig = InferConfig()
    mlflow: MlflowConfig = MlflowConfig()

    @model_validator(mode="after")
    def _each_class_has_a_weight(self) -> Config:
        weights = self.train.class_weights
        if weights is not None and len(weights) != len(self.data.classes):
            raise ValueError(
                f"'train.class_weights' has {len(weights)} numbers for {len(self.data.classes)} "
                "classes"
            )
        return self

    @model_validator(mode="after")
    def _annotations_can_be_found(self) -> Config:
        tile = self.tile
        if tile.annotations is None and (tile.annotations_include or tile.annotations_exclude):
            raise ValueError(
                "'tile.annotations_include' and 'tile.annotations_exclude' need the folder "
                "'tile.annotations'"
            )
        return self

    @property
    def tiles_folder(self) -> Path:
        """Where the tile stage writes."""
        return self.output / "tiles"

    @property
    def splits_file(self) -> Path:
        """Where the split stage writes."""
        return self.output / "splits.parquet"

    @property
    def run_folder(self) -> Path:
        """Where everything of this training run lies."""
        return self.output / "runs" / self.train.name

    @property
    def model_folder(self) -> Path:
        """The run's model package."""
        return self.run_folder / "model"

    def resolved(self) -> dict[str, Any]:
        """Every value, defaults included, in plain YAML and JSON types."""
        return self.model_dump(mode="json")


def load_config(path: Path | None, assignments: tuple[str, ...] = ()) -> Config:
    """Read a configuration file, apply ``key.path=value`` assignments, and check everything.

    Relative paths in the file are relative to the file; those in assignments to the working
    folder.

    Raises:
        ConfigError: one line for each fault, with file, line and key.
    """
    document = read_yaml(path) if path is not None else parse_yaml("", "defaults")
    if not isinstance(document.content, dict):
        raise ConfigError(
            "is not a mapping of keys to values",
            where=document.name,
            remedy="Begin from the output of 'medkd config init'.",
        )
    content = copy.deepcopy(document.content)
    if any(text.startswith("train.students.") for text in assignments):
        # An assignment into the list of students needs a list to lead into.
        default = TrainConfig.model_fields["students"].default
        content.setdefault("train", {}).setdefault("students", _plain(default))
    folder = path.parent.resolve() if path is not None else Path.cwd()
    _anchor_paths(content, folder)
    assigned: dict[KeyPath, str] = {}
    for assignment in assignments:
        _assign(content, assignment, assigned)

    def where(key: tuple[str | int, ...]) -> str:
        for length in range(len(key), 0, -1):
            if key[:length] in assigned:
                return f"--set {assigned[key[:length]]}"
        for assigned_key, assignment in assigned.items():
            if assigned_key[: len(key)] == key:
                return f"--set {assignment}"
        return document.where(key)

    return validate_config(content, where)


def validate_config(content: dict[str, Any], where: Any) -> Config:
    """Check ``content`` against the schema; ``where`` gives the place of a key path."""
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        told = [
            ConfigError(what, where=place, remedy=remedy)
            for place, what, remedy in faults(error, Config, where)
        ]
        first = told[0]
        raise ConfigError(
            first.what, where=first.where, remedy=first.remedy, others=tuple(told[1:])
        ) from None


def _anchor_paths(content: dict[str, Any], folder: Path) -> None:
    if isinstance(content.get("output", ""), str):
        content["output"] = str(
            folder / content.get("output", Config.model_fields["output"].default)
        )
    data = content.setdefault("data", {})
    if isinstance(data, dict) and isinstance(data.get("slides", ""), str):
        data["slides"] = str(folder / data.get("slides", DataConfig.model_fields["slides"].default))
    tile = content.get("tile")
    if isinstance(tile, dict) and isinstance(tile.get("annotations"), str):
        tile["annotations"] = str(folder / tile["annotations"])
    train = content.get("train")
    if isinstance(train, dict):
        if str(train.get("method", "")).endswith((".yaml", ".yml")):
            train["method"] = str(folder / train["method"])
        students = train.get("students")
        for network in (train.get("teacher"), *(students if isinstance(students, list) else ())):
            if isinstance(network, dict) and isinstance(network.get("weights"), str):
                network["weights"] = str(folder / network["weights"])


def _assign(content: dict[str, Any], assignment: str, assigned: dict[KeyPath, str]) -> None:
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            "is not key.path=value",
            where=f"--set {assignment}",
            remedy="Write it as in --set train.epochs=5.",
        )
    steps = key.strip().split(".")
    value: Any = parse_yaml(text, f"--set {assignment}").content if text.strip() else None
    if key.strip() in ("output", "data.slides", "tile.annotations") and isinstance(value, str):
        value = str(Path(value).expanduser().resolve())
    try:
        set_in(content, steps, value)
    except (ValueError, IndexError, AttributeError):
        raise ConfigError(
            f"'{key}' does not lead to a value",
            where=f"--set {assignment}",
            remedy="Compare the key with 'medkd config show'.",
        ) from None
    path: KeyPath = tuple(int(step) if step.isdigit() else step for step in steps)
    assigned[path] = assignment


def config_template() -> str:
    """A commented configuration file with every key at its default."""
    lines = [
        "# A medkd experiment. Every key may be left out; what stands here are the defaults.",
        "# Check it with 'medkd config check', override a key with '--set key.path=value'.",
        "",
    ]
    _describe(Config, "", lines)
    return "\n".join(lines).rstrip() + "\n"


def _describe(model: type[Strict], indent: str, lines: list[str]) -> None:
    for name, field in model.model_fields.items():
        default = field.default
        if isinstance(default, Strict) and not isinstance(default, NetworkConfig):
            lines.append("")
            lines.append(f"{indent}# {(type(default).__doc__ or '').splitlines()[0]}")
            lines.append(f"{indent}{name}:")
            _describe(type(default), indent + "  ", lines)
            continue
        if field.description:
            lines.extend(
                textwrap.wrap(
                    field.description,
                    96,
                    initial_indent=indent + "# ",
                    subsequent_indent=indent + "# ",
                )
            )
        value = None if default is PydanticUndefined else _plain(default)
        if name == "students":
            lines.append(f"{indent}{name}:")
            lines.extend(f"{indent}  - {_flow(item)}" for item in value or [])
        else:
            lines.append(f"{indent}{name}: {_flow(value)}")


def _plain(value: Any) -> Any:
    if isinstance(value, Strict):
        return value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000)
    return text.removesuffix("\n").removesuffix("\n...").removesuffix("...").strip()


def read_resolved(document: YamlDocument) -> Config:
    """The configuration that a run wrote down (``runs/<name>/config.yaml``)."""
    return validate_config(document.content, document.where)
