"""Denoising score matching of second and third order (Lu et al. 2022, ICML).

With the residual r(eps) of :mod:`.residual`, M = dr/deps and T the gradient of tr M, all at one draw,

    second order:  M against r r',          third order:  T against 2 M r + tr(M) r - ||r||^2 r,

where the right-hand sides are constants (no gradient flows through r and M there): that bounds the errors of
the second and third score by those of the lower ones.  In the units of the paper M = I + sigma^2 grad s and
T = sigma^3 grad tr grad s.  The forms differ in what is compared and in how many directions it takes:

    second  "full"            ||M - r r'||^2, all d^2 entries, d directions
            "trace"           (tr M - ||r||^2)^2, d directions
            "product"         ||M v - (v'r) r||^2 for a probe v; its expectation is "full"
            "quadratic"       (v'M v - (v'r)^2)^2, as released; its expectation is "trace" plus the
                              variance over probes
            "quadratic-pair"  the product of two such residuals with independent probes; expectation "trace"
    third   "full"            ||T - target||^2, d directions and a reverse pass
            "vector-laplacian"  sum of d^2 r[e, e] over the unit directions e in place of T: the same where M
                              is symmetric, as it is at the optimum, and without a reverse pass
            "gradient"        the same of v'M v for a probe v, as released; expectation "full" plus variance
            "laplacian"       d^2 r[v, v] in place of the gradient of v'M v, likewise
            "mixed"           u' times the residual of "gradient" with a second probe u, without a reverse
                              pass; the same expectation as "gradient", a d-th of its information
            "...-pair"        products of residuals with independent probes; expectation that of "full"

"+" adds forms of second order.  Second-order errors are divided by d^2, third-order errors by d^3, as in the
released image experiments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_choice, check_count
from ..derivatives.expansion import Expansion, expand
from ..derivatives.jets import Captured
from ..likelihood.tangents import native_expansion
from ..model import ScoreModel
from .residual import NoiseResidual

ORDERS = (1, 2, 3)
SECOND_FORMS = ("full", "trace", "product", "quadratic", "quadratic-pair")
THIRD_FORMS = (
    "full", "vector-laplacian", "gradient", "gradient-pair", "laplacian", "laplacian-pair", "mixed",
    "mixed-pair",
)  # fmt: skip
_EXACT = {"full", "trace", "vector-laplacian"}
EXACT_UP_TO = 3
"""Up to this size "auto" takes all d directions."""


class Errors(NamedTuple):
    """Errors (B,) of each order, in the data's dtype; None beyond the order asked for."""

    first: Tensor
    second: Tensor | None = None
    third: Tensor | None = None


class Forms(NamedTuple):
    """Resolved forms of second and third order; ``third`` is None for order 2."""

    second: tuple[str, ...]
    third: str | None

    @property
    def exact(self) -> bool:
        """Whether all d unit directions are needed."""
        return bool(_EXACT & {*self.second, self.third})

    @property
    def sampled(self) -> bool:
        """Whether probes are needed."""
        return bool({*self.second, self.third} - _EXACT - {None})

    @property
    def reverses(self) -> bool:
        """Whether a reverse pass is taken inside the loss, which torch.compile refuses."""
        return self.third in ("full", "gradient", "gradient-pair")


def choose_forms(order: int, second: str, third: str, size: int, probes: int) -> Forms:
    """What "auto" and "+" stand for, for events of ``size`` numbers.

    "auto" is "full" and "vector-laplacian" up to 3 dimensions; above, "product+quadratic" and "laplacian",
    from two probes on their "-pair".

    Raises ValueError for unknown names (the valid ones are listed) and for a pair of one probe.
    """
    check_choice("order", order, ORDERS)
    check_count("probes", probes)
    pair = "-pair" if probes > 1 else ""
    if second == "auto":
        second = "full" if size <= EXACT_UP_TO else f"product+quadratic{pair}"
    if third == "auto":
        third = "vector-laplacian" if size <= EXACT_UP_TO else f"laplacian{pair}"
    names = tuple(name.strip() for name in second.split("+"))
    for name in names:
        check_choice("second", name, ("auto", *SECOND_FORMS))
    check_choice("third", third, ("auto", *THIRD_FORMS))
    forms = Forms(names if order > 1 else (), third if order > 2 else None)
    for name in (*forms.second, forms.third):
        if name and name.endswith("-pair") and probes < 2:
            raise ValueError(f"{name!r} takes at least two probes a row, got probes={probes}")
    return forms


def draw_probes(x0: Tensor, count: int) -> Tensor:
    """(count, B, *event) Rademacher signs from torch's global generator."""
    return 2.0 * torch.randint(2, (count, *x0.shape), device=x0.device).to(x0.dtype) - 1


