"""Random numbers keyed by what they are for: a resumed run draws what it would have drawn."""

from __future__ import annotations

from functools import lru_cache
from random import Random

import torch
from torch import Tensor


def seed_generator(device: torch.device, seed: int) -> None:
    """Seed the global generator of a device, and of no other as torch.manual_seed would."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    else:
        torch.random.default_generator.manual_seed(seed)


def stream_seed(seed: int, stream: str, index: int) -> int:
    """A seed for entry ``index`` of a named stream; consecutive entries differ in the low bits."""
    return Random(f"{seed}/{stream}").getrandbits(62) + index


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(stream_seed(seed, "epoch", epoch))
    return torch.randperm(rows, generator=generator)


def batch_rows(seed: int, step: int, batch_size: int, rows: int) -> Tensor:
    """(batch_size,) row numbers of step 0, 1, ...: every epoch is a permutation of all rows.

    Epochs follow each other without a gap, a batch may straddle them.
    """
    position, end = step * batch_size, (step + 1) * batch_size
    pieces = []
    while position < end:
        epoch, offset = divmod(position, rows)
        take = min(rows - offset, end - position)
        pieces.append(_permutation(seed, epoch, rows)[offset : offset + take])
        position += take
    return torch.cat(pieces)
