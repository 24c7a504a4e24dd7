"""One rule an operation; importing this package fills the registry."""

from . import (
    arithmetic,
    attention,
    constant,
    convolution,
    matrix,
    normalisation,
    pointwise,
    reduction,
    resampling,
    selection,
    shape,
)

__all__ = [
    "arithmetic",
    "attention",
    "constant",
    "convolution",
    "matrix",
    "normalisation",
    "pointwise",
    "reduction",
    "resampling",
    "selection",
    "shape",
]
