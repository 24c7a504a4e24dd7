"""The non-stiff problems of DETEST (Hull, Enright, Fellen, Sedgwick 1972; Enright and Pryce 1987).

t from 0 to 20, against DOP853 of scipy at 1e-12.  torchdiffeq's copy of C5 places a planet a hundred billion
astronomical units away; the positions here are those of the paper.
"""

import functools

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import fastlik

# m is numpy or torch, y (..., n): one definition for us and for the reference


def a1(m, t, y):
    return -y


def a2(m, t, y):
    return -0.5 * y**3


def a3(m, t, y):
    return y * m.cos(t)[..., None]


def a4(m, t, y):
    return y / 4 * (1 - y / 20)


def a5(m, t, y):
    return (y - t[..., None]) / (y + t[..., None])


def b1(m, t, y):
    p, q = y[..., 0], y[..., 1]
    return m.stack((2 * (p - p * q), -(q - p * q)), -1)


def b2(m, t, y):
    p, q, r = y[..., 0], y[..., 1], y[..., 2]
    return m.stack((q - p, p - 2 * q + r, q - r), -1)


def b3(m, t, y):
    p, q = y[..., 0], y[..., 1]
    return m.stack((-p, p - q * q, q * q), -1)


def b4(m, t, y):
    p, q, r = y[..., 0], y[..., 1], y[..., 2]
    d = (p * p + q * q) ** 0.5
    return m.stack((-q - p * r / d, p - q * r / d, p / d), -1)


def b5(m, t, y):
    p, q, r = y[..., 0], y[..., 1], y[..., 2]
    return m.stack((q * r, -p * r, -0.51 * p * q), -1)


def c1(m, t, y):
    """A chain of decays at one rate."""
    return m.stack((-y[..., 0], *(y[..., i - 1] - y[..., i] for i in range(1, 9)), y[..., 8]), -1)


def c2(m, t, y):
    """A chain of decays at the rates 1 .. 9."""
    return m.stack(
        (-y[..., 0], *(i * y[..., i - 1] - (i + 1) * y[..., i] for i in range(1, 9)), 9 * y[..., 8]), -1
    )


def c3(m, t, y):
    """Diffusion along a line; C4 is the same with 51 points."""
    n = y.shape[-1]
    zero = 0 * y[..., 0]
    left = [zero, *(y[..., i] for i in range(n - 1))]
    right = [*(y[..., i] for i in range(1, n)), zero]
    return m.stack(left, -1) + m.stack(right, -1) - 2 * y


GRAVITY = 2.95912208286
SUN = 1.00000597682
PLANETS = [0.000954786104043, 0.000285583733151, 0.0000437273164546, 0.0000517759138449, 0.00000277777777778]


def c5(m, t, y):
    """Five outer planets around the sun, y = 15 positions and 15 velocities."""
    place = [y[..., 3 * j : 3 * j + 3] for j in range(5)]
    cubed = [(p * p).sum(-1)[..., None] ** 1.5 for p in place]
    pull = []
    for j in range(5):
        total = -(SUN + PLANETS[j]) * place[j] / cubed[j]
        for k in range(5):
            if k != j:
                between = place[k] - place[j]
                apart = (between * between).sum(-1)[..., None] ** 1.5
                total = total + PLANETS[k] * (between / apart - place[k] / cubed[k])
        pull.append(GRAVITY * total)
    return m.concatenate((y[..., 15:], *pull), -1)


def orbit(m, t, y):
    place = y[..., :2]
    return m.concatenate((y[..., 2:], -place / (place * place).sum(-1)[..., None] ** 1.5), -1)


def e1(m, t, y):
    """Bessel's equation of order 1/2."""
    p, q = y[..., 0], y[..., 1]
    return m.stack((q, -(q / (t + 1) + (1 - 0.25 / (t + 1) ** 2) * p)), -1)


def e2(m, t, y):
    """Van der Pol."""
    p, q = y[..., 0], y[..., 1]
    return m.stack((q, (1 - p * p) * q - p), -1)


def e3(m, t, y):
    """Duffing."""
    p, q = y[..., 0], y[..., 1]
    return m.stack((q, p**3 / 6 - p + 2 * m.sin(2.78535 * t)), -1)


def e4(m, t, y):
    """A falling body in air."""
    q = y[..., 1]
    return m.stack((q, 0.032 - 0.4 * q * q), -1)


def e5(m, t, y):
    """Linear pursuit."""
    q = y[..., 1]
    return m.stack((q, (1 + q * q) ** 0.5 / (25 - t)), -1)


def unit(n):
    return [1.0] + [0.0] * (n - 1)


