"""What has become of a row's integration.  The codes are the kernels'; solvers add MAX_STEPS
and DISCONTINUOUS, likelihoods INACCURATE."""

from torch import Tensor

from fastlik.ops.rk_step.status import Status

__all__ = ["Status", "all_done"]


def all_done(status: Tensor) -> bool:
    """Whether every row of status (B,) ended well; of few rows, a list is quicker than a reduction."""
    return set(status.tolist()) <= {int(Status.DONE)}
