"""Data to try things on, and arrays from files."""

from .digits import digits
from .files import load_array
from .toys import checkerboard, mixture_1d, ring, swissroll

__all__ = ["checkerboard", "digits", "load_array", "mixture_1d", "ring", "swissroll"]
