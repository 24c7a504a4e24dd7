"""The table of rules: how an operation, named as in ATen, acts on jets.

A rule takes the operation's own arguments with jets in place of some tensors.  It is called only where there
is a jet among them.
"""

from __future__ import annotations

from collections.abc import Callable

Rule = Callable[..., object]

RULES: dict[str, Rule] = {}
# operations without a derivative: comparisons, indices, shapes; they see the primal alone
CONSTANT: set[str] = set()
# operations whose result may share memory with their argument
VIEWS: set[str] = set()


def rule(*names: str, view: bool = False) -> Callable[[Rule], Rule]:
    """Register a function as the rule of the operations ``names``."""

    def register(function: Rule) -> Rule:
        for name in names:
            assert name not in RULES, name
            RULES[name] = function
            if view:
                VIEWS.add(name)
        return function

    return register
