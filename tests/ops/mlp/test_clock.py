"""Tables of functions of the clock."""

import pytest
import torch

from fastlik.ops.mlp.clock import tabulate


@pytest.mark.parametrize("span", [(-3.0, 4.0), (4.0, -3.0)])
def test_smooth_functions_to_rounding(span):
    def functions(u):
        return torch.stack((u.exp(), 1 / (1 + u**2), torch.atan2(u.sinh(), u.cosh()), torch.zeros_like(u)))

    table = tabulate(functions, *span)
    u = torch.linspace(*span, 1001, dtype=torch.float64)
    expected = functions(u)
    assert float((table(u) - expected).abs().max()) < 1e-11
    assert bool((table.breaks.diff() > 0).all())


def test_kinks_are_where_panels_meet():
    table = tabulate(lambda u: (u - 0.3).abs()[None], 0.0, 1.0, kinks=[0.3, 2.0])
    u = torch.linspace(0, 1, 501, dtype=torch.float64)
    assert float((table(u) - (u - 0.3).abs()).abs().max()) < 1e-13
    assert len(table.values) == 2


def test_functions_that_are_not_smooth_are_refused():
    with pytest.raises(ValueError, match="not smooth"):
        tabulate(lambda u: (3000 * u).floor()[None], 0.0, 1.0)
