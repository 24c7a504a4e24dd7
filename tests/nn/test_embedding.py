import pytest
import torch

from fastlik.nn import TimeEmbedding


def test_embedding_resolves_a_tenth_and_stays_smooth():
    embedding = TimeEmbedding(32)
    time = torch.linspace(-2, 2, 401, dtype=torch.float64)
    features = embedding(time)
    assert features.shape == (401, 32)
    assert features.dtype == torch.float64
    step = (features[10:] - features[:-10]).norm(dim=1)  # a tenth apart
    assert step.min() > 0.5
    slope = (features[1:] - features[:-1]).abs().max() / 0.01
    assert slope < 8.1  # the highest frequency: no wiggle is faster


@pytest.mark.parametrize("features", [0, 3])
def test_odd_widths_are_refused(features):
    with pytest.raises(ValueError, match="even"):
        TimeEmbedding(features)
