"""Backbones: policies that turn prompts into images."""
