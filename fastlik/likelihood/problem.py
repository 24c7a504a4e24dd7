"""What is solved for a likelihood, and how a solution looks, whatever the method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..model import ScoreModel
from ..schedule import Schedule, remembered
from ..solvers.clock import Clock
from ..solvers.system import Integration
from ..solvers.tableau import TABLEAUS
from .flow import LikelihoodFlow, Trace
from .gradient import Path
from .prior import Prior

METHODS = ("adams", *TABLEAUS)
PRECISIONS = ("auto", "fp16")
# Runge-Kutta methods and the reverse SDE; beyond high the clock is linear in the angle
CLOCK = Clock(low=0.3, high=3.0)
# a long last step of one evaluation would weigh a noise prediction's error there by 1 / alpha
# (noise-predicting U-Net: 1.3e-3 nats/dim with high = 10, 7e-4 with 30, for the same evaluations)
ADAMS_CLOCK = Clock(low=0.3, high=30.0)


@dataclass(frozen=True)
class Problem:
    """Everything about an evaluation that does not depend on the rows."""

    model: ScoreModel
    t_data: float
    t_prior: float
    prior: Prior
    trace: Trace | None
    method: str
    tolerance: float
    max_steps: int
    backend: str
    target_stderr: float | None = None
    precision: str = "auto"

    @property
    def clock(self) -> Clock:
        """In which variable the method steps."""
        return ADAMS_CLOCK if self.method == "adams" else CLOCK

    @property
    def is_adaptive(self) -> bool:
        """Whether each row has steps of its own."""
        return self.method == "adams" or TABLEAUS[self.method].adaptive

    @property
    def ends(self) -> Ends:
        return _ends(self.model.schedule, self.clock, self.t_data, self.t_prior)

    def flow(self, rows: Tensor, condition: dict) -> LikelihoodFlow:
        """The ODE of the rows with these ids."""
        companion = self.method == "adams"
        return LikelihoodFlow(self.model, self.clock, self.trace, rows, condition, companion)

    def times(self, u: Tensor) -> Tensor:
        """The schedule's times at clock values ``u`` (B,), which most often are one."""
        different = set(u.tolist())
        if len(different) == 1:
            return torch.full_like(u, _time(self.model.schedule, self.clock, different.pop()))
        return self.model.schedule.t_at_angle(self.clock.angle(u))

    def log_prior(self, latent: Tensor) -> Tensor:
        """(B,) float64 nats of latents (B, *event)."""
        if len(latent) == 0:
            return torch.zeros(0, dtype=torch.float64, device=latent.device)
        return self.prior.log_prob(latent)


def everywhere(z: Tensor, u: tuple[float, float]) -> tuple[Tensor, ...]:
    """Each clock value for every row of z: (B,) float64."""
    return tuple(torch.full((len(z),), value, dtype=torch.float64, device=z.device) for value in u)


class Ends(NamedTuple):
    """The scale sqrt(alpha^2 + sigma^2) and the clock at (t_data, t_prior)."""

    scale: tuple[float, float]
    u: tuple[float, float]


@remembered
def _ends(schedule: Schedule, clock: Clock, t_data: float, t_prior: float) -> Ends:
    t = torch.tensor([t_data, t_prior], dtype=torch.float64)
    u = clock.u(schedule.angle(t))
    return Ends(tuple(schedule.scale(t).tolist()), tuple(u.tolist()))


@remembered
def _time(schedule: Schedule, clock: Clock, u: float) -> float:
    return schedule.t_at_angle(clock.angle(torch.tensor(u, dtype=torch.float64))).item()


class Solution(NamedTuple):
    """An integration's ``end`` with int tr dv/dz dphi along it, the variance of that by the probes, and the
    estimated error of the answer, all (B,) float64 nats; the ``path`` by which it can be differentiated."""

    end: Integration
    change: Tensor
    variance: Tensor
    discretisation: Tensor
    path: Path | None = None
