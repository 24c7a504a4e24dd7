"""Jacobian-vector products, divergences and their counter-based probes."""
