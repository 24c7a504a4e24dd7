"""Native first-order jets of layers between convolutions, beside PyTorch's ways and the bandwidth of a copy.

    pytest benchmarks/bench_native_jets.py --benchmark-only --benchmark-json=run.json
    python -m benchmarks.report run.json --figures benchmarks/results/native_jets.json

The bytes are those that have to be moved: value and tangents, read and written once.
"""

from __future__ import annotations

import statistics

import pytest
import torch
from torch.func import jvp, vmap
from torch.nn import functional as F

from benchmarks.measure import now
from fastlik.ops.activation import activation
from fastlik.ops.normalisation import normalise

SHAPE, GROUPS = (16, 64, 32, 32), 8
ROUNDS, ROUNDING = 30, 2e-5
ORDERS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


def silu(x, tangents, backend):
    return activation(x, tangents, function="silu", backend=backend)


def group_norm(x, tangents, backend):
    return normalise(x, tangents, groups=GROUPS, backend=backend)


# our operation, and PyTorch's, whose group norm has no forward mode with channels last
LAYERS = {"silu": (silu, F.silu), "group norm": (group_norm, lambda x: F.group_norm(x.contiguous(), GROUPS))}


@pytest.mark.parametrize("tangents", [1, 4])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("layer", LAYERS)
def bench_jet(benchmark, layer, order, tangents):
    """Value and tangents; the reference and torch.func.jvp are timed in turn with it."""
    ours, layer_of_torch = LAYERS[layer]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator).contiguous(memory_format=ORDERS[order])
    v = torch.randn(tangents, *SHAPE, generator=generator)
    v = v.flatten(0, 1).contiguous(memory_format=ORDERS[order]).unflatten(0, v.shape[:2])

    def by_func():
        if tangents == 1:
            y, product = jvp(layer_of_torch, (x,), (v[0],))
            return y, product[None]
        return vmap(lambda t: jvp(layer_of_torch, (x,), (t,)), out_dims=(None, 0))(v)

    target = torch.empty_like(v)
    runs = {
        "reference": lambda: ours(x, v, "torch"),
        "torch.func.jvp": by_func,
        "copy": lambda: target.copy_(v),
    }
    expected = [part.double() for part in ours(x.double(), v.double(), "torch")]
    answers = [ours(x, v, "native"), by_func()]
    errors = [
        max(float((a - b).abs().max()) for a, b in zip(answer, expected, strict=True)) for answer in answers
    ]
    times: dict[str, list[float]] = {name: [] for name in runs}

    def run_others() -> None:
        for name, run in runs.items():
            start = now()
            run()
            times[name].append(now() - start)

    with torch.no_grad():
        benchmark.pedantic(lambda: ours(x, v, "native"), setup=run_others, rounds=ROUNDS, warmup_rounds=3)
    benchmark.extra_info |= {"error": errors[0], "torch.func's error": errors[1]}
    if benchmark.stats:
        seconds = benchmark.stats.stats.median
        medians = {name: statistics.median(values) for name, values in times.items()}
        size = 2 * (x.nbytes + v.nbytes)
        benchmark.extra_info |= {
            "reference's time / ours": medians["reference"] / seconds,
            "torch.func.jvp's time / ours": medians["torch.func.jvp"] / seconds,
            "gb_per_s": size / seconds / 1e9,
            "copy_gb_per_s": 2 * v.nbytes / medians["copy"] / 1e9,
            "threads": torch.get_num_threads(),
        }
    assert max(errors) <= ROUNDING
