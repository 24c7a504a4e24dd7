"""What networks of images take."""

from __future__ import annotations

from torch import Tensor, nn


def check_images(net: nn.Module, x: Tensor, label: Tensor | None, factor: int, fewer: str) -> None:
    """Raise ValueError unless x is (B, channels, H, W) with sides that are multiples of ``factor``, and there
    is a label where ``net.config`` has classes; ``fewer``: with what a network would take such sides."""
    name, channels, classes = type(net).__name__, net.config["channels"], net.config["classes"]
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"this {name} takes x of shape (B, {channels}, H, W), got {tuple(x.shape)}")
    if x.shape[2] % factor or x.shape[3] % factor:
        raise ValueError(
            f"the sides of the image must be multiples of {factor}, got {tuple(x.shape[2:])}; "
            f"pad or crop the images, or build the {name} with {fewer}"
        )
    if (label is not None) != bool(classes):
        raise ValueError(
            f"this {name} has {classes} classes: "
            + ("pass label=, integers (B,)" if classes else "it takes no label")
        )
