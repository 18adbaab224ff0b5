"""Hyperparameter studies over runs, with Optuna: `bench sweep sweeps/opd.yaml`."""
