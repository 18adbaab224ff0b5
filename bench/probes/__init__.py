"""Measurements on any method at a frozen student: gradient noise and interference between tasks."""
