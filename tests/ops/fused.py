"""Fused operations against their float64 references: values and gradients, on the GPU or interpreted."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDING = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def normal(*shape, dtype=torch.float32, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    values = scale * torch.randn(shape, dtype=torch.float64, generator=generator)
    return values.to(DEVICE, dtype)


def assert_close(actual, expected, tolerance, name=""):
    """Each number to ``tolerance`` of the largest expected one, or of 1."""
    assert actual.shape == expected.shape, name
    if not expected.numel():
        return
    assert torch.isfinite(expected).all(), name
    error = (actual.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-2)
    assert error <= tolerance, f"{name}: relative error {error:.1e}"


def check(operation, *tensors, tolerance=None, gradients=True):
    """operation(*tensors, backend=) in Triton against the same in float64 PyTorch, with all gradients.

    ``tensors``: some may be None.
    """
    given = [t for t in tensors if t is not None]
    tolerance = tolerance or ROUNDING[given[0].dtype]
    results, grads = [], []
    for backend, dtype in (("triton", None), ("torch", torch.float64)):
        # the layout of the tensor itself is under test: only its copy in float64 may be contiguous
        leaves = [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
        outputs = operation(*leaves, backend=backend)
        results.append(outputs)
        if gradients:
            weights = [normal(*o.shape, dtype=o.dtype, seed=9 + i) for i, o in enumerate(outputs)]
            inputs = [leaf for leaf in leaves if leaf is not None]
            grads.append(torch.autograd.grad(outputs, inputs, weights, materialize_grads=True))
    assert len(results[0]) == len(results[1])
    for index, (actual, expected) in enumerate(zip(*results, strict=True)):
        assert actual.dtype == given[0].dtype
        assert_close(actual, expected, tolerance, f"result {index}")
    for index, (actual, expected) in enumerate(zip(*grads, strict=True) if gradients else ()):
        assert_close(actual, expected, 2 * tolerance, f"gradient {index}")
