"""What has become of a row's integration.  The codes are the kernels'; solvers add MAX_STEPS
and DISCONTINUOUS, likelihoods INACCURATE."""

from fastlik.ops.rk_step.status import Status

__all__ = ["Status"]
