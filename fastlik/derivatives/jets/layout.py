"""Which derivatives a jet carries, and how they combine in products and compositions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations, product

PRIMAL = -1


class Layout:
    """The derivatives of a curve or surface x(e) at e = 0, each named by its directions.

    Along one direction, order 3: (0,), (0, 0), (0, 0, 0).  Mixed, of two directions: (0,), (1,), (0, 1).
    Derivatives themselves, not Taylor coefficients: nothing is divided by a factorial.

    Attributes:
        components: the names, every sub-name before the names that contain it.
        order: the largest number of directions in a name.
        collapsed: index of the component of which only the sum over the K directions is kept, or None.
        products: for every component, the terms (multiplicity, i, j) of Leibniz' rule for a * b; an index
            is a component of a factor, or PRIMAL.
        partitions: for every component, the terms of Faa di Bruno's formula for f(x): pairs (m, products of
            which f^(m) is the factor), each product as (multiplicity, components).
    """

    def __init__(self, components: tuple[tuple[int, ...], ...], collapsed: int | None = None) -> None:
        self.components = components
        self.collapsed = collapsed
        self.order = max(map(len, components))
        self.products = tuple(tuple(self.assignments(name, 2)) for name in components)
        self.partitions = tuple(tuple(self._partitions(name)) for name in components)

    def assignments(self, name: tuple[int, ...], factors: int) -> Iterator[tuple[int, int, ...]]:
        """(multiplicity, component of each factor): every way to deal a derivative's directions out."""
        deals = Counter()
        for deal in product(range(factors), repeat=len(name)):
            shares = [tuple(d for d, to in zip(name, deal, strict=True) if to == f) for f in range(factors)]
            deals[tuple(map(self._index, shares))] += 1
        return ((multiplicity, *deal) for deal, multiplicity in deals.items())

    def _index(self, name: tuple[int, ...]) -> int:
        return self.components.index(name) if name else PRIMAL

    def _partitions(self, name: tuple[int, ...]) -> Iterator[tuple[int, tuple]]:
        counts = Counter()
        for blocks in _set_partitions(tuple(range(len(name)))):
            names = [tuple(name[slot] for slot in block) for block in blocks]
            counts[tuple(sorted(map(self._index, names)))] += 1
        for m in range(1, len(name) + 1):
            yield m, tuple((count, blocks) for blocks, count in counts.items() if len(blocks) == m)


def _set_partitions(slots: tuple[int, ...]) -> Iterator[list[tuple[int, ...]]]:
    if not slots:
        yield []
        return
    first, rest = slots[0], slots[1:]
    for size in range(len(rest) + 1):
        for others in combinations(rest, size):
            left = tuple(slot for slot in rest if slot not in others)
            for partition in _set_partitions(left):
                yield [(first, *others), *partition]


# derivatives along each of K directions, by order
ALONG = {order: Layout(tuple((0,) * n for n in range(1, order + 1))) for order in (1, 2, 3)}
# all mixed derivatives of n different directions, by n
MIXED = {n: Layout(tuple(c for r in range(n) for c in combinations(range(n), r + 1))) for n in (2, 3)}
# first derivatives along each of K directions, and the sum of the second
COLLAPSED = Layout(((0,), (0, 0)), collapsed=1)
