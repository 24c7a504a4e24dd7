"""Closed-form oracles, data distributions whose diffusions are known at every noise level, and a count of
the reads that make the host wait for an accelerator."""

from .gaussian import misfit_gaussian_log_density, quantised_gaussian_log_mass
from .host_reads import HostReads
from .mixture import GaussianMixture

__all__ = ["GaussianMixture", "HostReads", "misfit_gaussian_log_density", "quantised_gaussian_log_mass"]
