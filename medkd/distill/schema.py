"""The schema of a method's file. Its words are explained in docs/methods.md."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from medkd.distill.detection_links import DETECTION_LOSSES
from medkd.distill.links import LOSSES as CLASSIFICATION_LOSSES
from medkd.distill.links import LinkLoss
from medkd.distill.ramp import Ramp, parse_ramp
from medkd.schema import Strict

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
Place = Annotated[str, Field(pattern=r"^(logits|pooled|pyramid|stage -?\d+)$")]
Combination = Literal[
    "mean logits", "mean probabilities", "gate", "attention", "concatenated features"
]

# Of every task; one of both names compares the same, and has the same settings.
LOSSES: dict[str, LinkLoss] = {**CLASSIFICATION_LOSSES, **DETECTION_LOSSES}

_KIND_OF_PLACE = {"logits": "logits", "pooled": "vector", "pyramid": "pyramid"}
_PLACE_OF_KIND = {kind: place for place, kind in _KIND_OF_PLACE.items()} | {"map": "stage -1"}

KINDS = ("network", "mean_of", "ensemble_of", "bridge_of")
_KEYS_OF_KIND = {
    "network": {"frozen", "share", "share_with"},
    "mean_of": {"decay", "warm_start"},
    "ensemble_of": {"by", "without"},
    "bridge_of": {"from_stage"},
}
LEARNING = ("gate", "attention", "concatenated features")


def _as_names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class NodeSpec(Strict):
    """A node or a set of nodes; just one of network, mean_of, ensemble_of and bridge_of."""

    network: Literal["teacher", "student", "students"] | None = Field(
        None,
        description="A trained network: the experiment's teacher, one more network like its first "
        "student, or a set with one node for each student.",
    )
    frozen: bool = Field(
        False, description="Trained beforehand, by its labels alone; then it stays as it is."
    )
    share: Literal["all but last"] | Annotated[int, Field(ge=0)] | None = Field(
        None, description="How many early stages the members of this set have in common."
    )
    share_with: str | None = Field(None, description="The set whose early stages it uses.")
    mean_of: str | None = Field(
        None, description="The exponential moving average of another node's weights."
    )
    decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999, description="Of the average, for each step."
    )
    warm_start: bool = Field(
        True, description="In step g the decay is at most 1 - 1 / (g + 1), g from 0."
    )
    ensemble_of: Names | None = Field(None, description="Nodes or sets that are taken together.")
    by: Combination | None = Field(None, description="How they are taken together.")
    without: Literal["own"] | None = Field(
        None, description="A set: one ensemble for each member, of all the others."
    )
    bridge_of: str | None = Field(
        None,
        description="A fresh copy of that network's last stages and head, fed by its early stages.",
    )
    from_stage: int = Field(-1, description="The bridge's first stage, as Python counts.")
    supervised: Weight | None = Field(
        None, description="Weight of its own loss by the labels; 1, or 0 where nothing can learn."
    )

    _names = field_validator("ensemble_of", mode="before")(_as_names)

    @property
    def kind(self) -> str:
        """Which of :data:`KINDS` it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def learns(self) -> bool:
        """Whether a loss can change anything in it."""
        if self.kind == "ensemble_of":
            return self.by in LEARNING
        return self.kind != "mean_of" and not self.frozen

    @property
    def supervised_weight(self) -> float:
        """Of its own loss by the labels."""
        if self.supervised is not None:
            return self.supervised
        # Attention mixes targets for others; nothing says that the mix itself be right.
        return 1.0 if self.learns and self.by != "attention" else 0.0

    @property
    def sources(self) -> tuple[str, ...]:
        """Nodes and sets that it is made of."""
        named = (self.share_with, self.mean_of, *(self.ensemble_of or ()), self.bridge_of)
        return tuple(name for name in named if name is not None)

    @model_validator(mode="after")
    def _is_one_kind(self) -> NodeSpec:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"needs just one of {', '.join(KINDS)}")
        for kind, keys in _KEYS_OF_KIND.items():
            for key in sorted(keys & self.model_fields_set):
                if kind != given[0] and getattr(self, key) is not None:
                    raise ValueError(f"'{key}' means nothing to a node of the kind '{given[0]}'")
        if self.kind == "ensemble_of" and self.by is None:
            raise ValueError("an ensemble needs 'by'")
        if self.without and self.by not in ("mean logits", "mean probabilities"):
            raise ValueError("only means can leave a member out")
        if self.share is not None and self.network != "students":
            raise ValueError("only a set can share its stages; a single node can 'share_with' it")
        if self.share_with and self.network != "student":
            raise ValueError("'share_with' is for a node with 'network: student'")
        if self.frozen and self.network != "teacher":
            raise ValueError("only the teacher can be frozen")
        if self.supervised and not self.learns:
            raise ValueError("has nothing that a loss by labels could change")
        return self


