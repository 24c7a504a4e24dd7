"""Ways to (s, Jv) or (s, v'J) with one vector: jets and the best of plain PyTorch, eager and compiled.

    python -m benchmarks.one_tangent NETWORK WAY

is one way in a process of its own: a failed compilation can leave torch.func broken, and recompilation limits
are a process's.  It prints one line of JSON, ``{"error": ...}`` (relative, against eager float64) or
``{"failed": reason}``, and then its CPU time in seconds for every line that it reads.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import fastlik
from fastlik.derivatives.jets import capture
from fastlik.derivatives.products import vjp as reference_vjp
from fastlik.nn import MLP, UNet

Way = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network in evaluation mode, without layers of zeros, and a batch of 64."""
    torch.manual_seed(0)
    net, x = {
        "mlp": lambda: (MLP(64, width=256), torch.randn(64, 64)),
        "digits": lambda: (UNet(1), torch.randn(64, 1, 8, 8)),
        "mnist": lambda: (UNet(1, attention=False), torch.randn(64, 1, 28, 28)),
        "mnist with attention": lambda: (UNet(1), torch.randn(64, 1, 28, 28)),
    }[name]()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    return net.eval().requires_grad_(False), x


def jets(net: nn.Module, time: Tensor) -> Way:
    return lambda x, v: fastlik.jvp(lambda x: net(x, time), x, v, backend="jets")


def vjp(net: nn.Module, time: Tensor) -> Way:
    """v'J with the activations kept, as in the score_sde code."""

    def run(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = net(leaf, time)
            return value.detach(), torch.autograd.grad(value, leaf, v)[0]

    return run


def func_jvp(net: nn.Module, time: Tensor) -> Way:
    return lambda x, v: torch.func.jvp(lambda x: net(x, time), (x,), (v,))


def func_vjp(net: nn.Module, time: Tensor) -> Way:
    def run(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        value, pull = torch.func.vjp(lambda x: net(x, time), x)
        return value, pull(v)[0]

    return run


def compiled_jets(net: nn.Module, time: Tensor, x: Tensor) -> Way:
    return torch.compile(jets(capture(net, x, time), time), fullgraph=True)


REVERSE = ("vjp", "func.vjp", "vjp channels_last", "compiled vjp", "compiled func.vjp")
EAGER = {"jets": jets, "vjp": vjp, "func.jvp": func_jvp, "func.vjp": func_vjp}
COMPILED = {
    "compiled jets": compiled_jets,
    "compiled vjp": lambda net, time, x: vjp(torch.compile(net, fullgraph=True), time),
    "compiled func.jvp": lambda net, time, x: torch.compile(func_jvp(net, time), fullgraph=True),
    "compiled func.vjp": lambda net, time, x: torch.compile(func_vjp(net, time), fullgraph=True),
}


def make(name: str, way: str) -> tuple[Callable[[], tuple[Tensor, Tensor]], float]:
    """The way as a function of nothing, and the largest error of its products over their largest."""
    net, x = network(name)
    time, v = torch.rand(len(x)), torch.randn_like(x)
    exact = network(name)[0].double()
    product = reference_vjp if way in REVERSE else fastlik.jvp
    truth = product(lambda x: exact(x, time.double()), x.double(), v.double())[1]
    if way == "vjp channels_last":
        net, x, v = (each.to(memory_format=torch.channels_last) for each in (net, x, v))
        run = vjp(net, time)
    else:
        run = EAGER[way](net, time) if way in EAGER else COMPILED[way](net, time, x)
    with torch.no_grad():
        error = (run(x, v)[1] - truth).abs().max() / truth.abs().max()
    return lambda: run(x, v), error.item()


class Process:
    """A way in a process of its own."""

    def __init__(self, network: str, way: str) -> None:
        command = [sys.executable, "-m", "benchmarks.one_tangent", network, way]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )
        self.made = json.loads(self.process.stdout.readline() or '{"failed": "the process died"}')

    def seconds(self) -> float:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64
    try:
        run, error = make(*sys.argv[1:])
    except Exception as reason:
        print(json.dumps({"failed": f"{type(reason).__name__}: {str(reason)[:200]}"}), flush=True)
        return
    print(json.dumps({"error": error}), flush=True)
    with torch.no_grad():
        for _ in sys.stdin:
            start = time.process_time()
            run()
            print(time.process_time() - start, flush=True)


if __name__ == "__main__":
    main()
