"""Runs and studies from Python: as pandas frames, and a run's student as a pipeline of stock diffusers."""

from bench.results.frames import evaluations, metrics, scores, trials
from bench.results.result import Result, results

__all__ = ["Result", "evaluations", "metrics", "results", "scores", "trials"]
