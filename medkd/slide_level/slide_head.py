"""How the tiles of a slide become one score, as it stands in a model package."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from medkd.config.slide_level import Ensembling, HeadArchitecture, PatientPooling
from medkd.schema import Strict
from medkd.slide_level.pooling_kinds import Pooling


class LearnedPooling(Strict):
    """Heads on embeddings, one for each student (:mod:`medkd.slide_level.learned_head`)."""

    kind: HeadArchitecture
    onnx: dict[str, str] = Field(description="By student, a path in the package.")


class PackagedSlideHead(Strict):
    """From what students say of tiles to the score of a slide or patient."""

    pooling: Pooling | LearnedPooling
    ensembling: Ensembling = Field(
        "tiles_first", description="Without meaning for learned poolings, which are slides_first."
    )
    patient: PatientPooling = Field("tiles", description="What several slides come to.")

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, content: Any) -> Any:
        """The first packages have the name of the kind."""
        if isinstance(content, dict) and isinstance(content.get("pooling"), str):
            return {**content, "pooling": {"kind": content["pooling"]}}
        return content

    @property
    def learned(self) -> LearnedPooling | None:
        """The pooling, where it is a learned one."""
        return self.pooling if isinstance(self.pooling, LearnedPooling) else None


def in_words(head: PackagedSlideHead) -> str:
    """What a score is, as the end of a sentence that begins with "a slide's score is"."""
    students = "the students' mean" if head.ensembling == "tiles_first" else "each student's"
    match head.pooling.kind:
        case "mean_probability":
            words = "the mean over its tiles"
        case "histogram_logistic":
            words = f"a logistic regression on the histogram of {students} tile probabilities"
        case kind if head.learned is None:
            values = head.pooling.model_dump(exclude={"kind"})
            told = ", ".join(f"{key} {value}" for key, value in values.items())
            words = f"the {kind.replace('_', ' ')} of {students} tile probabilities"
            words += f" ({told})" if told else ""
        case kind:
            words = (
                f"the mean of what the students' {kind.replace('_', ' ')} heads say of its tiles' "
                "embeddings"
            )
    if head.patient != "tiles":
        words += f"; a patient's is the {head.patient.replace('_', ' ')}"
    return words
