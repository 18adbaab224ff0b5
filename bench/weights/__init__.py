"""Weights that others trained: where they lie, and reading them safely."""
