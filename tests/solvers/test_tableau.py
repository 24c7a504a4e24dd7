"""The tableaus meet the order conditions that make their steps and their dense output what they claim."""

import numpy as np
import pytest

from fastlik.solvers.tableau import TABLEAUS

# Butcher's trees to order 5 as products of c and A, with the density that each must sum to the inverse of
TREES = [
    (1, 1, lambda a, c: np.ones_like(c)),
    (2, 2, lambda a, c: c),
    (3, 3, lambda a, c: c**2),
    (3, 6, lambda a, c: a @ c),
    (4, 4, lambda a, c: c**3),
    (4, 8, lambda a, c: c * (a @ c)),
    (4, 12, lambda a, c: a @ c**2),
    (4, 24, lambda a, c: a @ (a @ c)),
    (5, 5, lambda a, c: c**4),
    (5, 10, lambda a, c: c**2 * (a @ c)),
    (5, 15, lambda a, c: c * (a @ c**2)),
    (5, 20, lambda a, c: (a @ c) ** 2),
    (5, 20, lambda a, c: a @ c**3),
    (5, 30, lambda a, c: c * (a @ (a @ c))),
    (5, 40, lambda a, c: a @ (c * (a @ c))),
    (5, 60, lambda a, c: a @ (a @ c**2)),
    (5, 120, lambda a, c: a @ (a @ (a @ c))),
]
DENSE_ORDER = {"rk45": 4, "tsit5": 4, "rk4": 3, "heun": 2, "euler": 1}


def arrays(tableau):
    a = np.zeros((tableau.stages, tableau.stages))
    for i, row in enumerate(tableau.a):
        a[i, : len(row)] = row
    return a, np.array(tableau.c), np.array(tableau.b), np.array(tableau.dense)


def residual(weights, order, density, tree, a, c, theta=1.0):
    return abs(weights @ tree(a, c) - theta**order / density)


@pytest.mark.parametrize("name", TABLEAUS)
def test_order_of_the_step(name):
    tableau = TABLEAUS[name]
    a, c, b, _ = arrays(tableau)
    np.testing.assert_allclose(a.sum(1), c, atol=1e-14)
    met = [residual(b, *tree, a, c) < 1e-13 for tree in TREES if tree[0] <= tableau.order]
    assert all(met)
    beyond = [residual(b, *tree, a, c) for tree in TREES if tree[0] == tableau.order + 1]
    assert not beyond or max(beyond) > 1e-4


@pytest.mark.parametrize("name", [name for name, tableau in TABLEAUS.items() if tableau.adaptive])
def test_order_of_the_error_estimate(name):
    tableau = TABLEAUS[name]
    a, c, b, _ = arrays(tableau)
    e = np.array(tableau.e)
    for order, _, tree in TREES:
        if order < tableau.order:
            assert abs(e @ tree(a, c)) < 1e-13
    assert max(abs(e @ tree(a, c)) for order, _, tree in TREES if order == tableau.order) > 1e-5
    # the last stage is the first of the next step
    np.testing.assert_allclose(a[-1], b, atol=1e-15)
    assert e[-1] != 0


@pytest.mark.parametrize("theta", [0.0, 0.3, 0.71, 1.0])
@pytest.mark.parametrize("name", TABLEAUS)
def test_order_of_the_dense_output(name, theta):
    a, c, b, dense = arrays(TABLEAUS[name])
    weights = dense @ theta ** np.arange(1, dense.shape[1] + 1)
    for tree in TREES:
        if tree[0] <= DENSE_ORDER[name]:
            assert residual(weights, *tree, a, c, theta) < 1e-13
    if theta == 1:
        np.testing.assert_allclose(weights, b, atol=1e-13)
