"""Runs as jobs: local processes or Slurm jobs, the launches that they belong to, and their states."""
