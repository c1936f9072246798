"""The students of a model package: from tiles to probabilities, and from these to a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medkd.errors import ModelPackageError
from medkd.inference.package import ModelPackage
from medkd.slide_level.learned_head import SlideHeads
from medkd.slide_level.pooling import SlideScore, pool_slide
from medkd.slide_level.score_interval import Interval
from medkd.slide_level.slide_head import LearnedPooling

# float32 softmax may end this far outside of 0 to 1.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Seen:
    """What the students say of N tiles.

    Attributes:
        probabilities: of the positive class, float32 (N,) of each student.
        embeddings: float16 N x D of each student; empty where the pooling does without.
    """

    probabilities: dict[str, np.ndarray]
    embeddings: dict[str, np.ndarray]

    @classmethod
    def together(cls, parts: Sequence[Seen]) -> Seen:
        """All tiles of several."""
        return cls(
            *(
                {
                    name: np.concatenate([getattr(part, kind)[name] for part in parts])
                    for name in getattr(parts[0], kind)
                }
                for kind in ("probabilities", "embeddings")
            )
        )


class Students:
    """The students' ONNX sessions, and the heads of a learned pooling; loaded once.

    A call keeps to one thread, and several threads may call at once: docs/decisions/0004 says why.
    """

    def __init__(self, package: ModelPackage) -> None:
        self._positive = package.manifest.classes.index(package.manifest.positive)
        self._package = package
        self._sessions: dict[str, Any] = {
            student.name: _session(package.folder / student.onnx)
            for student in package.manifest.students
        }
        learned = package.manifest.slide_head.learned
        self._heads = None
        if learned is not None:
            models = {
                name: (package.folder / path).read_bytes() for name, path in learned.onnx.items()
            }
            self._heads = SlideHeads(learned.kind, models)

    def __call__(self, tiles: np.ndarray) -> Seen:
        """What the students say of tiles, uint8 N x H x W x 3.

        Raises:
            ModelPackageError: a student gives something that is not a probability.
        """
        probabilities, embeddings = {}, {}
        outputs = ["probabilities"] if self._heads is None else ["probabilities", "embeddings"]
        for name, session in self._sessions.items():
            of_classes, *pooled = session.run(outputs, {"tiles": tiles})
            values = of_classes[:, self._positive]
            if not ((values >= -_ROUNDING) & (values <= 1 + _ROUNDING)).all():
                raise ModelPackageError(
                    f"{name} gave a probability that is not a number between 0 and 1",
                    where=self._package.folder,
                    remedy="The network is broken; use another model.",
                )
            probabilities[name] = np.clip(values, 0, 1)
            if pooled:
                # As 'medkd predict' keeps them for the head's training.
                embeddings[name] = pooled[0].astype(np.float16)
        return Seen(probabilities, embeddings)

    def score(self, seen: Seen) -> SlideScore:
        """The score of a slide, before calibration, by the pooling of the package.

        Raises:
            ModelPackageError: a head gives something that is not a probability.
        """
        manifest = self._package.manifest
        head = manifest.slide_head
        options: dict[str, Any] = {
            "resamples": manifest.slide_level.bootstrap_resamples,
            "interval": Interval(manifest.slide_level.confidence, manifest.slide_level.interval),
        }
        if self._heads is not None:
            return self._heads.interval([seen.embeddings], **options)
        assert not isinstance(head.pooling, LearnedPooling)
        return pool_slide(
            seen.probabilities, pooling=head.pooling, ensembling=head.ensembling, **options
        )


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Batches run side by side, a thread each; threads within a run would wait for one another.
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no other base
        raise ModelPackageError(
            f"onnxruntime {onnxruntime.__version__} cannot load it: {error}",
            where=path,
            remedy="Install the onnxruntime of the machine that made the package, or a later one.",
        ) from error
