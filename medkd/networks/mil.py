"""Slide heads: from the embeddings of a slide's tiles to one logit and a weight for each tile."""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from monai.networks.blocks import TransformerBlock
from torch import Tensor, nn

from medkd.config.slide_level import HeadArchitecture
from medkd.errors import ConfigError
from medkd.schema import hint

HEAD_ARCHITECTURES: tuple[HeadArchitecture, ...] = get_args(HeadArchitecture)

BLOCKS = 2
HEADS = 4


class Attention(nn.Module):
    """``w . tanh(V h)``, the attention of Ilse et al. (arXiv 1802.04712, eq. 8), before softmax.

    It is the ``att`` mode of :class:`monai.networks.nets.MILModel`, where ``hidden`` is 2048.

    Args:
        dimension: of an embedding.
        hidden: rows of V.
    """

    def __init__(self, dimension: int, hidden: int) -> None:
        super().__init__()
        self.v = nn.Linear(dimension, hidden)
        # Softmax would cancel a bias.
        self.w = nn.Linear(hidden, 1, bias=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Scores, B x N, of embeddings, B x N x D."""
        return self.w(torch.tanh(self.v(embeddings))).squeeze(-1)


class GatedAttention(nn.Module):
    """``w . (tanh(V h) * sigmoid(U h))`` (Ilse et al., arXiv 1802.04712, eq. 9), before softmax.

    V and U have biases, as in the authors' code.

    Args:
        dimension: of an embedding.
        hidden: rows of V and of U.
    """

    def __init__(self, dimension: int, hidden: int) -> None:
        super().__init__()
        self.v = nn.Linear(dimension, hidden)
        self.u = nn.Linear(dimension, hidden)
        self.w = nn.Linear(hidden, 1, bias=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Scores, B x N, of embeddings, B x N x D."""
        gated = torch.tanh(self.v(embeddings)) * torch.sigmoid(self.u(embeddings))
        return self.w(gated).squeeze(-1)


class Transformer(nn.Module):
    """Self-attention among the tiles of a bag, which then have ``hidden`` channels.

    Without positions, so the order of tiles does not matter. Time grows with the square of the
    number of tiles, and in onnxruntime memory too: 4 x N x N floats, 1.6 GB for 10,000 tiles.

    Args:
        dimension: of an embedding.
        hidden: channels; the MLP has twice as many.
    """

    def __init__(self, dimension: int, hidden: int) -> None:
        super().__init__()
        self.project = nn.Linear(dimension, hidden)
        # Scaled dot products in torch's own kernel never hold N x N weights. MONAI's blocks would
        # drop some of them in evaluation too, so there is no dropout in here.
        self.blocks = nn.ModuleList(
            TransformerBlock(hidden, 2 * hidden, HEADS, use_flash_attention=True)
            for _ in range(BLOCKS)
        )
        self.norm = nn.LayerNorm(hidden)

    def forward(self, embeddings: Tensor, mask: Tensor | None) -> Tensor:
        """Embeddings, B x N x hidden, of embeddings, B x N x D, and a mask, bool B x N."""
        tiles = self.project(embeddings)
        seen = None if mask is None else mask[:, None, None]
        for block in self.blocks:
            tiles = block(tiles, attn_mask=seen)
        return self.norm(tiles)


class HeadOutput(NamedTuple):
    """What a slide head says of B bags of N tiles.

    Attributes:
        logits: of the positive class, (B,): the mean of ``tile_logits`` under ``weights``.
        weights: of tiles, B x N, that sum to 1 in each bag and are 0 for padding.
        scores: what the weights were made of, B x N, minus infinity for padding: their softmax, or
            of ``max_embedding`` the place of the highest.
        tile_logits: of each tile by itself, B x N.
    """

    logits: Tensor
    weights: Tensor
    scores: Tensor
    tile_logits: Tensor


class SlideHead(nn.Module):
    """A slide's logit is a linear function of the weighted mean of its tiles' embeddings.

    The weights are the architecture: ``mean_embedding`` weighs tiles alike, ``max_embedding`` takes
    the one with the highest logit, ``attention`` and ``gated_attention`` learn them, and
    ``transformer`` lets tiles look at one another first and then learns them by ``attention``.

    With D = 512 and ``hidden`` = 128 they have 513, 513, 66,305, 131,969 and 347,393 parameters.

    Args:
        architecture: see :data:`HEAD_ARCHITECTURES`.
        dimension: D, of an embedding.
        hidden: of the attention, and channels of the transformer.
        dropout: share of an embedding's channels that is dropped in training.

    Raises:
        ConfigError: an unknown architecture, or a transformer whose ``hidden`` is no multiple of 4.
    """

    def __init__(
        self,
        architecture: HeadArchitecture,
        dimension: int,
        *,
        hidden: int = 128,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        if architecture not in HEAD_ARCHITECTURES:
            raise ConfigError(
                f"unknown slide head '{architecture}'",
                where="architecture",
                remedy=hint(architecture, HEAD_ARCHITECTURES),
            )
        if architecture == "transformer" and hidden % HEADS:
            raise ConfigError(
                f"a transformer of {HEADS} heads cannot have {hidden} channels",
                where="hidden",
                remedy=f"Give a multiple of {HEADS}.",
            )
        self.architecture = architecture
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(dimension))
        self.register_buffer("scale", torch.ones(dimension))
        self.dropout = nn.Dropout(dropout)
        is_transformer = architecture == "transformer"
        self.transformer = Transformer(dimension, hidden) if is_transformer else None
        width = hidden if is_transformer else dimension
        self.attention: nn.Module | None = None
        if architecture in ("attention", "transformer"):
            self.attention = Attention(width, hidden)
        elif architecture == "gated_attention":
            self.attention = GatedAttention(width, hidden)
        self.classifier = nn.Linear(width, 1)

    @property
    def dimension(self) -> int:
        """D, of an embedding."""
        return len(self.mean)

    def standardise(self, mean: Tensor, deviation: Tensor) -> None:
        """Take embeddings less ``mean`` over ``deviation``, both (D,); 0 of it counts as 1."""
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(deviation > 0, deviation, 1).reciprocal())

    def forward(self, embeddings: Tensor, mask: Tensor | None = None) -> HeadOutput:
        """Logits of bags, and the weights and logits of their tiles.

        Args:
            embeddings: B x N x D.
            mask: bool B x N, true for tiles that are there, at least one of each bag; None: all.
        """
        tiles = (embeddings - self.mean) * self.scale
        if mask is not None:
            # Weights of 0 would not remove a padding that is not finite.
            tiles = tiles.masked_fill(~mask[..., None], 0)
        tiles = self.dropout(tiles)
        if self.transformer is not None:
            tiles = self.transformer(tiles, mask)
        tile_logits = self.classifier(tiles).squeeze(-1)
        if self.attention is not None:
            scores = self.attention(tiles)
        elif self.architecture == "max_embedding":
            scores = tile_logits
        else:
            scores = torch.zeros_like(tiles[..., 0])
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        if self.architecture == "max_embedding":
            highest = scores.argmax(1, keepdim=True)
            weights = torch.zeros_like(scores).scatter(1, highest, 1)
        else:
            weights = torch.softmax(scores, 1)
        # The classifier is linear: this is its logit of the weighted mean of embeddings.
        return HeadOutput((weights * tile_logits).sum(1), weights, scores, tile_logits)
