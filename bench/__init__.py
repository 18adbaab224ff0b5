"""Sampler kernels, training loop, store and command line shared by every method."""

__version__ = "0.2.0"
