"""Compact MNIST networks in pure JAX, equal to their PyTorch originals."""

__version__ = "0.1.0"
