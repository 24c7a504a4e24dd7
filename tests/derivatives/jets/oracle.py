"""Jets of a function against nested reverse-mode derivatives, float64."""

import torch

import fastlik
from fastlik.derivatives.products import derivatives_along, mixed_derivatives


def directions(x, count=2, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *x.shape, dtype=x.dtype, generator=generator)


def assert_close(actual, expected, tolerance=1e-10):
    scale = max(expected.abs().max().item(), 1e-3) if expected.numel() else 1.0
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    error = (actual - expected).abs().max().item() if expected.numel() else 0.0
    assert error <= tolerance * scale, f"relative error {error / scale:.1e}"


def check(f, x, *, reference=None, order=3, tolerance=1e-10, backend="jets"):
    """Value, derivatives along K directions of every order, mixed and collapsed, with and without autograd,
    against nested reverse mode of ``reference`` (f itself unless given)."""
    v = directions(x)
    reference = reference or f
    expected = derivatives_along(reference, x, v, order)
    for recording in (False, True):
        with torch.set_grad_enabled(recording):
            for n in range(1, order + 1):
                for result, truth in zip(fastlik.jet(f, x, v, n, backend=backend), expected, strict=False):
                    assert_close(result, truth, tolerance)
    if order >= 2:
        second = fastlik.jet(f, x, v, 2, collapse=True, backend=backend)[2]
        assert_close(second, expected[2].sum(0), tolerance)
        mixed = fastlik.jet(f, x, (v[:1], v[1:]), backend=backend)
        for result, truth in zip(mixed, mixed_derivatives(reference, x, (v[:1], v[1:])), strict=True):
            assert_close(result, truth, tolerance)
