"""Jets: derivatives of unmodified networks along directions, as ordinary tensors.

A jet is a tensor together with its derivatives along K directions.  A network called on a jet returns the
jet of its output: linear layers act on the primal and its tangents alike, nonlinearities follow the chain
rule, and everything is plain tensor operations, so that autograd differentiates by parameters and
torch.compile fuses.  ``fastlik.jvp``, ``fastlik.jet`` and ``fastlik.divergence`` are the public entries:

    value, jv = fastlik.jvp(f, x, v)                             # f(x), J v
    value, jv, second = fastlik.jet(f, x, v, 2)                  # and D^2 f[v, v]
    value, ju, jv, uv = fastlik.jet(f, x, (u, v))                # and D^2 f[u, v]: u' grad(v' J v) = v' uv
    value, jv, laplacian = fastlik.jet(f, x, v, collapse=True)   # and sum over k of D^2 f[v_k, v_k]

x is (B, *event), directions are like x or (K, *x.shape), f is any module or function of x; conditions and
times go into a closure, ``lambda x: net(x, t)``, and carry no derivatives.  All results are differentiable
by parameters (and by x) where grad mode is enabled; nothing is stored where it is not.  Derivatives are
those of the values computed: ``detach`` stops them, ``torch.no_grad`` inside a network does not.  For
torch.compile, ``capture`` first turns a module into its graph of operations:

    graph = capture(net, x, t)
    fast = torch.compile(lambda x, t, v: fastlik.jvp(lambda x: graph(x, t), x, v), fullgraph=True)

How it is made: ``layout`` says which derivatives are carried and how they combine, ``jet`` holds them,
``rules`` has one rule an operation (``rules.fused`` those that one kernel does for value and tangents),
``eager`` and ``traced`` let a jet pass through Python code, ``capture`` through an exported graph,
``fallback`` differentiates what has no rule, ``push`` is the entry.  docs/jets.md says more.
"""

from .capture import Captured, capture
from .errors import NoDerivative
from .jet import Jet
from .layout import ALONG, COLLAPSED, MIXED, Layout

__all__ = ["ALONG", "COLLAPSED", "MIXED", "Captured", "Jet", "Layout", "NoDerivative", "capture"]
