"""Splines of the unit interval: increasing, onto, with the slope that they say."""

import torch

from fastlik.nn.spline import parameter_count, rational_quadratic


def random_splines(*shape, bins=5, scale=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, parameter_count(bins), generator=generator, dtype=torch.float64)


def test_zeros_are_the_identity():
    x = torch.linspace(0, 1, 101, dtype=torch.float64)
    y, log_slope = rational_quadratic(x, torch.zeros(101, parameter_count(7), dtype=torch.float64))
    torch.testing.assert_close(y, x, rtol=0, atol=1e-14)
    torch.testing.assert_close(log_slope, torch.zeros_like(x), rtol=0, atol=1e-13)


def test_they_increase_from_0_to_1_without_a_jump():
    x = torch.linspace(0, 1, 20001, dtype=torch.float64).expand(6, -1)
    y, log_slope = rational_quadratic(x, random_splines(6, 1).expand(-1, 20001, -1))
    assert (y[:, 0] == 0).all()
    torch.testing.assert_close(y[:, -1], torch.ones(6).double(), rtol=0, atol=1e-14)
    assert (y.diff() > 0).all()
    # the slope is continuous, so that the trapezium rule gives the rise
    rise = torch.trapezoid(log_slope.exp(), x)
    torch.testing.assert_close(rise, torch.ones(6).double(), rtol=0, atol=1e-3)


def test_the_slope_is_autograds():
    x = torch.rand(50, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    y, log_slope = rational_quadratic(x, random_splines(50, 3))
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_slope, slope.log())


def test_gradients_of_values_and_slopes():
    x = torch.rand(4, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    parameters = random_splines(4, 2, bins=3, scale=0.5).requires_grad_()
    assert torch.autograd.gradcheck(rational_quadratic, (x, parameters))


def test_extreme_parameters_stay_finite_in_float32():
    x = torch.linspace(0, 1, 1001).expand(8, -1)
    parameters = random_splines(8, 1001, scale=30.0).float().requires_grad_()
    y, log_slope = rational_quadratic(x, parameters)
    assert y.isfinite().all() and log_slope.isfinite().all() and (y >= 0).all() and (y <= 1 + 1e-6).all()
    (gradient,) = torch.autograd.grad((y + log_slope).sum(), parameters)
    assert gradient.isfinite().all()
