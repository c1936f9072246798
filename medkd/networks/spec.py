"""What a network is built from: a name and a few options."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NetworkSpec:
    """A network's recipe; building it twice gives two networks of one architecture.

    Attributes:
        name: as in :func:`medkd.networks.zoo.build_network`.
        classes: number of logits.
        width: factor on the number of channels.
        stem_stride: stride of the first convolution, 1 or 2; None: the network's own.
        max_pool: whether the stem ends in a max-pool; None: the network's own.
        pretrained: whether it starts from the weights that come with it.
    """

    name: str
    classes: int
    width: float = 1.0
    stem_stride: int | None = None
    max_pool: bool | None = None
    pretrained: bool = False

    def options(self) -> dict[str, object]:
        """The options that were asked for: those that differ from a network's own."""
        asked: dict[str, object] = {}
        if self.width != 1.0:
            asked["width"] = self.width
        if self.stem_stride is not None:
            asked["stem_stride"] = self.stem_stride
        if self.max_pool is not None:
            asked["max_pool"] = self.max_pool
        if self.pretrained:
            asked["pretrained"] = True
        return asked
