"""A small DDPM-style U-Net for images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embedding import TimeEmbedding
from .image import check_images


def _zero(layer: nn.Module) -> nn.Module:
    """The layer with its parameters at zero, so that its branch starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Norm(nn.GroupNorm):
    """Group normalisation without weights of its own: a FiLM or the next layer scales it.

    The weights of an affine GroupNorm break torch.compile of a JVP through it (torch 2.13).
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(math.gcd(channels, groups), channels, affine=False)


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, norm, FiLM(embedding), SiLU, dropout, conv, and the skip."""

    def __init__(self, inputs: int, outputs: int, embedding: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.first_norm = Norm(inputs, groups)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.film = nn.Linear(embedding, 2 * outputs)
        self.second_norm = Norm(outputs, groups)
        self.dropout = nn.Dropout(dropout)
        self.second = _zero(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        hidden = self.first(F.silu(self.first_norm(x)))
        scale, shift = self.film(embedding)[..., None, None].chunk(2, 1)
        hidden = F.silu(torch.addcmul(shift, self.second_norm(hidden), 1 + scale))
        return self.skip(x) + self.second(self.dropout(hidden))


class Attention(nn.Module):
    """Single-head self-attention over the pixels.

    The softmax is written out because scaled_dot_product_attention has no forward-mode derivative.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = Norm(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).flatten(2).chunk(3, 1)
        scores = torch.matmul(query.transpose(1, 2), key) / math.sqrt(x.shape[1])
        mixed = torch.matmul(value, scores.softmax(-1).transpose(1, 2))
        return x + self.out(mixed.reshape(x.shape))


class UNet(nn.Module):
    """x (B, channels, H, W), time (B,) -> like x, after Ho et al. 2020 (DDPM), appendix B.

    Residual blocks with FiLM of the embedded time, strided convolutions down, nearest-neighbour
    and a convolution up, skip connections, and one attention at the lowest resolution.  The last
    layer starts at zero, so that an untrained network predicts zero.

    Args:
        channels: of the image.
        width: channels at full resolution; level i has ``width * multipliers[i]``.
        multipliers: one a resolution; each further one halves the sides.
        blocks: residual blocks a resolution on the way down (one more on the way up).
        attention: whether the lowest resolution has self-attention.
        groups: of the group normalisations, reduced to a divisor of the channels.
        dropout: probability inside the residual blocks.
        classes: number of class labels; 0 for an unconditional network.
        time_features: width of the time embedding, an even number.

    Raises:
        ValueError: in ``forward`` for another number of channels, sides that are no multiple of
            2^(len(multipliers) - 1), or a missing or superfluous label.
    """

    def __init__(
        self,
        channels: int,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: bool = True,
        groups: int = 8,
        dropout: float = 0.0,
        classes: int = 0,
        time_features: int = 64,
    ) -> None:
        super().__init__()
        multipliers = list(multipliers)
        if min(channels, width, blocks, groups, *multipliers, len(multipliers)) < 1:
            raise ValueError("channels, width, blocks, groups and multipliers must be >= 1")
        self.config = {
            "channels": channels,
            "width": width,
            "multipliers": multipliers,
            "blocks": blocks,
            "attention": attention,
            "groups": groups,
            "dropout": dropout,
            "classes": classes,
            "time_features": time_features,
        }
        embedding = 4 * width
        self.embedding = nn.Sequential(
            TimeEmbedding(time_features),
            nn.Linear(time_features, embedding),
            nn.SiLU(),
            nn.Linear(embedding, embedding),
        )
        self.label = nn.Embedding(classes, embedding) if classes else None

        def block(inputs: int, outputs: int) -> ResidualBlock:
            return ResidualBlock(inputs, outputs, embedding, groups, dropout)

        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        current, skips = width, [width]
        for level, multiplier in enumerate(multipliers):
            if level:
                self.down.append(nn.Conv2d(current, current, 3, stride=2, padding=1))
                skips.append(current)
            for _ in range(blocks):
                self.down.append(block(current, width * multiplier))
                current = width * multiplier
                skips.append(current)
        self.middle = nn.ModuleList([block(current, current)])
        if attention:
            self.middle.extend([Attention(current, groups), block(current, current)])
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                self.up.append(block(current + skips.pop(), width * multiplier))
                current = width * multiplier
            if level:
                self.up.append(nn.Conv2d(current, current, 3, padding=1))
        self.norm = Norm(current, groups)
        self.out = _zero(nn.Conv2d(current, channels, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """x (B, channels, H, W), time (B,), label (B,) integers -> like x."""
        check_images(self, x, label, 2 ** (len(self.config["multipliers"]) - 1), "fewer multipliers")
        embedding = self.embedding(time)
        if label is not None:
            embedding = embedding + self.label(label)
        embedding = F.silu(embedding)
        hidden = self.stem(x)
        skips = [hidden]
        for layer in self.down:
            is_block = isinstance(layer, ResidualBlock)
            hidden = layer(hidden, embedding) if is_block else layer(hidden)
            skips.append(hidden)
        for layer in self.middle:
            is_block = isinstance(layer, ResidualBlock)
            hidden = layer(hidden, embedding) if is_block else layer(hidden)
        for layer in self.up:
            if isinstance(layer, ResidualBlock):
                hidden = layer(torch.cat((hidden, skips.pop()), 1), embedding)
            else:
                hidden = layer(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))
        return self.out(F.silu(self.norm(hidden)))
