"""Training objectives."""

from .dsm import dsm_error, dsm_loss, dsm_target
from .time_sampling import (
    importance_normaliser,
    log_snr_range,
    sample_times,
    stratified,
    weight_integral,
)
from .weighting import likelihood_weight, weight

__all__ = [
    "dsm_error",
    "dsm_loss",
    "dsm_target",
    "importance_normaliser",
    "likelihood_weight",
    "log_snr_range",
    "sample_times",
    "stratified",
    "weight",
    "weight_integral",
]
