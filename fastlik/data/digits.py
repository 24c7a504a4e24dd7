"""scikit-learn's handwritten digits: small real images with 17 grey levels."""

from __future__ import annotations

import torch
from torch import Tensor


def digits(seed: int = 0) -> tuple[Tensor, Tensor]:
    """(train, test): int64 levels 0..16 of shape (1500, 1, 8, 8) and (297, 1, 8, 8).

    Args:
        seed: of the random split, so that everybody's test images are the same.

    Raises:
        ImportError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("fastlik.data.digits needs scikit-learn: pip install fastlik[data]") from error
    images = torch.as_tensor(load_digits().images).long().unsqueeze(1)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[:1500]], images[order[1500:]]
