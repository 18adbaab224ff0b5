"""Published schedules of the old policy, which follows the student: old = decay * old + (1 - decay) * student."""

# The decay after k optimiser steps. In released code "slow" and "late" are "type 1" and "type 2" of DiffusionNFT, and
# "short" is that of AWM; DGPO's is the same with k - 1. "long" is CRD's (arXiv 2603.14128, Table 3).
OLD_DECAY = {
    "slow": lambda k: min(0.001 * k, 0.5),
    "late": lambda k: 0.0 if k < 75 else min(0.0075 * (k - 75), 0.999),
    "none": lambda k: 0.0,
    "short": lambda k: min(0.001 * k, 0.3),
    "long": lambda k: min(0.25 + 0.005 * k, 0.999),
}
