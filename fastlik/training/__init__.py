"""Training runs and their checkpoints."""

from .checkpoint import load
from .loop import Run, train

__all__ = ["Run", "load", "train"]
