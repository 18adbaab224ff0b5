"""Sigma schedules, one-step transitions, the step kernel and rollouts. Knows no backbone and no method."""
