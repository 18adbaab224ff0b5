"""Reward tasks: prompts and scorers."""
