"""The exponential moving average (EMA) of the student's weights, as in the released Flow-GRPO code.

EMAModuleWrapper in flow_grpo/ema.py, which DiffusionNFT and DiffusionOPD share, counts optimiser steps. With k the
index of the step just taken, from 0, it averages when k + 1 is a multiple of `every`, with decay
min((1 + k) / (10 + k), decay). The warm-up therefore follows training progress, not the number of averages taken.

Two details of the released scripts are not reproduced: they pass a counter that is one step ahead, and all except
DiffusionNFT's call the wrapper once per micro-batch, so that the same weights may be averaged several times.
"""


def averages_at(step: int, every: int) -> bool:
    """Whether to average the weights after the optimiser step with this index (from 0)."""
    return (step + 1) % every == 0


def decay_at(step: int, largest: float) -> float:
    """The EMA decay after the optimiser step with this index (from 0): warmed up, at most `largest`."""
    return min((1 + step) / (10 + step), largest)
