"""Optuna studies over runs: `bench sweep sweeps/opd.yaml`."""
