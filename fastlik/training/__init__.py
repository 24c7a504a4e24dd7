"""Training runs and their checkpoints."""

from .checkpoint import load
from .dequantisation import DequantiserRun, load_dequantiser, train_dequantiser
from .loop import Run, train

__all__ = ["DequantiserRun", "Run", "load", "load_dequantiser", "train", "train_dequantiser"]
