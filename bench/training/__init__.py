"""Carrying out a run: teachers, the loop, held-out evaluation."""
