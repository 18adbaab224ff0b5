"""The drawn worlds: `micro`, on which this project was developed, and those of the study (results/reference/study).

They share how pictures are drawn and captions are worded, and the architecture. They differ in shapes, in the seed of
everything that is drawn (base, codec, preference model, prompts), and in how prompts are divided into splits.
"""

from dataclasses import dataclass, field
from pathlib import Path

from bench.backbones.micro.files import RECIPES, WEIGHTS
from bench.backbones.micro.stages import MICRO_STAGES, STUDY_STAGES, Stage
from bench.backbones.micro.world import SHAPES, STUDY_SHAPES
from bench.errors import MissingError


@dataclass(frozen=True)
class DrawnWorld:
    """One drawn world. Its base, its tasks' prompts and its preference model are functions of these values."""

    name: str
    """Name of the backbone and of the world in the tasks' tables."""
    shapes: tuple[str, ...]
    seed: int
    """Seed of pretraining, of the preference model and, with a number of its own for each task, of prompts."""
    stages: tuple[Stage, ...]
    """What the base is pretrained on."""
    larger: dict[str, int]
    """Held-out split -> how many times as many images it has as the one of `micro`."""
    by_meaning: bool
    """Whether splits have no meaning in common. Otherwise they only have no text in common, and "a circle and a square"
    can be in one and "a square and a circle" in another."""
    weights: Path
    recipes: tuple[Path, ...]
    """Folders of recipes, the first of which counts (Descriptor.recipes)."""
    headlines: dict[str, str] = field(default_factory=dict)
    """Task -> its headline metric in this world, where it is a stricter one than the trained reward's."""

    @property
    def base(self) -> Path:
        """Folder of the base's weights."""
        return self.weights / "base"

    @property
    def preference(self) -> Path:
        """Folder of the preference model."""
        return self.weights / "preference"

    def seed_of(self, own: int) -> int:
        """The world's seed of something that has the seed `own` on `micro`."""
        return own + 1000 * self.seed

    def sizes(self, of_micro: dict[str, int]) -> dict[str, int]:
        """Split -> its size, from the sizes on `micro`."""
        return {split: size * self.larger.get(split, 1) for split, size in of_micro.items()}

    def require(self, file: Path) -> Path:
        """A file of the world's weights. Raises MissingError if it is not there."""
        if file.is_file():
            return file
        raise MissingError(
            f"the world {self.name!r} has no {file}; reinstall the package or train it (see {WEIGHTS / 'README.md'})"
        )


MICRO = DrawnWorld("micro", SHAPES, 0, MICRO_STAGES, {"validation": 1, "test": 1}, False, WEIGHTS, (RECIPES,))
STUDY = tuple(
    DrawnWorld(
        f"study-{seed}",
        STUDY_SHAPES,
        seed,
        STUDY_STAGES,
        {"validation": 2, "test": 4},
        True,
        WEIGHTS / f"study-{seed}",
        (RECIPES / "study", RECIPES),
        {"geneval": "strict", "pickscore": "gold"},
    )
    for seed in (1, 2, 3)
)
DRAWN = {world.name: world for world in (MICRO, *STUDY)}
