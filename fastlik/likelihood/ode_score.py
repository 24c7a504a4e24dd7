"""The score of the density that a model's ODE defines: ``fastlik.ode_score``.

Along dz/dphi = v(z, phi) the score a = grad log p(z) of the flow's own density obeys

    da/dphi = -grad tr(dv/dz) - (dv/dz)' a

(Lu et al. 2022, appendix; from the gradient of d log p / dphi = -tr dv/dz), starting from the prior's score.
It differs from the model's score except for special models: the difference is what first-order score
matching leaves uncontrolled.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution

from .. import checks
from ..derivatives.divergence import METHODS, choose_method
from ..derivatives.probes import PROBES
from ..derivatives.probes import probe as draw_probe
from ..derivatives.taylor import jvp
from ..model import ScoreModel, check_model, coefficients, evaluating, per_row
from ..solvers.odeint import odeint
from .flow import take_rows
from .prior import Prior, choose_prior
from .problem import CLOCK
from .tangents import native_tangents


def ode_score(
    model: ScoreModel,
    x: Tensor,
    t: Tensor | float | None = None,
    *,
    condition: dict | None = None,
    rows: Tensor | None = None,
    method: str = "rk45",
    tolerance: float = 1e-4,
    divergence: str = "auto",
    probes: int = 1,
    probe: str = "rademacher",
    seed: int = 0,
    prior: str | Distribution = "auto",
    t_max: float | None = None,
    max_steps: int = 1000,
) -> Tensor:
    """grad_x log p_t(x), p_t the density of the model's probability-flow ODE at time t; like x.

    The ODE is solved from x to the prior, and back from there together with the score.

    Args:
        model: from :func:`fastlik.wrap` or :func:`fastlik.train`.
        x: (B, *event), points of the process at time t, float32 or float64.
        t: a number or (B,) on the schedule's time axis; default its data end.
        condition: keyword arguments of the network; tensors of B rows are split with x.
        rows: (B,) integer ids that key the random probes, default 0 .. B-1.
        method, tolerance, max_steps: "rk45" or "tsit5", and the relative and absolute local error allowed
            of the state and of the score in units of the noise.
        divergence: "exact" (the trace from d unit vectors), "hutchinson", or "auto": exact up to 16
            dimensions.
        probes, probe, seed: number, kind ("rademacher" or "gaussian") and seed of Hutchinson's probes, which
            stay the same along the ODE: the estimate is unbiased in the trace.
        prior: as in :func:`fastlik.ode_nll`.
        t_max: where the prior is; default the schedule's.

    Returns:
        Scores in x's dtype; rows that failed are NaN and named in a warning.

    Raises:
        TypeError, ValueError: bad input; the message says what to change.
    """
    check_model(model)
    checks.check_batch(x)
    checks.check_choice("divergence", divergence, METHODS)
    checks.check_choice("probe", probe, PROBES)
    checks.check_choice("method", method, ("rk45", "tsit5"))
    checks.check_positive("tolerance", tolerance)
    for name, value in (("probes", probes), ("max_steps", max_steps)):
        checks.check_count(name, value)
    schedule = model.schedule
    t_prior = schedule.t_prior if t_max is None else float(t_max)
    start = _start(schedule.t_data if t is None else t, x)
    if bool((start == t_prior).any()):
        raise ValueError(f"t must lie between the data and the prior, not at the prior's end t = {t_prior}")
    if len(x) == 0:
        return x.clone()
    rows = torch.arange(len(x), device=x.device) if rows is None else rows
    with evaluating(model), torch.inference_mode(False):
        # what was made in inference mode cannot be differentiated through
        x, start = x.clone(), start.clone()
        distribution = choose_prior(prior, model, t_prior, x[0].numel(), x.device)
        directions = _directions(x, divergence, probes, probe, seed, rows)
        flow = _ScoreFlow(model, x.shape[1:], _cloned(condition or {}), directions)
        solver = {"method": method, "rtol": tolerance, "atol": tolerance, "max_steps": max_steps}
        return _solve(flow, x, start, t_prior, distribution, solver)


def _directions(x: Tensor, divergence: str, probes: int, kind: str, seed: int, rows: Tensor) -> Tensor:
    """(K, B, *event) whose v'Jv add up to the trace, or to its estimate."""
    size = x[0].numel()
    if choose_method(divergence, size) == "exact":
        basis = torch.eye(size, dtype=x.dtype, device=x.device)
        return basis.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
    draws = [draw_probe(kind, seed, rows, k, 0, x) for k in range(probes)]
    return torch.stack(draws) / probes**0.5


