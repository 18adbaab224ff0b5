"""Sigma schedules, transition kernels, sampling steps and rollouts, independent of backbones and methods."""
