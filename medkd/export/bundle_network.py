"""The students of a model as one torch network: what a MONAI bundle's configuration builds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medkd.networks.zoo import build_network
from medkd.training.export import logits_and_pooled


class StudentEnsemble(nn.Module):
    """Students that look at the same tiles.

    Args:
        students: of each its ``name``, and as in :func:`medkd.networks.zoo.build_network` its
            ``network``, ``width``, ``stem_stride`` and ``max_pool``.
        classes: number of logits.
    """

    def __init__(self, students: Sequence[Mapping[str, Any]], classes: int) -> None:
        super().__init__()
        self.students = nn.ModuleDict(
            {
                student["name"]: build_network(
                    student["network"],
                    classes=classes,
                    **{key: student[key] for key in ("width", "stem_stride", "max_pool")},
                )
                for student in students
            }
        )

    def forward(self, images: Tensor) -> Tensor:
        """The students' mean probability, float N x classes, of RGB in [0, 1], N x 3 x H x W."""
        return torch.stack([said for said, _ in self.look(images).values()]).mean(dim=0)

    def look(self, images: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
        """By student: probabilities, float N x classes, and pooled features, N x channels or None.

        Args:
            images: RGB in [0, 1], float N x 3 x H x W.
        """
        seen = {name: logits_and_pooled(one, images) for name, one in self.students.items()}
        return {
            name: (torch.softmax(logits, dim=1), pooled) for name, (logits, pooled) in seen.items()
        }
