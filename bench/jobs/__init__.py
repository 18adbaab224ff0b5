"""Runs as jobs: processes of this machine or of Slurm, their launches and their states."""
