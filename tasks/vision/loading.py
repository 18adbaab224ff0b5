"""The vision-language judge that settings choose."""

import re

from bench.errors import MissingError, UsageError
from tasks.clip import devices
from tasks.vision.endpoint import EndpointJudge
from tasks.vision.judge import AT_ENDPOINT, BATCH, SETTINGS, VisionJudge
from tasks.vision.local import LocalJudge


def vision_judge(task: str, sources: dict[str, str], probable: bool, published: str = "") -> VisionJudge:
    """The judge that the settings scorers.<task> choose.

    `probable`: whether it is asked for probabilities; `published`: the judge of the task's authors, for messages.

    Raises MissingError if none is set, UsageError for settings that do not fit together.
    """
    judge = sources.get("judge")
    if judge is None:
        usual = f" (published: {published})" if published else ""
        raise MissingError(
            f"{task} needs a vision-language model{usual}: set scorers.{task}.judge ({SETTINGS['judge']})"
        )
    given = [key for key in AT_ENDPOINT if key in sources]
    if re.match(r"[\w.-]+:\d+", judge):
        raise UsageError(f"scorers.{task}.judge: the address of an endpoint starts with http://, not {judge!r:.100}")
    if judge.lower().startswith(("http://", "https://")):
        placed = [key for key in devices(BATCH) if key in sources and key != "device"]
        if placed:
            raise UsageError(f"scorers.{task}.{placed[0]} does nothing for a judge behind an endpoint: leave it out")
        return EndpointJudge(task, judge, sources, probable)
    if given:
        raise UsageError(f"scorers.{task}.{given[0]} does nothing for a judge that runs here: leave it out")
    return LocalJudge(judge, sources)
