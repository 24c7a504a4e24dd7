"""Butcher tableaus as data: one explicit Runge-Kutta method, one constant."""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import check_choice


@dataclass(frozen=True)
class Tableau:
    """Stage i is f(t + c_i h, y + h sum_j a_ij k_j); the step is y + h sum_i b_i k_i.

    ``e`` = b - b_hat weighs the stages into the embedded error estimate; None for methods without one.
    Every embedded method here ends with a stage at the step's own result (first same as last).
    """

    name: str
    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    e: tuple[float, ...] | None = None

    @property
    def stages(self) -> int:
        return len(self.b)

    @property
    def adaptive(self) -> bool:
        return self.e is not None


EULER = Tableau("euler", 1, ((),), (1.0,), (0.0,))

# Heun's explicit trapezoid
HEUN = Tableau("heun", 2, ((), (1.0,)), (0.5, 0.5), (0.0, 1.0))

RK4 = Tableau(
    "rk4",
    4,
    ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
    (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    (0.0, 0.5, 0.5, 1.0),
)

# Dormand & Prince 1980, RK5(4)7M
RK45 = Tableau(
    "rk45",
    5,
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)

# Tsitouras 2011, RK5(4) with one simplifying assumption only
_TSIT5_B = (
    0.09646076681806523,
    0.01,
    0.4798896504144996,
    1.379008574103742,
    -3.290069515436081,
    2.324710524099774,
)
TSIT5 = Tableau(
    "tsit5",
    5,
    (
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (
            5.86145544294642,
            -12.92096931784711,
            8.159367898576159,
            -0.071584973281401,
            -0.028269050394068383,
        ),
        _TSIT5_B,
    ),
    (*_TSIT5_B, 0.0),
    (0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    (
        -0.00178001105222577714,
        -0.0008164344596567469,
        0.007880878010261995,
        -0.1447110071732629,
        0.5823571654525552,
        -0.45808210592918697,
        1 / 66,
    ),
)

TABLEAUS = {tableau.name: tableau for tableau in (RK45, TSIT5, RK4, HEUN, EULER)}


def tableau_named(method: str) -> Tableau:
    """The tableau of a method; raises ValueError listing the valid names."""
    check_choice("method", method, TABLEAUS)
    return TABLEAUS[method]
