"""Polynomials through unevenly spaced nodes and their integrals: for multistep methods and quadrature."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

# Gauss-Legendre with three points integrates polynomials up to degree five exactly: six nodes
_GAUSS = ((-(0.6**0.5), 5 / 9), (0.0, 8 / 9), (0.6**0.5, 5 / 9))


def lagrange_weights(nodes: Tensor, valid: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Weights (..., k) float64 of the integral from start to end of the polynomial through the nodes.

    nodes (..., k) float64 in any order, k <= 6; those that are not ``valid`` (..., k) do not take part
    and get weight 0.  start, end (...): within the nodes' range or beyond it (extrapolation).
    """
    points, gauss = _gauss(nodes.device)
    half = 0.5 * (end - start)
    at = (0.5 * (start + end))[..., None] + half[..., None] * points
    # the points lie between the nodes, so that a product without its own factor is a quotient
    distance = torch.where(valid[..., None, :], at[..., None] - nodes[..., None, :], 1.0)
    integral = (gauss * distance.prod(-1))[..., None] / distance
    return torch.where(valid, half[..., None] * integral.sum(-2) / _gaps(nodes, valid), 0.0)


def lagrange_basis(nodes: Tensor, valid: Tensor, at: Tensor) -> Tensor:
    """(..., k) values at ``at`` (...), none of the valid nodes, of their Lagrange polynomials; else 0."""
    distance = torch.where(valid, at[..., None] - nodes, 1.0)
    return torch.where(valid, distance.prod(-1, keepdim=True) / distance / _gaps(nodes, valid), 0.0)


@cache
def _gauss(device: torch.device) -> tuple[Tensor, Tensor]:
    """Points and weights, copied to the device once: each copy makes the host wait."""
    table = torch.tensor(_GAUSS, dtype=torch.float64, device=device)
    return table[:, 0].contiguous(), table[:, 1].contiguous()


def _gaps(nodes: Tensor, valid: Tensor) -> Tensor:
    """(..., k) product over the other valid nodes of node - other."""
    own = torch.eye(nodes.shape[-1], dtype=torch.bool, device=nodes.device)
    gap = nodes[..., :, None] - nodes[..., None, :]
    return torch.where(own | ~valid[..., None, :], 1.0, gap).prod(-1)
