"""The held-out prompts of a run's tasks, which no training data may contain."""

from bench.config.resolve import describe
from bench.errors import MissingError
from bench.scoring.loading import load_task


def held_out_prompts(spec) -> dict[str, str]:
    """Held-out prompt -> its task, for all tasks of a run, with prompts as `plain` text."""
    world = describe(spec.backbone).world
    found: dict[str, str] = {}
    for task in spec.tasks:
        try:
            loaded = load_task(task, world, spec.scorers.get(task))
            for split in ("validation", "test"):
                found |= {plain(prompt.text): task for prompt in loaded.prompts(split)}
        except MissingError:
            continue  # without its prompts the task cannot be evaluated, which the run reports before it trains
    return found


def plain(text: str) -> str:
    """A text without differences of case and white space."""
    return " ".join(text.split()).casefold()
