"""Measurements on any method at a frozen student: gradient noise, interference between tasks, over-optimisation."""
