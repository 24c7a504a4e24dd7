"""Who is compared, and at which accuracy settings."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import pytest
from torch import Tensor

from .workloads import Workload

TOLERANCES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)
STEPS = (4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 128)


@dataclass(frozen=True)
class Method:
    """A way to the likelihood.

    ``module`` in ``peers`` needs ``package``; ``practice`` is the accuracy setting that people use,
    ``ladder`` all that are tried, loosest first.  ``options`` go to the module's ``likelihood``,
    ``uncounted`` only where the time is measured (compiled code hides its FLOPs from the counter).
    ``one_probe``: it takes a frozen probe on every workload.
    """

    name: str
    module: str
    package: str
    practice: float
    ladder: tuple[float, ...] = TOLERANCES
    unit: str = "tolerance"
    options: tuple[tuple[str, object], ...] = ()
    uncounted: tuple[tuple[str, object], ...] = ()
    one_probe: bool = False

    def __str__(self) -> str:
        return self.name

    def answer(self, workload: Workload) -> Tensor:
        """The number that this method's error is measured from."""
        return workload.frozen if self.one_probe else workload.answer

    @cache  # noqa: B019 - a few methods and workloads, each compiled at most once
    def likelihood(self, workload: Workload, counted: bool = False) -> Callable[[float], Tensor]:
        """The function from the accuracy setting to -log p; skips the test without ``package``."""
        pytest.importorskip(self.package, reason=f"this peer needs: pip install {self.package}")
        module = importlib.import_module(f"benchmarks.peers.{self.module}")
        options = dict(self.options) | ({} if counted else dict(self.uncounted))
        return module.likelihood(workload, **options)


# with a mode of its own the network is evaluated in Python, where it can be counted: the same steps
FASTLIK = Method(
    "fastlik",
    "fastlik_ode",
    "fastlik",
    1e-3,
    options=(("mode", "jvp"),),
    uncounted=(("mode", "auto"),),
)
FASTLIK_FROZEN = replace(
    FASTLIK, name="fastlik, frozen probe", options=(("mode", "jvp"), ("probe_mode", "frozen"))
)
TORCHDIFFEQ = Method("torchdiffeq dopri5", "torchdiffeq_dopri5", "torchdiffeq", 1e-5)
TORCHODE = Method("torchode dopri5", "torchode_dopri5", "torchode", 1e-5)
SCORE_SDE = Method("scipy RK45 as in score_sde", "scipy_score_sde", "scipy", 1e-5, one_probe=True)
# nothing is published for a fixed grid: 32 steps cost about what dopri5 costs in practice
RK4 = Method("RK4 in log sigma", "torch_rk4", "torch", 32, STEPS, "steps")
COMPILED = replace(RK4, name="RK4 in log sigma, compiled", uncounted=(("compiled", True),))

_IN_LOG_SIGMA = (("clock", "log_sigma"),)
# the adaptive peers are used in t; where the error is what counts, they also get the better clock
BETTER_CLOCK = tuple(
    replace(method, name=f"{method} in log sigma", options=_IN_LOG_SIGMA)
    for method in (TORCHDIFFEQ, TORCHODE)
)
