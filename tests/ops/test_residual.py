"""Residual sums with a scale: the Triton kernel against float64 PyTorch."""

import pytest
import torch

from fastlik.ops.residual import residual

from .fused import check, normal


def operation(a, b, backend):
    return [residual(a, b, 0.7, backend=backend)]


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (3, 5, 77)])
def test_values_and_gradients(shape):
    check(operation, normal(*shape), normal(*shape, seed=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype):
    check(operation, normal(5, 300, dtype=dtype), normal(5, 300, dtype=dtype, seed=1))


def test_layouts():
    a, b = normal(2, 3, 4, 5).to(memory_format=torch.channels_last), normal(2, 3, 4, 5, seed=1)
    check(operation, a, b)
    check(operation, b, a)
    check(operation, a[:, ::2], b[:, ::2])
    assert residual(a, b, 2.0, backend="triton").is_contiguous(memory_format=torch.channels_last)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="must be alike"):
        residual(normal(2), normal(3), 1.0)
    with pytest.raises(RuntimeError, match="not torch.float64"):
        residual(normal(2).double(), normal(2).double(), 1.0, backend="triton")


def test_the_compiler_traces_it():
    from fastlik.ops.residual.triton import FUSED

    a, b = normal(3, 5).requires_grad_(), normal(3, 5, seed=1).requires_grad_()
    torch.library.opcheck(FUSED.operator, (a, b, 0.5))
