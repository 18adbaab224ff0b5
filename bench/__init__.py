"""The benchmark harness that all methods share: sampler kernels, training loop, storage and the command line."""

__version__ = "0.2.0"
