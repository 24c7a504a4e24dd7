"""What jets cannot go through."""


class NoDerivative(NotImplementedError):
    """An operation that jets cannot go through; plain autograd may."""
