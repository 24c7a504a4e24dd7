"""Probes from counters and their products with Jv: the Triton kernels against the specification."""

import pytest
import torch

from fastlik.derivatives.probes import probe
from fastlik.ops.hutchinson import probes, products

from .fused import DEVICE, check, normal

SEED = (0xFEDCBA98 << 32) | 0x87654321
ROWS = torch.tensor([0, 5, (1 << 40) + (1 << 31) + 3], device=DEVICE)
NODES = torch.tensor([0, 7, (1 << 31) + 1], device=DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("event", [(1,), (33,), (3, 4, 129)])
def test_the_probes_are_fastliks_bit_for_bit(event, dtype):
    like = torch.empty(3, *event, dtype=dtype, device=DEVICE)
    drawn = probes(like, range(3, 5), seed=SEED, rows=ROWS, node=NODES, backend="triton")
    for draw in range(2):
        assert torch.equal(drawn[draw], probe("rademacher", SEED, ROWS, 3 + draw, NODES, like))
    assert torch.equal(probes(like, range(3, 5), seed=SEED, rows=ROWS, node=NODES, backend="torch"), drawn)


@pytest.mark.parametrize("shape", [(2, 3, 1100), (1, 3, 5, 5), (2, 3, 0)])
def test_products_and_their_gradient(shape):
    jv = normal(*shape)

    def operation(jv, backend):
        return [products(jv, range(5, 5 + len(jv)), seed=1, rows=ROWS, node=3, backend=backend).to(jv.dtype)]

    check(operation, jv, tolerance=1e-6)
    total = products(jv, range(5, 5 + len(jv)), seed=1, rows=ROWS, node=3, backend="triton")
    v = probes(jv[0], range(5, 5 + shape[0]), seed=1, rows=ROWS, node=3)
    torch.testing.assert_close(total, (v * jv).flatten(2).double().sum(2), rtol=1e-12, atol=1e-12)


def test_empty_batches_and_misfits():
    nothing = torch.empty(0, 4, device=DEVICE)
    assert probes(nothing, range(2), seed=0, rows=ROWS[:0], backend="triton").shape == (2, 0, 4)
    assert products(nothing[None], range(1), seed=0, rows=ROWS[:0], backend="triton").shape == (1, 0)
    with pytest.raises(ValueError, match=r"must have shape \(0,\)"):
        probes(nothing, range(1), seed=0, rows=ROWS)


def test_the_compiler_traces_it():
    from fastlik.ops.hutchinson.triton import FUSED

    torch.library.opcheck(FUSED.operator, (normal(2, 3, 5).requires_grad_(), ROWS, NODES, 3, 1, 2))
