"""Training objectives."""

from .dequantisation import dequantisation_loss
from .dsm import dsm_error
from .high_order import Errors, Forms, choose_forms, draw_probes, high_order_errors
from .loss import draw, dsm_loss, hdsm_loss, weighted_errors
from .residual import NoiseResidual, dsm_target
from .time_sampling import (
    importance_normaliser,
    log_snr_range,
    sample_times,
    stratified,
    weight_integral,
)
from .weighting import above_noise, likelihood_weight, order_weight, weight

__all__ = [
    "Errors",
    "Forms",
    "NoiseResidual",
    "above_noise",
    "choose_forms",
    "dequantisation_loss",
    "draw",
    "draw_probes",
    "dsm_error",
    "dsm_loss",
    "dsm_target",
    "hdsm_loss",
    "high_order_errors",
    "importance_normaliser",
    "likelihood_weight",
    "log_snr_range",
    "order_weight",
    "sample_times",
    "stratified",
    "weight",
    "weight_integral",
    "weighted_errors",
]
