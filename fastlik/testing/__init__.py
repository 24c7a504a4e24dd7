"""Closed-form oracles: data distributions whose diffusions are known at every noise level."""

from .gaussian import misfit_gaussian_log_density, quantised_gaussian_log_mass
from .mixture import GaussianMixture

__all__ = ["GaussianMixture", "misfit_gaussian_log_density", "quantised_gaussian_log_mass"]
