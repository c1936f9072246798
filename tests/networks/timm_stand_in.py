"""Untrained modules of timm's interface: timm itself needs torchvision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


class Transformer(nn.Module):
    """A vision transformer as timm lays it out, with tokens in front as registers are."""

    def __init__(self, num_classes: int, global_pool: str = "token") -> None:
        super().__init__()
        self.num_classes, self.embed_dim, self.num_features = num_classes, 12, 12
        self.num_prefix_tokens, self.global_pool = 3, global_pool
        self.patch_embed = nn.Conv2d(3, 12, 8, 8)
        self.prefix = nn.Parameter(torch.randn(1, 3, 12))
        self.blocks = nn.Sequential(*(nn.Linear(12, 12) for _ in range(6)))
        self.norm = nn.LayerNorm(12)
        self.fc_norm = nn.LayerNorm(12) if global_pool == "avg" else nn.Identity()
        self.head_drop = nn.Dropout(0.0)
        self.head = nn.Linear(12, num_classes)
        self.pretrained_cfg = {"mean": MEAN, "std": STD, "input_size": (3, 32, 32)}

    def forward_features(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.prefix.expand(len(images), -1, -1), patches), dim=1)
        return self.norm(self.blocks(tokens))

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = tokens[:, 0] if self.global_pool == "token" else tokens[:, 3:].mean(1)
        pooled = self.head_drop(self.fc_norm(pooled))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


class Convolutional(nn.Module):
    """A convolutional network as timm lays it out."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.head_hidden_size = num_classes, 7, 9
        self.conv = nn.Conv2d(3, 7, 3, stride=2)
        self.hidden = nn.Linear(7, 9)
        self.classifier = nn.Linear(9, num_classes)
        self.pretrained_cfg = {"mean": MEAN, "std": STD, "input_size": (3, 32, 32)}

    def forward_features(self, images: Tensor) -> Tensor:
        return self.conv(images)

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = self.hidden(features.mean((2, 3)))
        return pooled if pre_logits else self.classifier(pooled)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


MODELS: dict[str, Any] = {
    "vit_small": Transformer,
    "vit_mean": lambda num_classes: Transformer(num_classes, "avg"),
    "convnet": Convolutional,
    "hf-hub:someone/vit": Transformer,
}
