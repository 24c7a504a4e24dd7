"""Denoisers D(x, sigma): networks of EDM and EDM2, and k-diffusion's wrappers."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ..checks import check_positive
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

    Raises ValueError for bounds that are no finite numbers above 0.
    """
    bounds = EDM()
    low = _own(net, "sigma_min", bounds.sigma_min) if sigma_min is None else sigma_min
    high = _own(net, "sigma_max", bounds.sigma_max) if sigma_max is None else sigma_max
    for name, value in (("sigma_min", low), ("sigma_max", high)):
        check_positive(name, value)
    return wrap(net, EDM(low, high), "x0", time="sigma", moments=moments)


def _own(net: object, name: str, default: float) -> float:
    value = float(getattr(net, name, default))
    return value if 0 < value < math.inf else default