def high_order_errors(
    model: ScoreModel,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    forms: Forms,
    probes: Tensor | None = None,
    mixing: Tensor | None = None,
    backend: str = "auto",
    captured: Captured | None = None,
    **condition: object,
) -> Errors:
    """The errors of each order at x_t = alpha(t) x_0 + sigma(t) eps, each (B,).

    Args:
        x0: data (B, *event), d coordinates each.
        t: times (B,) float64 on the schedule's axis.
        noise: eps, like x0.
        forms: from :func:`choose_forms`.
        probes: v (K, B, *event), for the forms that take some; for third order "mixed" also
            ``mixing``, u (B, *event).
        backend: of the derivatives, "jets", "torch" (plain autograd, the reference), "auto", or "native": as
            "auto", but an MLP's on the CPU in C++ where they can be, differentiable once.
        captured: the model's graph, which jets go through under torch.compile.
    """
    residual = NoiseResidual(model, x0, t, noise, condition, captured)
    if not forms.second:
        return Errors(_mean_square(residual.value(residual.network(residual.x))))
    none = x0.new_empty(0, *x0.shape)
    basis = _basis(x0) if forms.exact else none
    sampled = probes if forms.sampled else none
    directions = torch.cat((basis, sampled))
    d, size = len(basis), x0[:1].numel()
    lines, expansion = residual.sigma * directions, None
    more = _third_derivatives(forms, residual, directions, d, mixing)
    if backend == "native":
        backend = "auto"
        expansion = native_expansion(model, residual.x, t, lines, condition, **more)
    if expansion is None:
        expansion = expand(residual.network, residual.x, lines, backend=backend, **more)
    r = residual.value(expansion.value).flatten(1)
    m = residual.first(expansion.first, directions).flatten(2)
    whole = Products(r.detach(), basis.flatten(2), m[:d])
    along = Products(r.detach(), sampled.flatten(2), m[d:])
    second = sum(_SECOND[name](whole, along) for name in forms.second) / size**2
    third = None
    if forms.third is not None:
        third = _third(forms.third, residual, expansion, whole, along, mixing) / size**3
    return Errors(_mean_square(r), second, third)


class Products(NamedTuple):
    """r (B, d) detached, directions v and M v, both (K, B, d)."""

    r: Tensor
    v: Tensor
    mv: Tensor

    @property
    def vr(self) -> Tensor:
        """v'r (K, B, 1)."""
        return _inner(self.v, self.r)

    @property
    def vmv(self) -> Tensor:
        """v'M v (K, B, 1)."""
        return _inner(self.v, self.mv)

    def gaps(self) -> Tensor:
        """M v - (v'r) r, (K, B, d)."""
        return self.mv - self.vr * self.r

    def quadratic_gaps(self) -> Tensor:
        """v'M v - (v'r)^2, (K, B, 1)."""
        return self.vmv - self.vr**2

    def third_targets(self) -> Tensor:
        """What the gradient of v'M v is compared with, (K, B, d), a constant."""
        mv, vr = self.mv.detach(), self.vr
        return _inner(self.v, mv) * self.r + 2 * vr * mv - vr**2 * self.r


_SECOND: dict[str, Callable[[Products, Products], Tensor]] = {
    "full": lambda whole, along: whole.gaps().square().sum((0, 2)),
    "trace": lambda whole, along: whole.quadratic_gaps().sum(0).square().sum(-1),
    "product": lambda whole, along: along.gaps().square().sum(-1).mean(0),
    "quadratic": lambda whole, along: _squared(along.quadratic_gaps()),
    "quadratic-pair": lambda whole, along: _paired(along.quadratic_gaps()),
}


def _third_derivatives(
    forms: Forms, residual: NoiseResidual, directions: Tensor, d: int, mixing: Tensor | None
) -> dict[str, object]:
    """The arguments of ``expand`` for the third order."""
    form = forms.third
    if form is None:
        return {}
    if form.startswith("mixed"):
        return {"mixing": residual.sigma * mixing}
    if form == "vector-laplacian" and not forms.sampled:
        return {"collapse": True}
    if "laplacian" in form:
        return {"second": True}
    cotangents = residual.gain * directions
    if form == "full":
        cotangents[d:] = 0
    return {"cotangents": cotangents, "joint": form == "full"}


def _third(
    form: str,
    residual: NoiseResidual,
    expansion: Expansion,
    whole: Products,
    along: Products,
    mixing: Tensor | None,
) -> Tensor:
    """(B,) squared residuals of third order."""
    d = len(whole.v)
    if expansion.second is None:
        derivatives = residual.gradient(expansion.gradient).flatten(2)
    else:
        derivatives = residual.second(expansion.second).flatten(2)
    if form in _EXACT:
        gap = derivatives[:d].sum(0) - whole.third_targets().sum(0)  # of one, where it is their sum already
        return gap.square().sum(-1)
    if form.startswith("mixed"):
        gaps = _inner(along.v, derivatives[d:]) - _inner(mixing.flatten(1), along.third_targets())
    else:
        gaps = derivatives[d:] - along.third_targets()
    return _paired(gaps) if form.endswith("-pair") else _squared(gaps)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _squared(gaps: Tensor) -> Tensor:
    """||mean over K||^2 of (K, B, n): its expectation carries the variance over probes, divided by K."""
    return gaps.mean(0).square().sum(-1)


def _paired(gaps: Tensor) -> Tensor:
    """Mean of the products of different probes' gaps (K, B, n): the square of their expectation, unbiased."""
    count = len(gaps)
    return (gaps.sum(0).square() - gaps.square().sum(0)).sum(-1) / (count * (count - 1))


def _mean_square(r: Tensor) -> Tensor:
    return r.flatten(1).square().mean(1)


def _basis(x0: Tensor) -> Tensor:
    """All d unit directions, (d, B, *event)."""
    size = x0[0].numel() if len(x0) else 0
    unit = torch.eye(size, dtype=x0.dtype, device=x0.device)
    return unit.reshape(-1, 1, *x0.shape[1:]).expand(-1, *x0.shape)
