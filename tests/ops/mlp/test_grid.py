"""Integration on fixed grids: the kernels against the reference, the tables against closed forms."""

import pytest
import torch

from fastlik.derivatives.probes import probe
from fastlik.ops.mlp import Divergence, Ode, Packed, reference
from fastlik.ops.mlp.grid import adams_bashforth, adams_coefficients, gregory_weights, runge_kutta
from fastlik.solvers.tableau import HEUN, RK4, RK45

ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-12}


def ode(u):
    """Some smooth coefficients."""
    return Ode(0.1 + u, 1 + 0.2 * u.sin(), -0.5 * u, 0.7 + 0.1 * u)


def grid(steps, end=1.0):
    return torch.linspace(0, end, steps + 1, dtype=torch.float64)


TABLES = {
    "rk4": lambda: runge_kutta(ode, grid(4), RK4.a, RK4.b, RK4.c),
    "rk45, two steps a node": lambda: runge_kutta(ode, grid(4), RK45.a[:6], RK45.b[:6], RK45.c[:6], 2),
    "backwards": lambda: runge_kutta(ode, grid(3).flip(0), HEUN.a, HEUN.b, HEUN.c),
    "ab4": lambda: adams_bashforth(ode, grid(8), 4, gregory_weights(grid(8))),
    "ab2, trace at every other node": lambda: adams_bashforth(ode, grid(6), 2, _thinned(6)),
}


def _thinned(steps):
    """Two quadratures: trapezoid on every other node, and on all of them."""
    weight = torch.zeros(steps + 1, 2, dtype=torch.float64)
    weight[::2, 0] = 2 / steps
    weight[:, 1] = 1 / steps
    weight[[0, -1]] /= 2
    return weight


