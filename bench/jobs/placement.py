"""Where runs execute: in this process, in processes of this machine, or in Slurm with a profile."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from bench.config.contradictions import replaced
from bench.config.settings import Settings, first_problem, merge, parse_override, read_yaml
from bench.errors import UsageError, unknown
from bench.printing import note
from bench.terminal import legible

Executor = Literal["inline", "local", "slurm"]
EXECUTORS = get_args(Executor)
Count = Annotated[int, Field(gt=0, le=100_000)]
TEN_YEARS = 10 * 366 * 24 * 60


def _is_one_line(text: str) -> str:
    if not text.strip() or legible(text) != text:
        raise ValueError("it should be one line of plain text, and not empty")
    return text


Word = Annotated[str, Field(max_length=1000), AfterValidator(_is_one_line)]
"""What becomes one line of a batch script."""


class Profile(Settings):
    """What a job asks Slurm for."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    gpus: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Of one run."""
    processes: Count | None = None
    """That share one run; None: one a GPU."""
    cpus: Count = 1
    """Per process; also its number of threads."""
    memory_gb: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """None: the cluster's default."""
    minutes: Annotated[int, Field(gt=0, le=TEN_YEARS)] = 24 * 60
    """Time limit. A run that needs longer checkpoints, is requeued and goes on."""
    signal_s: Annotated[int, Field(gt=0, le=65_535)] = 90
    """How long before the limit a run is told."""
    array_parallelism: Count = 256
    """Jobs of a grid at a time."""
    setup: tuple[str, ...] = ()
    """Shell lines before the run."""
    sbatch: dict[str, str | int | float] = Field(default={})
    """Any further option of sbatch: {gres: "gpu:h100:1"}."""

    @field_validator("sbatch")
    @classmethod
    def _options_are_words(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name, value in options.items():
            if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name):
                raise ValueError(f"{name!r} is no long option of sbatch")
            if isinstance(value, str):
                _is_one_line(value)
            elif not math.isfinite(value):
                raise ValueError(f"{name} should be finite")
        return options

    @model_validator(mode="after")
    def _warned_in_time(self) -> "Profile":
        if self.signal_s >= 60 * self.minutes:
            raise ValueError(f"signal_s {self.signal_s} is not below the time limit of {self.minutes} minutes")
        return self

    def parameters(self, name: str, folder: Path, dependency: str | None) -> dict[str, Any]:
        """As submitit's AutoExecutor takes them; `folder` is where it keeps the jobs' files."""
        threads = ("export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK", "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK")
        optional = {
            "slurm_partition": self.partition,
            "slurm_account": self.account,
            "slurm_qos": self.qos,
            "slurm_constraint": self.constraint,
            "slurm_dependency": dependency,
            "gpus_per_node": self.gpus or None,
            "mem_gb": self.memory_gb,
        }
        # An unmet dependency would leave the job pending for ever.
        further = {"kill_on_invalid_dep": "yes", "requeue": True} | self.sbatch
        return {key: value for key, value in optional.items() if value is not None} | {
            "name": name,
            "timeout_min": self.minutes,
            "cpus_per_task": self.cpus,
            "tasks_per_node": self.processes or max(1, self.gpus),
            "slurm_signal_delay_s": self.signal_s,
            "slurm_array_parallelism": self.array_parallelism,
            "slurm_setup": [*threads, *self.setup],
            "slurm_teardown": REVIVE.format(folder=folder).splitlines(),
            "slurm_srun_args": ["--kill-on-bad-exit=1"],  # or the other processes of a run would wait for a dead one
            "slurm_additional_parameters": further,
        }


REVIVE = """\
code=$?
# Killed outright, as by the kernel or an operator: go on from the last checkpoint, but not for ever. An array's task is
# named by its place: one of them has the number of the whole array, and that would requeue all.
if [ "$code" -eq 137 ]; then
  this=$SLURM_JOB_ID
  if [ -n "${{SLURM_ARRAY_JOB_ID:-}}" ]; then this="${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"; fi
  echo >> "{folder}/$this.killed"
  if [ "$(wc -l < "{folder}/$this.killed")" -le 5 ]; then scontrol requeue "$this"; fi
fi
exit "$code"
"""


@dataclass(frozen=True)
class Placement:
    """An executor with its profile."""

    executor: Executor
    profile: Profile = field(default_factory=Profile)


def placement(executor: str, profile: Path | None, slurm: list[str] | None) -> Placement:
    """From the command line: `profile` is a YAML file, `slurm` are KEY=VALUE over it. Raises UsageError."""
    if executor not in EXECUTORS:
        raise unknown("executor", executor, EXECUTORS)
    if executor != "slurm" and (profile or slurm):
        raise UsageError(f"--profile and --slurm are for --executor slurm, not {executor}")
    settings: dict[str, Any] = read_yaml(profile) if profile else {}
    for override in slurm or []:
        merge(settings, parse_override(override, "--slurm"))
    note(replaced(slurm, "--slurm"))
    try:
        return Placement(cast(Executor, executor), Profile.model_validate(settings))
    except ValidationError as error:
        raise UsageError(f"Slurm profile: {first_problem(error, Profile)}") from error
