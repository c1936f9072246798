"""MONAI's vision transformers (arXiv 2010.11929) in two dimensions, patches of 16 pixels."""

from __future__ import annotations

import torch
from monai.networks.nets import ViT
from torch import Tensor, nn

from medkd.networks.spec import NetworkSpec
from medkd.networks.staged import InputAdapter, StagedNetwork, sequence

# The position embedding is learnt for one grid of patches, so images are resized to it.
INPUT_PX = 224
PATCH_PX = 16
_LAYERS = 12
_STAGES = 4

# hidden size, heads: tiny and small as in arXiv 2012.12877, base as in arXiv 2010.11929
_SIZES = {"vit-tiny": (192, 3), "vit-small": (384, 6), "vit-base": (768, 12)}
NAMES = tuple(_SIZES)


class _Embedding(nn.Module):
    """Images to tokens: N x 3 x H x W to N x (1 + patches) x C, the class token first."""

    def __init__(self, patches: nn.Module, class_token: nn.Parameter) -> None:
        super().__init__()
        self.patches = patches
        self.class_token = class_token

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images)
        return torch.cat((self.class_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)


class _ClassToken(nn.Module):
    """The first token: N x tokens x C to N x C."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


class TokensToMap(nn.Module):
    """Tokens of a square grid to a map, N x C x h x w.

    Args:
        prefix: tokens in front that stand for no patch, such as the class token.
    """

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, tokens: Tensor) -> Tensor:
        """A map, N x C x h x w with h = w, of N x (prefix + h w) x C."""
        patches = tokens[:, self.prefix :].transpose(1, 2)
        side = round(patches.shape[-1] ** 0.5)
        return patches.unflatten(2, (side, side))


def monai_vit(spec: NetworkSpec) -> ViT:
    """MONAI's own network; it gives logits and the states of its layers."""
    hidden, heads = _SIZES[spec.name]
    return ViT(
        in_channels=3,
        img_size=INPUT_PX,
        patch_size=PATCH_PX,
        hidden_size=hidden,
        mlp_dim=4 * hidden,
        num_layers=_LAYERS,
        num_heads=heads,
        classification=True,
        num_classes=spec.classes,
        spatial_dims=2,
        post_activation="none",  # MONAI squashes the logits by a tanh unless told otherwise
        qkv_bias=True,
    )


def staged(network: ViT) -> StagedNetwork:
    """The parts of MONAI's network: four stages of three layers."""
    blocks, hidden = list(network.blocks), int(network.norm.normalized_shape[0])
    for block in blocks:
        # A norm before a cross-attention that there is none of: it would never get a gradient.
        block.norm_cross_attn = nn.Identity()
    size = len(blocks) // _STAGES
    return StagedNetwork(
        adapter=InputAdapter(input_px=INPUT_PX),
        stem=_Embedding(network.patch_embedding, network.cls_token),
        stages=[nn.Sequential(*blocks[i * size : (i + 1) * size]) for i in range(_STAGES)],
        pool=sequence(norm=network.norm, class_token=_ClassToken()),
        classifier=network.classification_head,
        stage_channels=(hidden,) * _STAGES,
        pooled_channels=hidden,
        to_map=TokensToMap(prefix=1),
    )


def build(spec: NetworkSpec) -> StagedNetwork:
    """Build the network of a spec."""
    return staged(monai_vit(spec))
