"""Kernels: every operation is specified in plain PyTorch and may have faster implementations.

``ops/<op>/reference.py`` is the specification, ``native.py`` calls C++ or CUDA, ``triton.py``
holds Triton kernels; ``ops/<op>/__init__.py`` checks the arguments and follows ``dispatch``.
"""
