"""What a base is pretrained on: how many samples of which captions, at which learning rate."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One stage of pretraining."""

    samples: int
    """Samples to train on, with repetition."""
    pictures: int
    """Distinct images in the corpus."""
    rate: float
    """Peak learning rate."""
    distant: float
    """Fraction of the object images that are distant views."""
    kinds: dict[str, float]
    """Fraction of each kind of caption."""


MICRO_STAGES = (
    Stage(1_000_000, 200_000, 2e-3, 0.35, {
        "single_object": 0.06, "colors": 0.10, "two_object": 0.12, "counting": 0.12, "position": 0.20,
        "color_attr": 0.20, "sign": 0.08, "illustration": 0.12,
    }),
    Stage(300_000, 100_000, 1e-3, 0.45, {
        "single_object": 0.06, "colors": 0.08, "two_object": 0.08, "counting": 0.09, "position": 0.18,
        "color_attr": 0.14, "sign": 0.25, "illustration": 0.12,
    }),
)  # fmt: skip
STUDY_STAGES = (
    MICRO_STAGES[0],
    Stage(300_000, 100_000, 1e-3, 0.45, {
        "single_object": 0.06, "colors": 0.08, "two_object": 0.10, "counting": 0.11, "position": 0.20,
        "color_attr": 0.16, "sign": 0.15, "illustration": 0.14,
    }),
)  # fmt: skip
"""As `micro`, with fewer signs at the end: with micro's share, a base of twelve shapes spelled .84 of the validation
signs exactly, which left a reward for spelling little to add."""
