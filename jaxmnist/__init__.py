"""Compact MNIST networks in pure JAX, equal to their PyTorch originals."""

import time

__version__ = "0.2.0"

STARTED = time.perf_counter()
"""When the package was imported, before the libraries that take seconds."""
