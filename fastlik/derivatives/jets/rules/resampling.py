"""Pooling, interpolation, padding and other linear maps of an image or sequence."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..jet import Jet
from ..registry import rule
from .convolution import over_batch


def _over_batch(function: Callable, ndim: int) -> Callable[..., Jet]:
    def mapped(a: Jet, *args: object, **options: object) -> Jet:
        return over_batch(a, lambda part: function(part, *args, **options), ndim)

    return mapped


for _spatial in (1, 2, 3):
    for _name in (f"avg_pool{_spatial}d", f"adaptive_avg_pool{_spatial}d"):
        rule(_name)(_over_batch(getattr(F, _name), _spatial + 2))
for _name, _spatial in {
    "upsample_nearest1d": 1,
    "upsample_nearest2d": 2,
    "upsample_nearest3d": 3,
    "_upsample_nearest_exact1d": 1,
    "_upsample_nearest_exact2d": 2,
    "_upsample_nearest_exact3d": 3,
    "upsample_linear1d": 1,
    "upsample_bilinear2d": 2,
    "upsample_bicubic2d": 2,
    "upsample_trilinear3d": 3,
    "_upsample_bilinear2d_aa": 2,
    "_upsample_bicubic2d_aa": 2,
}.items():
    rule(_name)(_over_batch(getattr(torch.ops.aten, _name), _spatial + 2))


@rule("pixel_shuffle")
def pixel_shuffle(a: Jet, factor: int) -> Jet:
    return _of_images(a, lambda part: F.pixel_shuffle(part, factor))


@rule("pixel_unshuffle")
def pixel_unshuffle(a: Jet, factor: int) -> Jet:
    return _of_images(a, lambda part: F.pixel_unshuffle(part, factor))


def _of_images(a: Jet, function: Callable[[Tensor], Tensor]) -> Jet:
    """A linear map of the last dimensions: of a batch of images, whose order in memory PyTorch keeps for four
    dimensions only."""
    return over_batch(a, function, 4) if a.ndim == 4 else a.map(function)


@rule("im2col")
def im2col(a: Jet, *args: object) -> Jet:
    return over_batch(a, lambda part: torch.ops.aten.im2col(part, *args), 4)


@rule("col2im")
def col2im(a: Jet, *args: object) -> Jet:
    return over_batch(a, lambda part: torch.ops.aten.col2im(part, *args), 3)


@rule("constant_pad_nd")
def constant_pad(a: Jet, pad: Sequence[int], value: float = 0) -> Jet:
    return _constant_pad(a, list(pad), value)


def _constant_pad(a: Jet, pad: Sequence[int], value: float | None) -> Jet:
    inside = len(pad) < 2 * a.ndim  # the batch is not padded
    pad_zeros = functools.partial(F.pad, pad=pad)
    padded = _of_images(a, pad_zeros) if inside else a.map(pad_zeros)
    return padded if not value else padded.replace(F.pad(a.primal, pad, value=value), padded.parts)


@rule("pad")
def pad(a: Jet, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Jet:
    if mode == "constant":
        return _constant_pad(a, list(pad), value)
    # a batch (N, C, ...) or C, ... of as many padded dimensions as there are pairs
    ndim = len(pad) // 2 + 2
    return over_batch(a, lambda part: F.pad(part, list(pad), mode), ndim)


for _spatial in (1, 2, 3):
    for _kind in ("reflection", "replication"):
        _name = f"{_kind}_pad{_spatial}d"
        rule(_name)(_over_batch(getattr(torch.ops.aten, _name), _spatial + 2))


def _max_pool(function: Callable, spatial: int) -> Callable[..., Jet]:
    def pooled(a: Jet, *args: object, **options: object) -> Jet:
        options.pop("return_indices", None)
        value, index = function(a.primal, *args, return_indices=True, **options)
        flat = index.flatten(-spatial)

        def picked(part: Tensor) -> Tensor:
            places = flat.expand(part.shape[0], *flat.shape)
            return part.flatten(-spatial).gather(-1, places).reshape(part.shape[0], *index.shape)

        parts = [None if part is None else picked(part) for part in a.parts]
        return a.replace(value, parts)

    return pooled


for _spatial in (1, 2, 3):
    for _name in (f"max_pool{_spatial}d", f"adaptive_max_pool{_spatial}d"):
        rule(_name)(_max_pool(getattr(F, _name), _spatial))


def _each(function: Callable) -> Callable[..., Jet]:
    def mapped(a: Jet, *args: object, **options: object) -> Jet:
        return a.map_each(lambda part: function(part, *args, **options))

    return mapped


_FOURIER = "fft ifft rfft irfft hfft ihfft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn fftshift ifftshift"
for _name in _FOURIER.split():
    rule(f"fft_{_name}")(_each(getattr(torch.fft, _name)))
for _name in ("diag_embed", "diff", "rot90", "fliplr", "flipud"):
    rule(_name)(_each(getattr(torch, _name)))