CASES = [
    *((table, "film", mode) for table in TABLES for mode in ("none", "rademacher")),
    *(("ab4", "conditional", mode) for mode in ("none", "exact", "rademacher", "gaussian", "frozen")),
    *((table, "two hidden layers", "exact") for table in TABLES),  # in closed form
    ("rk4", "wider", "exact"),  # more tangents than one group has
    ("ab4", "wider", "gaussian"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("table", "name", "mode"), CASES)
def test_native_is_the_reference(table, name, mode, dtype, case, batch):
    _, program, _, _ = case(name, dtype)
    z, _, conditions = batch(program, 13, dtype)
    rows = torch.arange(13) * 1_000_003 + 2**33
    kind = mode if mode in ("rademacher", "gaussian") else "rademacher"
    count = 51 if name == "wider" else 3
    divergence = Divergence(
        {"none": "none", "exact": "exact"}.get(mode, "probes"), count, kind, 7, 5, fresh=mode != "frozen"
    )
    if mode == "exact" and program.trace is not None:
        divergence = Divergence("closed form")

    def probes(node):
        node = 0 if mode == "frozen" else node
        like = z.double()
        draws = [probe(kind, 7, rows, 5 + draw, node, like) for draw in range(count)]
        return torch.stack(draws)

    expected, q = reference.integrate_grid(
        program,
        z.double(),
        {name: values.double() for name, values in conditions.items()},
        TABLES[table](),
        None if mode in ("none", "exact") else probes,
        mode == "exact",
    )
    latent, actual, first_bad = Packed.of(program, dtype).integrate_grid(
        z, conditions, TABLES[table](), divergence, rows
    )
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(latent.double(), expected, rtol=0, atol=ROUNDING[dtype] * scale)
    scale = max(1.0, float(q.abs().max())) if q.numel() else 1.0
    torch.testing.assert_close(actual, q, rtol=0, atol=ROUNDING[dtype] * scale)
    assert bool((first_bad == -1).all())


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_adams_coefficients_integrate_polynomials(order):
    points = [0.1 * k**1.3 for k in range(order)]
    end = points[-1] + 0.07
    found = adams_coefficients(
        torch.tensor([points], dtype=torch.float64), torch.tensor([end], dtype=torch.float64)
    )
    (coefficients,) = found.tolist()
    for power in range(order):
        exact = (end ** (power + 1) - points[-1] ** (power + 1)) / (power + 1)
        sum_of_slopes = sum(c * p**power for c, p in zip(coefficients, points, strict=True))
        assert sum_of_slopes == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_order_of_adams_bashforth(order, case, batch):
    _, program, _, _ = case("silu", torch.float64)
    z, _, conditions = batch(program, 4, torch.float64)

    def end(table):
        return Packed.of(program, torch.float64).integrate_grid(
            z, conditions, table, Divergence("exact"), torch.arange(4)
        )

    fine = end(runge_kutta(ode, grid(400, 2.0), RK4.a, RK4.b, RK4.c))
    errors = []
    for steps in (40, 80):
        points = grid(steps, 2.0)
        points = points + 0.1 * (points * torch.pi / 2).sin()  # not equally spaced
        coarse = end(adams_bashforth(ode, points, order, torch.zeros(steps + 1, 1, dtype=torch.float64)))
        errors.append(float((coarse[0] - fine[0]).abs().max()))
    assert 2 ** (order - 0.5) < errors[0] / errors[1] < 2 ** (order + 1)
    table = adams_bashforth(ode, grid(80, 2.0), 4, gregory_weights(grid(80, 2.0)))
    assert float((end(table)[1] - fine[1]).abs().max()) < 1e-4
    assert table.trace_evaluations == 81


def test_a_row_is_the_same_in_any_batch_and_with_any_number_of_threads(isa, case, batch):
    _, program, _, _ = case("conditional", torch.float32)
    z, _, conditions = batch(program, 150, torch.float32)
    rows = torch.arange(150)
    packed, table = Packed.of(program, torch.float32), TABLES["ab4"]()
    divergence = Divergence("probes", 2)
    whole = packed.integrate_grid(z, conditions, table, divergence, rows)
    torch.set_num_threads(3)
    try:
        threaded = packed.integrate_grid(z, conditions, table, divergence, rows)
    finally:
        torch.set_num_threads(1)
    few = [5, 140, 77]
    taken = {name: values[few] for name, values in conditions.items()}
    part = packed.integrate_grid(z[few], taken, table, divergence, rows[few])
    for a, b, c in zip(whole, threaded, part, strict=True):
        assert torch.equal(a, b) and torch.equal(a[few], c)


def test_rows_that_are_not_finite_are_flagged_alone(isa, case, batch):
    _, program, _, _ = case("conditional", torch.float32)
    z, _, conditions = batch(program, 20, torch.float32)
    packed, table = Packed.of(program, torch.float32), TABLES["rk4"]()
    clean = packed.integrate_grid(z, conditions, table, Divergence("exact"), torch.arange(20))
    z[4] = torch.nan
    conditions["condition"][9] = torch.inf
    latent, q, first_bad = packed.integrate_grid(z, conditions, table, Divergence("exact"), torch.arange(20))
    fine = torch.ones(20, dtype=torch.bool)
    fine[[4, 9]] = False
    assert torch.equal(latent[fine], clean[0][fine]) and torch.equal(q[fine], clean[1][fine])
    assert first_bad[[4, 9]].tolist() == [3, 3]  # the last evaluation of the first step
    assert bool((first_bad[fine] == -1).all())


def test_empty_batch(case):
    _, program, _, _ = case("silu", torch.float64)
    z = torch.zeros(0, 3, dtype=torch.float64)
    latent, q, _ = Packed.of(program, torch.float64).integrate_grid(
        z, {}, TABLES["rk4"](), Divergence("exact"), torch.arange(0)
    )
    assert latent.shape == (0, 3) and q.shape == (0, 1, 1)


def test_tables_that_do_not_fit_are_refused():
    table = TABLES["rk4"]()
    with pytest.raises(ValueError, match="contiguous, on one device and of 16"):
        type(table)(**{**vars(table), "slot": table.slot[:3]})
    with pytest.raises(ValueError, match="slot 9, but there are 4"):
        type(table)(**{**vars(table), "slot": torch.full_like(table.slot, 9)})
    with pytest.raises(ValueError, match="S <= 32"):
        wide = torch.zeros(16, 33, dtype=torch.float64)
        type(table)(**{**vars(table), "stage": wide, "update": wide})
