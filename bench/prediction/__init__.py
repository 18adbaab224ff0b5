"""Predictions of a run's cost and memory, made without loading a model."""
