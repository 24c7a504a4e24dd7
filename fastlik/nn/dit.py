"""A diffusion transformer for images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embedding import TimeEmbedding
from .image import check_images


class Block(nn.Module):
    """Attention and an MLP, each normalised, shifted, scaled and gated by the embedding (adaLN-Zero)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width)
        # closed gates: a new block is the identity
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, tokens, width), (B, width) -> like x."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(embedding)[:, None].chunk(6, -1)
        x = x + gate * self.attend(torch.addcmul(shift, self.norm(x), 1 + scale))
        return x + mlp_gate * self.mlp(torch.addcmul(mlp_shift, self.norm(x), 1 + mlp_scale))

    def attend(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        return self.mix(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class DiT(nn.Module):
    """x (B, channels, H, W), time (B,) -> like x, after Peebles and Xie 2023.

    Square patches as tokens with fixed sinusoidal positions, so that any size of image fits; blocks
    modulated by the embedded time and label.  The last layer starts at zero, so that an untrained network
    predicts zero.

    Args:
        channels: of the image.
        patch: side of a patch; the image's sides are multiples of it.
        width: numbers a token, a multiple of 4 and of ``heads``.
        depth: blocks.
        heads: of the attention.
        dropout: probability inside the blocks' MLPs.
        classes: number of class labels; 0 for an unconditional network.
        time_features: width of the time embedding, an even number.

    Raises:
        ValueError: sizes that do not fit together; in ``forward`` for another number of channels, sides that
            are no multiple of ``patch``, or a missing or superfluous label.
    """

    def __init__(
        self,
        channels: int,
        patch: int = 2,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
        classes: int = 0,
        time_features: int = 64,
    ) -> None:
        super().__init__()
        if min(channels, patch, width, depth, heads) < 1:
            raise ValueError("channels, patch, width, depth and heads must be >= 1")
        if width % 4 or width % heads:
            raise ValueError(f"width must be a multiple of 4 and of heads, got {width} with {heads} heads")
        self.config = {
            "channels": channels,
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": heads,
            "dropout": dropout,
            "classes": classes,
            "time_features": time_features,
        }
        self.patch = patch
        self.embedding = nn.Sequential(
            TimeEmbedding(time_features), nn.Linear(time_features, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.label = nn.Embedding(classes, width) if classes else None
        self.stem = nn.Linear(channels * patch**2, width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, channels * patch**2)
        for layer in (self.modulation, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """x (B, channels, H, W), time (B,), label (B,) integers -> like x."""
        check_images(self, x, label, self.patch, "a smaller patch")
        embedding = self.embedding(time)
        if label is not None:
            embedding = embedding + self.label(label)
        embedding = F.silu(embedding)
        side, rows, columns = self.patch, x.shape[2] // self.patch, x.shape[3] // self.patch
        patches = x.unflatten(3, (columns, side)).unflatten(2, (rows, side)).permute(0, 2, 4, 1, 3, 5)
        hidden = self.stem(patches.flatten(3).flatten(1, 2))
        hidden = hidden + positions(rows, columns, hidden)
        for block in self.blocks:
            hidden = block(hidden, embedding)
        shift, scale = self.modulation(embedding)[:, None].chunk(2, -1)
        patches = self.out(torch.addcmul(shift, self.norm(hidden), 1 + scale))
        patches = patches.unflatten(2, (-1, side, side)).unflatten(1, (rows, columns))
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def positions(rows: int, columns: int, like: Tensor) -> Tensor:
    """(rows * columns, width) like tokens (..., width): sines and cosines of the row for one half, of the
    column for the other, at wavelengths from 2 pi to 2 pi 10,000 (Vaswani et al. 2017)."""
    size = like.shape[-1] // 4
    exponents = torch.arange(size, device=like.device, dtype=like.dtype) / size
    frequencies = torch.exp(-math.log(10_000.0) * exponents)

    def waves(count: int) -> Tensor:
        angles = torch.arange(count, device=like.device, dtype=like.dtype)[:, None] * frequencies
        return torch.cat((angles.sin(), angles.cos()), 1)

    of_row = waves(rows)[:, None].expand(-1, columns, -1)
    of_column = waves(columns)[None].expand(rows, -1, -1)
    return torch.cat((of_row, of_column), 2).flatten(0, 1)
