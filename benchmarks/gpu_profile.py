"""One right-hand side of an image model on a GPU: ways to compute f and v'Jv, and where the time goes.

    python -m benchmarks.gpu_profile build/gpu

Writes profile.json (times, peak memory, errors) and kernels.txt (the profiler's table) there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

import fastlik
from benchmarks.bench_triton import milliseconds

BATCHES = (8, 256)
Step = Callable[[], tuple[Tensor, Tensor]]
Result = TypeVar("Result")


def network() -> nn.Module:
    """About a DDPM++ for 32 x 32 images, without dropout."""
    torch.manual_seed(0)
    net = fastlik.nn.UNet(3, width=128, multipliers=(1, 2, 2), blocks=2, groups=32)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.02)
    return net.cuda().eval().requires_grad_(False)


def steps(net: nn.Module, batch: int, dtype: torch.dtype, channels_last: bool) -> dict[str, Step]:
    """name -> () -> (f(x), v'Jv)."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(dtype=dtype, memory_format=layout)
    generator = torch.Generator("cuda").manual_seed(1)
    x, v = (
        torch.randn(batch, 3, 32, 32, device="cuda", generator=generator).to(dtype, memory_format=layout)
        for _ in range(2)
    )
    time = torch.full((batch,), 0.3, device="cuda", dtype=dtype)

    def product(jv: Tensor) -> Tensor:
        return (v * jv).flatten(1).double().sum(1)

    def vjp() -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        value = net(leaf, time)
        return value.detach(), product(torch.autograd.grad(value, leaf, v)[0])

    @torch.no_grad()
    def jets() -> tuple[Tensor, Tensor]:
        value, jv = fastlik.jvp(lambda x: net(x, time), x, v, backend="jets")
        return value, product(jv)

    return {"vjp": vjp, "jets": jets}


def graphed(step: Callable[[], Result]) -> Callable[[], Result]:
    """The step as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()

    def replay() -> Result:
        graph.replay()
        return results

    return replay


def peak_bytes(step: Step) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(batch: int) -> list[dict[str, object]]:
    """Every way at one batch size, its v'Jv against the float32 VJP's."""
    net, records, truth = network(), [], None
    for dtype, channels_last in ((torch.float32, False), (torch.bfloat16, True)):
        for name, step in steps(net, batch, dtype, channels_last).items():
            products = step()[1]
            truth = products if truth is None else truth
            ways = {name: step}
            if name == "jets":
                ways[f"{name}, one CUDA graph"] = graphed(step)
            for way, run in ways.items():
                error = (run()[1] - truth).abs().max() / truth.abs().max()
                records.append(
                    {
                        "way": way,
                        "dtype": str(dtype).removeprefix("torch."),
                        "layout": "NHWC" if channels_last else "NCHW",
                        "batch": batch,
                        "milliseconds": milliseconds(run),
                        "peak_bytes": peak_bytes(step),
                        "error": error.item(),
                    }
                )
    return records


def kernels() -> str:
    """The profiler's table of one right-hand side in bfloat16, NHWC."""
    step = steps(network(), BATCHES[-1], torch.bfloat16, True)["jets"]
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    return profile.key_averages().table(sort_by="cuda_time_total", row_limit=25, max_name_column_width=70)


def main(folder: Path) -> None:
    records = [record for batch in BATCHES for record in measure(batch)]
    (folder / "profile.json").write_text(json.dumps(records, indent=1))
    (folder / "kernels.txt").write_text(kernels())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
