"""The commands that use what `bench teach` trained, to be pasted as they are."""

import json
import shlex
from pathlib import Path
from typing import Any

from bench.cli.options import RUNS
from bench.config.compute import Compute
from bench.config.contradictions import leaves
from bench.config.resolve import resolve
from bench.config.settings import parse_override
from bench.config.spec import Spec
from bench.errors import UsageError
from bench.training.teacher_sets import TeacherSet, near

STUDENT_METHOD = "opd_analytic"
"""The method of the student in the command; others that need teachers take the same options."""
COMPARED = f"{STUDENT_METHOD},multi_reward"
"""The methods of the comparison. Not all of them, because some cannot use teachers with a guidance of their own."""


def use_lines(sets: list[TeacherSet], root: Path) -> list[str]:
    """Lines for the user: of each set of teachers, the commands of a student and of a comparison that use it."""
    lines = []
    for found in sets:
        usual = " (trained by the recipe, so --teachers train uses them too)" if found.by_recipe else ""
        shared = _shared(found, root)
        student = ["--method", STUDENT_METHOD, *shared, "--teachers", str(found.folder)]
        student += ["--seeds", str(found.seed)] if found.seed else []
        named = [word for task in found.runs for word in ("--set", f"teachers.{task}={found.folder / task}")]
        lines.append(f"teachers of seed {found.seed}{usual}, for a student and for a comparison:")
        lines.append(shlex.join(["bench", "run", *student]))
        lines.append(shlex.join(["bench", "compare", "--methods", COMPARED, *shared, *named]))
    return lines


def _shared(found: TeacherSet, root: Path) -> list[str]:
    """The options that a student has in common with its teachers, where they differ from the defaults."""
    specs = [run.spec for run in found.runs.values()]
    words = ["--tasks", ",".join(found.runs)]
    if specs[0].backbone != "micro":
        words += ["--backbone", specs[0].backbone]
    if near(root) != RUNS:
        words += ["--results", str(near(root))]
    for key, value in _settings(specs, list(found.runs)).items():
        words += ["--set", f"{key}={_as_text(key, value)}"]
    return words


def _settings(specs: list[Spec], tasks: list[str]) -> dict[str, Any]:
    """Settings of the teachers' scorers, rewards, device and images that a student would not have by itself."""
    usual = resolve(STUDENT_METHOD, tasks, backbone=specs[0].backbone, checked=False)
    settings: dict[str, Any] = {}
    for spec in specs:
        settings |= leaves({"scorers": spec.scorers, "rewards": spec.rewards})
    for name in Compute.RESULT:
        value = getattr(specs[0].compute, name)
        if value != getattr(usual.compute, name):
            settings[f"compute.{name}"] = value
    if specs[0].device != usual.device:
        settings["device"] = specs[0].device
    # An empty section has no settings.
    return {key: value for key, value in settings.items() if value != {}}


def _as_text(key: str, value: Any) -> str:
    """A value as --set takes it: as it is if it is read back unchanged, else in quotes."""
    plain = "null" if value is None else str(value)
    try:
        read = next(iter(leaves(parse_override(f"{key}={plain}")).values()), None)
    except UsageError:
        read = None
    return plain if read == value else json.dumps(value)