OUTER_SOLAR_SYSTEM = [
    *(3.42947415189, 3.35386959711, 1.35494901715),
    *(6.64145542550, 5.97156957878, 2.18231499728),
    *(11.2630437207, 14.6952576794, 6.27960525067),
    *(-30.1552268759, 1.65699966404, 1.43785752721),
    *(-21.1238353380, 28.4465098142, 15.3882659679),
    *(-0.557160570446, 0.505696783289, 0.230578543901),
    *(-0.415570776342, 0.365682722812, 0.169143213293),
    *(-0.325325669158, 0.189706021964, 0.0877265322780),
    *(-0.0240476254170, -0.287659532608, -0.117219543175),
    *(-0.176860753121, -0.216393453025, -0.0148647893090),
]
PROBLEMS = {
    "A1": (a1, [1.0]),
    "A2": (a2, [1.0]),
    "A3": (a3, [1.0]),
    "A4": (a4, [1.0]),
    "A5": (a5, [4.0]),
    "B1": (b1, [1.0, 3.0]),
    "B2": (b2, [2.0, 0.0, 1.0]),
    "B3": (b3, [1.0, 0.0, 0.0]),
    "B4": (b4, [3.0, 0.0, 0.0]),
    "B5": (b5, [0.0, 1.0, 1.0]),
    "C1": (c1, unit(10)),
    "C2": (c2, unit(10)),
    "C3": (c3, unit(10)),
    "C4": (c3, unit(51)),
    "C5": (c5, OUTER_SOLAR_SYSTEM),
    "D1": (orbit, [0.9, 0.0, 0.0, (1.1 / 0.9) ** 0.5]),
    "D2": (orbit, [0.7, 0.0, 0.0, (1.3 / 0.7) ** 0.5]),
    "D3": (orbit, [0.5, 0.0, 0.0, 3.0**0.5]),
    "D4": (orbit, [0.3, 0.0, 0.0, (1.7 / 0.3) ** 0.5]),
    "D5": (orbit, [0.1, 0.0, 0.0, 19.0**0.5]),
    "E1": (e1, [0.6713967071418030, 0.09540051444747446]),
    "E2": (e2, [2.0, 0.0]),
    "E3": (e3, [0.0, 0.0]),
    "E4": (e4, [30.0, 0.0]),
    "E5": (e5, [0.0, 0.0]),
}
# well-posed in both directions: no dissipation that grows backwards
REVERSIBLE = ["A3", "B1", "B4", "B5", "C5", "D1", "D3", "D5", "E1"]
TIMES = torch.linspace(0, 20, 11, dtype=torch.float64)


TOLERANCE = 1e-6


@functools.cache
def exact(name):
    """(T, n) the solution at TIMES."""
    f, y0 = PROBLEMS[name]
    solution = solve_ivp(
        lambda t, y: f(np, np.asarray(t), y), (0, 20), y0, "DOP853", t_eval=TIMES, rtol=1e-12, atol=1e-14
    )
    return solution.y.T


def peer(name, y0, t):
    """scipy's RK45, the same pair with a plain controller and no batch: the greatest error, evaluations."""
    f, _ = PROBLEMS[name]
    solution = solve_ivp(
        lambda t, y: f(np, np.asarray(t), y),
        (t[0], t[-1]),
        y0,
        t_eval=t,
        rtol=TOLERANCE,
        atol=TOLERANCE,
    )
    states = exact(name) if t[0] == 0 else exact(name)[::-1]
    return np.abs(solution.y.T - states).max(), solution.nfev


def solve(name, y0, t, tolerance, method="rk45"):
    f, _ = PROBLEMS[name]
    return fastlik.odeint(lambda t, y: f(torch, t, y), y0, t, method=method, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", PROBLEMS)
def test_detest(name):
    """As accurate as scipy's RK45 at the same tolerance, for as many evaluations."""
    y0 = PROBLEMS[name][1]
    error, nfe = peer(name, y0, TIMES)
    for method in ("rk45", "tsit5"):
        solution = solve(name, torch.tensor([y0], dtype=torch.float64), TIMES, TOLERANCE, method)
        assert solution.converged.all()
        assert np.abs(solution.y[:, 0].numpy() - exact(name)).max() < 3 * max(error, TOLERANCE)
        assert solution.nfe[0] <= 1.25 * nfe + 6


@pytest.mark.parametrize("name", REVERSIBLE)
def test_detest_backwards(name):
    y0, back = exact(name)[-1], TIMES.flip(0)
    error, nfe = peer(name, y0, back)
    solution = solve(name, torch.tensor(y0[None]), back, TOLERANCE)
    assert np.abs(solution.y[:, 0].numpy() - exact(name)[::-1]).max() < 3 * max(error, TOLERANCE)
    assert solution.nfe[0] <= 1.25 * nfe + 6


def test_tight_tolerance_agrees_with_scipy():
    y0 = torch.tensor([PROBLEMS["D1"][1], PROBLEMS["D3"][1]], dtype=torch.float64)
    solution = solve("D1", y0, TIMES[:3], 1e-11, "tsit5")
    expected = np.stack([exact("D1")[2], exact("D3")[2]])
    np.testing.assert_allclose(solution.y[-1], expected, rtol=0, atol=2e-9)


@pytest.mark.parametrize("eccentricity", [0.1, 0.5, 0.9])
def test_kepler(eccentricity):
    """Class D in closed form, at a time and in a direction of each row's own."""
    ends = torch.tensor([[0.0, 20.0], [0.0, -7.0], [0.0, 0.3]], dtype=torch.float64)
    y0 = torch.tensor([[1 - eccentricity, 0, 0, ((1 + eccentricity) / (1 - eccentricity)) ** 0.5]] * 3)
    solution = solve("D1", y0.double(), ends, 1e-9)
    anomaly = ends[:, 1].clone()
    for _ in range(60):
        change = anomaly - eccentricity * anomaly.sin() - ends[:, 1]
        anomaly -= change / (1 - eccentricity * anomaly.cos())
    b = (1 - eccentricity**2) ** 0.5
    place = torch.stack((anomaly.cos() - eccentricity, b * anomaly.sin()), 1)
    torch.testing.assert_close(solution.y[-1, :, :2], place, rtol=0, atol=2e-5 / (1 - eccentricity))
