"""What a MONAI bundle runs: slides through torch students, by medkd's tiles, pooling and calls."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medkd.errors import SlideError, StageError
from medkd.export.bundle_network import StudentEnsemble
from medkd.files import make_folder, write_json
from medkd.inference.engine import infer_slide
from medkd.inference.infer_stage import build_result
from medkd.inference.package import ModelPackage, load_package
from medkd.inference.slide_files import SlideFile, find_slides
from medkd.inference.students import Said, Students

_log = logging.getLogger(__name__)

# MONAI's inferers take what to call, and call it with the images.
Inferer = Callable[[Tensor, Callable[[Tensor], Any]], Any]


def slides_of(place: str | Path) -> list[SlideFile]:
    """A slide, or the slides in a folder.

    Raises:
        SlideError: there are none.
    """
    found = find_slides([Path(place)])
    if not found.slides:
        raise SlideError(
            "no_slides",
            "there are no slides",
            where=place,
            remedy="Name a slide or a folder of slides with --dataset_dir.",
        )
    return list(found.slides)


class TorchStudents(Students):
    """The students of a package on a torch device, in place of their ONNX.

    Args:
        package: how their answers become a score.
        network: its students.
        preprocessing: from a tile, uint8 H x W x 3, to an image, float 3 x H x W in [0, 1].
        inferer: MONAI's.
        device: where the network is.
    """

    def __init__(
        self,
        package: ModelPackage,
        network: StudentEnsemble,
        preprocessing: Callable[[np.ndarray], Tensor],
        inferer: Inferer,
        device: torch.device,
    ) -> None:
        super().__init__(package)
        self._manifest = package.manifest
        self._network, self._inferer = network, inferer
        self._preprocessing, self._device = preprocessing, device

    @torch.no_grad()
    def say(self, tiles: np.ndarray, *, embeddings: bool) -> dict[str, Said]:
        """What each student says of tiles, uint8 N x H x W x 3, by name."""
        images = torch.stack([torch.as_tensor(self._preprocessing(tile)) for tile in tiles])
        said = self._inferer(images.to(self._device), self._network.eval().look)
        manifest = self._manifest
        positive = manifest.classes.index(manifest.positive)
        return {
            name: Said(
                probabilities[:, positive].cpu().numpy(),
                pooled.cpu().numpy() if embeddings and pooled is not None else None,
            )
            for name, (probabilities, pooled) in said.items()
        }


class SlideEvaluator:
    """Calls every slide of a dataset and writes ``<output_dir>/<slide_id>/result.json``.

    Args:
        dataset: of :class:`SlideFile`.
        network: the students, their weights loaded.
        preprocessing, inferer, device: see :class:`TorchStudents`.
        package_dir: of the model package.
        output_dir: made if it is not there.
    """

    def __init__(
        self,
        dataset: Sequence[SlideFile],
        network: StudentEnsemble,
        preprocessing: Callable[[np.ndarray], Tensor],
        inferer: Inferer,
        device: torch.device,
        package_dir: str,
        output_dir: str,
    ) -> None:
        self._dataset, self._output = dataset, Path(output_dir)
        self._package = load_package(Path(package_dir))
        self.students = TorchStudents(self._package, network, preprocessing, inferer, device)

    def run(self) -> None:
        """Call the slides; one that cannot be used costs a line, and is told of again at the end.

        Raises:
            StageError: slides could not be used; the others are done.
        """
        failed = 0
        for slide in self._dataset:
            try:
                self._call(slide)
            except SlideError as error:
                _log.error("%s", error)
                failed += 1
        if failed:
            raise StageError(
                f"{failed} of {len(self._dataset)} slides could not be called; the others were",
                where=self._output,
                remedy="The lines above say why.",
            )

    def _call(self, slide: SlideFile) -> None:
        inference = infer_slide(
            slide.path, self._package, self.students, slide_id=slide.slide_id, table_mpp=slide.mpp
        )
        result = build_result(inference, self._package, inference.timing_s)
        libraries = {name: version(name) for name in ("torch", "monai")}
        software = {"medkd": result.software["medkd"], **libraries}
        folder = make_folder(self._output / slide.slide_id)
        content = result.model_copy(update={"software": software})
        write_json(folder / "result.json", content.model_dump(mode="json"))
        _log.info("%s: %s, written to %s", slide.slide_id, result.call, folder / "result.json")
