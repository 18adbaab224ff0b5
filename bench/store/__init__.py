"""A run's folder: writing its records and checkpoints, reading them back, and checking them for damage."""