class RampSpec(Strict):
    """How a link's weight grows: one shape, and how long it takes."""

    linear: str | None = None
    exponential: str | None = None
    cosine: str | None = None

    @model_validator(mode="after")
    def _is_one_ramp(self) -> RampSpec:
        if len(self.model_fields_set) != 1:
            raise ValueError("a ramp is one of linear, exponential and cosine")
        self.parsed()
        return self

    def parsed(self) -> Ramp:
        """The ramp."""
        for shape in ("linear", "exponential", "cosine"):
            text = getattr(self, shape)
            if text is not None:
                return parse_ramp(shape, text)
        raise ValueError("a ramp needs a length, such as '80 epochs'")


class EndsSpec(Strict):
    """What is compared, where the two sides differ."""

    source: Place = Field(alias="from")
    learner: Place = Field(alias="to")


class LinkSpec(Strict):
    """Knowledge that flows from a target to a learner. A set's name stands for each member."""

    source: str = Field(alias="from", description="The target: a node, a set, or a set's member.")
    learner: str = Field(alias="to", description="Who learns: a node, a set, or a set's member.")
    loss: str = Field(description="What the comparison costs; see medkd/distill/links.py.")
    on: Place | EndsSpec | None = Field(
        None,
        description="What is compared: logits, pooled, a detector's pyramid, or a stage, such as "
        "'stage -1'.",
    )
    pairs: Literal["all", "own", "others"] = Field(
        "all", description="Of two sets: all pairs, equal numbers, or unequal numbers."
    )
    weight: Weight = Field(1.0, description="Factor on the loss.")
    ramp: RampSpec | None = Field(None, description="How the weight grows in training.")
    detach: bool = Field(True, description="Whether the target is kept from the gradient.")
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    alpha: Weight | None = None
    beta: Weight | None = None

    @field_validator("loss")
    @classmethod
    def _loss_is_known(cls, loss: str) -> str:
        if loss not in LOSSES:
            raise ValueError(f"not one of {', '.join(LOSSES)}")
        return loss

    @model_validator(mode="after")
    def _loss_has_the_settings(self) -> LinkSpec:
        known = LOSSES[self.loss].settings
        for name in ("temperature", "alpha", "beta"):
            if getattr(self, name) is not None and name not in known:
                raise ValueError(f"the loss '{self.loss}' has no '{name}'")
        for place in self.places:
            kind = _KIND_OF_PLACE.get(place, "map")
            if kind not in LOSSES[self.loss].compares:
                raise ValueError(f"the loss '{self.loss}' cannot compare '{place}'")
        return self

    @property
    def places(self) -> tuple[str, str]:
        """What of the target, and what of the learner, is compared."""
        if isinstance(self.on, EndsSpec):
            return self.on.source, self.on.learner
        return (self.on or _PLACE_OF_KIND[LOSSES[self.loss].compares[0]],) * 2

    @property
    def settings(self) -> dict[str, float]:
        """Every number that the loss takes."""
        given = {name: getattr(self, name, None) for name in LOSSES[self.loss].settings}
        defaults = LOSSES[self.loss].settings
        return {name: defaults[name] if value is None else value for name, value in given.items()}


class DeploySpec(Strict):
    """What ships: an ensemble of a set, one node, or the best of a set on validation data."""

    ensemble: str | None = Field(None, description="Their mean probability is the prediction.")
    one: str | None = Field(None, description="This node alone.")
    best_of: str | None = Field(None, description="The member that does best on validation data.")

    @model_validator(mode="after")
    def _is_one(self) -> DeploySpec:
        if len(self.model_fields_set) != 1 or self.node is None:
            raise ValueError("'deploy' is one of ensemble, one and best_of")
        return self

    @property
    def rule(self) -> str:
        """Which of the three."""
        return next(iter(self.model_fields_set))

    @property
    def node(self) -> str | None:
        """The node or set that it names."""
        return self.ensemble or self.one or self.best_of


class MethodSpec(Strict):
    """A method file."""

    description: str = ""
    source: str = Field("", description="Where the method comes from.")
    nodes: Annotated[dict[str, NodeSpec], Field(min_length=1)]
    views: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="Nodes and sets of which each node sees an augmentation of its own."
    )
    links: Annotated[tuple[LinkSpec, ...], Field(strict=False)] = ()
    update: Literal["simultaneous", "alternating"] = Field(
        "simultaneous", description="One step for all, or one after the other (DML's algorithm 1)."
    )
    deploy: DeploySpec

    _names = field_validator("views", mode="before")(_as_names)
