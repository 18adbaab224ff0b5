"""The exponential moving average of the student's weights, as released Flow-GRPO code takes it.

Its EMAModuleWrapper (flow_grpo/ema.py, which DiffusionNFT and DiffusionOPD share) counts OPTIMISER STEPS: with k the
index of the step just taken, from 0, it averages when k + 1 is a multiple of `every`, with the decay
min((1 + k) / (10 + k), decay). The warm-up thus belongs to training, however rarely one averages. The released scripts
pass a counter that is one ahead, and all but DiffusionNFT's call the wrapper once per micro-batch, so that they may
average the same weights several times; neither is followed here.
"""


def averages_at(step: int, every: int) -> bool:
    """Whether weights are averaged after the optimiser step of this index (from 0)."""
    return (step + 1) % every == 0


def decay_at(step: int, largest: float) -> float:
    """What is kept of the average after the optimiser step of this index (from 0): the warm-up, up to `largest`."""
    return min((1 + step) / (10 + step), largest)