def _cloned(condition: dict) -> dict:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in condition.items()}


def _solve(flow: _ScoreFlow, x: Tensor, start: Tensor, t_prior: float, prior: Prior, solver: dict) -> Tensor:
    """To the prior with the state alone, and back with the score."""
    schedule, size = flow.model.schedule, x[0].numel()
    span = torch.stack((start, torch.full_like(start, t_prior)), 1)
    span = CLOCK.u(schedule.angle(span))
    scale, end = per_row(schedule.scale(start), x), float(schedule.scale(t_prior))
    number = flow.UNIT * torch.arange(len(x), device=x.device, dtype=x.dtype)[:, None]
    there = odeint(flow.state, torch.cat((number, (x / scale).flatten(1)), 1), span, **solver)
    result = torch.full_like(x, torch.nan)
    alive = there.converged.nonzero().flatten()
    if len(alive):
        latent = there.y[-1, alive, 1:]
        score = end * _gradient(prior.log_prob, end * latent)
        both = torch.cat((number[alive], latent, score), 1)
        back = odeint(flow.state_and_score, both, span[alive].flip(1), **solver)
        result[alive] = back.y[-1, :, 1 + size :].reshape(-1, *x.shape[1:]) / scale[alive]
    return result


class _ScoreFlow:
    """dz/du, and d(z, a)/du with a = grad log p(z), for whichever rows the solver still moves.

    States are (b, 1 + d) and (b, 1 + 2 d): the row's number rides along as a constant, so that its probes and
    conditions are found, in a unit so small that no step size depends on it.
    """

    UNIT = 2.0**-80

    def __init__(self, model: ScoreModel, event: torch.Size, condition: dict, directions: Tensor) -> None:
        self.model, self.event = model, event
        self.condition, self.directions = condition, directions

    def state(self, u: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            z = y[:, 1:].reshape(-1, *self.event)
            v = self._field(u, y, z)(z)
        return self._slope(u, v)

    def state_and_score(self, u: Tensor, y: Tensor) -> Tensor:
        size = (y.shape[1] - 1) // 2
        z, score = (part.reshape(-1, *self.event) for part in (y[:, 1 : 1 + size], y[:, 1 + size :]))
        directions = self.directions[:, self._rows(y)]
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            v, products = self._tangents(u, y, z, directions)
            scalar = (directions * products).sum() + (score * v).sum()
            (gradient,) = torch.autograd.grad(scalar, z)
        return self._slope(u, v.detach(), -gradient)

    def _field(self, u: Tensor, y: Tensor, z: Tensor) -> Callable[[Tensor], Tensor]:
        angle, condition = CLOCK.angle(u), self._conditions(y)
        return self.model.field(angle, z, condition)

    def _tangents(self, u: Tensor, y: Tensor, z: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """v and its derivatives along the directions."""
        model = self.model
        t = model.schedule.t_at_angle(CLOCK.angle(u))
        scale = per_row(model.schedule.scale(t), z)
        x, moved = scale * z, scale * directions
        found = native_tangents(model, x, t, moved, self._conditions(y), parameters=False)
        if found is None:
            return jvp(self._field(u, y, z), z, directions)
        v = coefficients("v", model.predicts, model.schedule, t, model.sigma_data)
        return v(x, found[0]), per_row(v.of_x, z) * moved + per_row(v.of_output, z) * found[1]

    def _conditions(self, y: Tensor) -> dict:
        index, batch = self._rows(y), self.directions.shape[1]
        return {name: take_rows(value, index, batch) for name, value in self.condition.items()}

    def _rows(self, y: Tensor) -> Tensor:
        return (y[:, 0] / self.UNIT).long()

    def _slope(self, u: Tensor, *parts: Tensor) -> Tensor:
        rate = CLOCK.rate(u).to(parts[0].dtype)[:, None]
        return torch.cat((torch.zeros_like(rate), *(rate * part.flatten(1) for part in parts)), 1)


def _start(t: Tensor | float, x: Tensor) -> Tensor:
    """(B,) float64 times."""
    t = torch.as_tensor(t, dtype=torch.float64, device=x.device)
    if t.dim() and t.shape != x.shape[:1]:
        raise ValueError(f"t must be a number or of shape ({len(x)},), one time a row, got {tuple(t.shape)}")
    return t.expand(len(x))


def _gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient of f(x) (B,), each row's own, like x (B, d)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(f(x).sum(), x)[0]
