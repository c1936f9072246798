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
from medkd.slide_level.out_of_distribution import Cohort, cohort_from_bytes, distances
from medkd.slide_level.pooling import SlideScore, pool_slide
from medkd.slide_level.score_interval import Interval
from medkd.slide_level.slide_features import TileSums
from medkd.slide_level.slide_head import LearnedPooling

# float32 softmax may end this far outside of 0 to 1.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Seen:
    """What the students say of N tiles.

    Attributes:
        probabilities: of the positive class, float32 (N,) of each student.
        embeddings: float16 N x D of each student; empty where the pooling does without.
        sums: what the slide is held against the training slides by; None where it is not.
    """

    probabilities: dict[str, np.ndarray]
    embeddings: dict[str, np.ndarray]
    sums: TileSums | None = None

    @classmethod
    def together(cls, parts: Sequence[Seen]) -> Seen:
        """All tiles of several."""
        sums = [part.sums for part in parts if part.sums is not None]
        probabilities, embeddings = (
            {
                name: np.concatenate([getattr(part, kind)[name] for part in parts])
                for name in getattr(parts[0], kind)
            }
            for kind in ("probabilities", "embeddings")
        )
        return cls(probabilities, embeddings, TileSums.together(sums) if sums else None)

    def in_order(self, order: np.ndarray) -> Seen:
        """The same tiles in another order of their numbers, (N,)."""
        return Seen(
            {name: values[order] for name, values in self.probabilities.items()},
            {name: values[order] for name, values in self.embeddings.items()},
            self.sums,
        )


@dataclass(frozen=True)
class Said:
    """What one network says of N tiles.

    Attributes:
        probabilities: of the positive class, float32 (N,).
        embeddings: its pooled features, float32 N x D; None where they were not asked for.
    """

    probabilities: np.ndarray
    embeddings: np.ndarray | None


class Students:
    """The students in ONNX sessions, and the heads of a learned pooling; loaded once.

    A call keeps to one thread, and several threads may call at once:
    docs/decisions/0004-inference-threads.md says why.

    Raises:
        ModelPackageError: onnxruntime cannot load a student, the package stops slides early and
            has a pooling or an interval that does not allow it, or what slides are held against
            is of other students.
    """

    def __init__(self, package: ModelPackage) -> None:
        check_early_stop(package)
        manifest = package.manifest
        self._package = package
        self._cohort = _training_slides(package)
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
        compared = self._cohort.keys()
        said = self.say(tiles, embeddings=self._heads is not None or "embedding" in compared)
        probabilities: dict[str, np.ndarray] = {}
        embeddings: dict[str, np.ndarray] = {}
        for name, one in said.items():
            values = one.probabilities
            if not ((values >= -_ROUNDING) & (values <= 1 + _ROUNDING)).all():
                raise ModelPackageError(
                    f"{name} gave a probability that is not a number between 0 and 1",
                    where=self._package.folder,
                    remedy="The network is broken; use another model.",
                )
            probabilities[name] = np.clip(values, 0, 1)
            if one.embeddings is not None:
                embeddings[name] = one.embeddings
        sums = TileSums.of(tiles, embeddings) if compared else None
        # As 'medkd predict' keeps them for the head's training.
        halves = {name: values.astype(np.float16) for name, values in embeddings.items()}
        return Seen(probabilities, halves if self._heads is not None else {}, sums)

    def say(self, tiles: np.ndarray, *, embeddings: bool) -> dict[str, Said]:
        """What each student says of tiles, uint8 N x H x W x 3, by name."""
        kinds = ["probabilities", *(["embeddings"] if embeddings else [])]
        found: dict[str, np.ndarray] = {}
        for students, session in self._sessions.items():
            wanted = [f"{student}_{kind}" for student in students for kind in kinds]
            found |= zip(wanted, session.run(wanted, {INPUT: tiles}), strict=True)
        manifest = self._package.manifest
        positive = manifest.classes.index(manifest.positive)
        return {
            one.name: Said(
                found[f"{one.name}_probabilities"][:, positive],
                found.get(f"{one.name}_embeddings"),
            )
            for one in manifest.students
        }

    def distances(self, seen: Seen) -> dict[str, float]:
        """How far a slide lies from the training slides, of what the package compares."""
        if seen.sums is None:
            return {}
        names = [student.name for student in self._package.manifest.students]
        return distances(seen.sums.features(), self._cohort, names)

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


def _training_slides(package: ModelPackage) -> Cohort:
    """What slides are held against; empty where they are not."""
    manifest = package.manifest
    compared = manifest.out_of_distribution
    if compared is None or compared.file is None:
        return {}
    path = package.folder / compared.file
    try:
        cohort = cohort_from_bytes(path.read_bytes(), compared.checks)
        sizes = [student.embedding_size for student in manifest.students]
        if "embedding" in cohort and len(cohort["embedding"].mean) != sum(n or 0 for n in sizes):
            raise ValueError("'embedding' is not of these students")
    except ValueError as error:
        raise ModelPackageError(
            str(error), where=path, remedy="Run 'medkd aggregate' on the model's run again."
        ) from None
    return cohort


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
