"""What has become of a row's integration."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """State of one row; int32 in tensors.  Everything but RUNNING and DONE is a failure."""

    RUNNING = 0
    DONE = 1
    UNDERFLOW = 2
    NON_FINITE = 3
    MAX_STEPS = 4
    INACCURATE = 5
    DISCONTINUOUS = 6

    @property
    def description(self) -> str:
        """One line for messages and reports."""
        return _DESCRIPTIONS[self]


_DESCRIPTIONS = {
    Status.RUNNING: "not at the end of the time span yet",
    Status.DONE: "reached the end of the time span within the tolerance",
    Status.UNDERFLOW: "the tolerance needs a step below the resolution of the time variable",
    Status.NON_FINITE: "the right-hand side or the state became NaN or infinite",
    Status.MAX_STEPS: "the maximum number of steps was used up before the end of the time span",
    Status.INACCURATE: "the estimated error stayed above five times the tolerance",
    Status.DISCONTINUOUS: "the right-hand side jumps, or all but jumps, which its divergence does not show",
}
