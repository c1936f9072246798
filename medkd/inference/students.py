"""The students of a model package: from tiles to probabilities, and from these to a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medkd.errors import ModelPackageError
from medkd.inference.early_stop import check_early_stop
from medkd.inference.fused import INPUT, fused, opsets
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

    def taken(self, order: np.ndarray) -> Seen:
        """The tiles of these numbers, (M,), in this order."""
        return Seen(
            *(
                {name: values[order] for name, values in getattr(self, kind).items()}
                for kind in ("probabilities", "embeddings")
            )
        )


class Students:
    """The students in ONNX sessions, and the heads of a learned pooling; loaded once.

    A call keeps to one thread, and several threads may call at once:
    docs/decisions/0004-inference-threads.md says why.

    Raises:
        ModelPackageError: onnxruntime cannot load a student, or the package stops slides early
            and has a pooling or an interval that does not allow it.
    """

    def __init__(self, package: ModelPackage) -> None:
        check_early_stop(package)
        manifest = package.manifest
        self._positive = manifest.classes.index(manifest.positive)
        self._package = package
        self._sessions = _sessions(
            {student.name: package.folder / student.onnx for student in manifest.students}
        )
        learned = manifest.slide_head.learned
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
        kinds = ["probabilities"] if self._heads is None else ["probabilities", "embeddings"]
        found: dict[str, np.ndarray] = {}
        for students, session in self._sessions.items():
            wanted = [f"{student}_{kind}" for student in students for kind in kinds]
            found |= zip(wanted, session.run(wanted, {INPUT: tiles}), strict=True)
        probabilities, embeddings = {}, {}
        for student in self._package.manifest.students:
            name = student.name
            values = found[f"{name}_probabilities"][:, self._positive]
            if not ((values >= -_ROUNDING) & (values <= 1 + _ROUNDING)).all():
                raise ModelPackageError(
                    f"{name} gave a probability that is not a number between 0 and 1",
                    where=self._package.folder,
                    remedy="The network is broken; use another model.",
                )
            probabilities[name] = np.clip(values, 0, 1)
            if self._heads is not None:
                # As 'medkd predict' keeps them for the head's training.
                embeddings[name] = found[f"{name}_embeddings"].astype(np.float16)
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


def _sessions(paths: Mapping[str, Path]) -> dict[tuple[str, ...], Any]:
    """Sessions by the names of the students in them: one for all, unless their opsets differ."""
    import onnx

    try:
        alike: dict[object, dict[str, onnx.ModelProto]] = {}
        for name, path in paths.items():
            model = onnx.load(path)
            alike.setdefault(opsets(model), {})[name] = model
        return {
            tuple(group): _session(fused(group).SerializeToString()) for group in alike.values()
        }
    except Exception:  # those of onnxruntime and of protobuf share no other base
        for path in paths.values():
            _check_session(path)
        raise


def _session(model: str | bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Batches run side by side, a thread each; threads within a run would wait for one another.
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _check_session(path: Path) -> None:
    """Raise the error that names the student, if it is this one that cannot be loaded."""
    import onnxruntime

    try:
        _session(str(path))
    except Exception as error:
        raise ModelPackageError(
            f"onnxruntime {onnxruntime.__version__} cannot load it: {error}",
            where=path,
            remedy="Install the onnxruntime of the machine that made the package, or a later one.",
        ) from error
