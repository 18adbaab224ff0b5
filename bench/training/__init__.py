"""Carries out a run: teachers, the training loop, held-out evaluation."""
