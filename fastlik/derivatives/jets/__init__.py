"""Jets: derivatives of unmodified networks along directions, as ordinary tensors.

A jet is a tensor together with its derivatives along K directions.  A network called on a jet returns the jet
of its output: linear layers act on the primal and its tangents as one batch, nonlinearities follow the chain
rule, and everything is plain tensor operations, so that autograd differentiates by parameters and torch.compile
fuses.  ``fastlik.jvp``, ``fastlik.jet`` and ``fastlik.divergence`` are the public entries:

    value, jv = fastlik.jvp(f, x, v)                             # f(x), J v
    value, jv, second = fastlik.jet(f, x, v, 2)                  # and D^2 f[v, v]
    value, ju, jv, uv = fastlik.jet(f, x, (u, v))                # and D^2 f[u, v]: grad(v' J v) . u = v' uv
    value, jv, laplacian = fastlik.jet(f, x, v, collapse=True)   # and sum over k of D^2 f[v_k, v_k]

x is (B, *event), directions are like x or (K, *x.shape), f any module or function of x; conditions and times go
into a closure, ``lambda x: net(x, t)``, and carry no derivatives.  All results are differentiable by
parameters (and by x) where grad mode is enabled; nothing is stored where it is not.  For torch.compile,
``capture`` first turns a module into its graph of operations.

How it is made: ``layout`` says which derivatives are carried and how they combine, ``jet`` holds them, ``rules``
has one rule an operation, ``eager`` and ``traced`` let a jet pass through Python code, ``capture`` through an exported
graph, ``fallback`` differentiates what has no rule, ``push`` is the entry.
"""

from .capture import Captured, capture
from .errors import NoDerivative
from .jet import Jet
from .layout import ALONG, COLLAPSED, MIXED, Layout

__all__ = ["ALONG", "COLLAPSED", "MIXED", "Captured", "Jet", "Layout", "NoDerivative", "capture"]
