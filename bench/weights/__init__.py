"""Pretrained weights: finding and downloading them, and reading them safely."""
