"""A batch evaluated some rows at a time, so that memory is bounded and an interruption loses little."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import checks
from ..model import ScoreModel, evaluating
from ..progress import progress_bar
from .result import EvaluationInterrupted, Result, concatenate


def evaluate_by_chunks(
    evaluate: Callable[[slice, int], Result],
    finish: Callable[[Result], Result],
    model: ScoreModel,
    x: Tensor,
    chunk: str | int,
    progress: bool,
    draws: int = 1,
) -> Result:
    """The results of all rows of ``x``, put together and finished.

    Args:
        evaluate: of the rows of a slice, with so many samples in the network at once.
        finish: completes the result, or what there is of it when it is interrupted.
        chunk: samples at once, or "auto".
        draws: samples that every row needs.

    Raises:
        EvaluationInterrupted: on Ctrl-C after the first chunk, with the rows finished so far.
    """
    done: list[Result] = []
    with evaluating(model), progress_bar(progress, total=len(x), unit="row") as bar:
        try:
            for part in _by_chunks(evaluate, x, chunk, draws):
                done.append(part)
                bar.update(len(part))
        except KeyboardInterrupt as interrupt:
            if not done:
                raise
            raise EvaluationInterrupted(finish(concatenate(done)), len(x)) from interrupt
    return finish(concatenate(done))


def _by_chunks(
    evaluate: Callable[[slice, int], Result], x: Tensor, chunk: str | int, draws: int
) -> Iterator[Result]:
    """Results of some rows at a time; "auto" halves the chunk where memory runs out."""
    size = _chunk_size(chunk, x)
    start = 0
    while start < len(x) or start == 0:
        rows = max(1, size // draws)
        try:
            yield evaluate(slice(start, start + rows), size)
        except torch.OutOfMemoryError:
            if chunk != "auto" or size == 1:
                raise
            size = size // 2
            continue
        start += rows


def _chunk_size(chunk: str | int, x: Tensor) -> int:
    if chunk != "auto":
        checks.check_count("chunk", chunk)
        return chunk
    size = max(16, 2**22 // max(1, math.prod(x.shape[1:])))
    # a kernel's call on the CPU cannot be interrupted; this many rows take it a few seconds
    return min(size, 2**14) if x.is_cpu else size
