"""Score networks, and their descriptions from which a checkpoint rebuilds them."""

from __future__ import annotations

from torch import nn

from ..checks import check_choice
from .dequantiser import FlowDequantiser
from .dit import DiT
from .embedding import TimeEmbedding
from .mlp import MLP
from .unet import UNet

__all__ = ["MLP", "DiT", "FlowDequantiser", "TimeEmbedding", "UNet", "build", "describe"]

_NETWORKS = {"MLP": MLP, "UNet": UNet, "DiT": DiT}


def describe(net: nn.Module) -> dict | None:
    """A JSON-able description of a network of this package; None for any other module."""
    name = type(net).__name__
    return {"name": name, **net.config} if type(net) is _NETWORKS.get(name) else None


def build(description: dict) -> nn.Module:
    """The network, freshly initialised, that :func:`describe` described.

    Raises ValueError for an unknown name, listing the valid ones.
    """
    arguments = dict(description)
    name = arguments.pop("name", None)
    check_choice("network", name, _NETWORKS)
    return _NETWORKS[name](**arguments)
