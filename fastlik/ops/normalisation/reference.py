"""Jets of group, layer and RMS normalisation in plain PyTorch: the specification of the kernels."""

from __future__ import annotations

from torch import Tensor

from fastlik.ops.activation import reference as pointwise


def normalise(
    x: Tensor,
    first: Tensor,
    second: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    centred: bool,
    function: str,
) -> list[Tensor]:
    """function(scale * normalised + shift); see ``fastlik.ops.normalisation``, which checks the arguments.

    x: (N, C, *space), normalised over each of ``groups`` groups of channels and over space.
    """
    grouped = (len(x), groups, x.shape[1:].numel() // groups)
    parts = [x[None], first, *([] if second is None else [second])]
    c = [part.reshape(len(part), *grouped) for part in parts]
    if centred:
        c = [part - part.mean(-1, keepdim=True) for part in c]
    collapsed = second is not None and len(second) != len(first)
    jet = [part.reshape(len(part), *x.shape) for part in _over_deviation(c, eps, collapsed)]
    if scale is not None:
        jet = [part * _per_sample(scale, x) for part in jet]
    if shift is not None:
        jet[0] = jet[0] + _per_sample(shift, x)
    value, *derivatives = jet
    return pointwise.activation(value[0], *derivatives, *[None] * (3 - len(parts)), None, function, 1.0, 1)


def _over_deviation(c: list[Tensor], eps: float, collapsed: bool) -> list[Tensor]:
    """The jet of c / sqrt(mean of squares + eps) over the last dimension, by Leibniz' rule."""

    def mean(product: Tensor) -> Tensor:
        return product.mean(-1, keepdim=True)

    r = (mean(c[0] * c[0]) + eps).rsqrt()
    q1 = 2 * mean(c[0] * c[1])
    r1 = -r.pow(3) * q1 / 2
    jet = [c[0] * r, c[1] * r + c[0] * r1]
    if len(c) > 2:
        sums = [2 * mean(c[1] * c[1]), q1 * q1, c[1] * r1]
        if collapsed:
            sums = [each.sum(0, keepdim=True) for each in sums]
        q2 = sums[0] + 2 * mean(c[0] * c[2])
        r2 = 3 / 4 * r.pow(5) * sums[1] - r.pow(3) * q2 / 2
        jet.append(c[2] * r + 2 * sums[2] + c[0] * r2)
    return jet


def _per_sample(values: Tensor, x: Tensor) -> Tensor:
    """(M, C), each row for N / M successive samples, shaped to broadcast against x (N, C, *space)."""
    values = values.repeat_interleave(len(x) // max(1, len(values)), 0)
    return values.reshape(*values.shape, *[1] * (x.dim() - 2))
