"""Denoisers D(x, sigma): networks of EDM and EDM2, and k-diffusion's wrappers."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ..model import ScoreModel, wrap
from ..schedule import EDM


def from_denoiser(
    net: Callable[..., Tensor],
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    moments: tuple[object, object] | None = None,
) -> ScoreModel:
    """A network called as ``net(x, sigma, **condition)``, sigma (B,), that returns the denoised x, alpha = 1.

    Args:
        net: of EDM's training code with its preconditioning, or in one of ``k_diffusion.external``'s wrappers
            (``quantize=False``, for a likelihood needs every sigma).
        sigma_min, sigma_max: bounds of the noise; default the network's own attributes where they are
            positive and finite, else 0.002 and 80 (Karras et al. 2022).
        moments: as for :func:`fastlik.wrap`.
    """
    bounds = EDM()
    low = sigma_min or _own(net, "sigma_min", bounds.sigma_min)
    high = sigma_max or _own(net, "sigma_max", bounds.sigma_max)
    return wrap(net, EDM(low, high), "x0", time="sigma", moments=moments)


def _own(net: object, name: str, default: float) -> float:
    value = float(getattr(net, name, default))
    return value if 0 < value < math.inf else default
