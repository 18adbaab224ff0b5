"""Pipelines in diffusers' format: their files, and what all families of them share."""
