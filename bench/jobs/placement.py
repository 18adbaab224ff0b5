"""Where runs execute: in this process, in local processes, or in Slurm with a profile of job resources."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from bench.config.bounds import Count
from bench.config.contradictions import replaced
from bench.config.settings import Settings, first_problem, merge, parse_override, read_yaml
from bench.errors import UsageError, unknown
from bench.printing import note
from bench.terminal import legible

Executor = Literal["inline", "local", "slurm"]
EXECUTORS = get_args(Executor)
TEN_YEARS = 10 * 366 * 24 * 60


def _is_one_line(text: str) -> str:
    if not text.strip() or legible(text) != text:
        raise ValueError("it should be one non-empty line of plain text")
    return text


Word = Annotated[str, Field(max_length=1000), AfterValidator(_is_one_line)]
"""A value that becomes one line of a batch script."""


class Profile(Settings):
    """Resources and limits of one Slurm job, which usually carries out one run."""

    partition: Word | None = None
    """Slurm partition; None uses the cluster's default."""
    account: Word | None = None
    """Slurm account that is charged; None uses the user's default."""
    qos: Word | None = None
    """Slurm quality of service; None uses the cluster's default."""
    constraint: Word | None = None
    """Required node features, as in sbatch --constraint; None accepts every node."""
    nodes: Count = 1
    """Number of nodes that share one run."""
    gpus: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Number of GPUs per run on each of its nodes."""
    processes: Count | None = None
    """Number of processes per node that share one run; None starts one per GPU, and one without GPUs."""
    cpus: Count = 1
    """Number of CPU cores and threads per process."""
    memory_gb: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Memory per job in GB; None uses the cluster's default."""
    minutes: Annotated[int, Field(gt=0, le=TEN_YEARS)] = 24 * 60
    """Time limit of a job in minutes. A run that takes longer saves a checkpoint, is requeued and resumes."""
    signal_s: Annotated[int, Field(gt=0, le=65_535)] = 90
    """Seconds before the time limit at which a run is signalled to save a checkpoint."""
    array_parallelism: Count = 256
    """Maximal number of jobs of one array that run at the same time."""
    setup: tuple[str, ...] = ()
    """Shell lines to execute before the run, for example module load cuda."""
    sbatch: dict[str, str | int | float] = Field(default={})
    """Further options of sbatch by their long names, for example {gres: "gpu:h100:1"}."""

    @field_validator("sbatch")
    @classmethod
    def _options_are_words(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name, value in options.items():
            if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name):
                raise ValueError(f"{name!r} is not a long option of sbatch")
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
        """Return the parameters for submitit's AutoExecutor.

        `name` is the jobs' name, `folder` holds submitit's files, `dependency` is sbatch's --dependency or None.
        """
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
        # Without kill_on_invalid_dep, a job whose dependency has failed would stay pending forever.
        further = {"kill_on_invalid_dep": "yes", "requeue": True} | self.sbatch
        given = {key: value for key, value in optional.items() if value is not None}
        return given | {
            "name": name,
            "timeout_min": self.minutes,
            "nodes": self.nodes,
            "cpus_per_task": self.cpus,
            "tasks_per_node": self.processes or max(1, self.gpus),
            "slurm_signal_delay_s": self.signal_s,
            "slurm_array_parallelism": self.array_parallelism,
            "slurm_setup": [*threads, *self.setup],
            "slurm_teardown": REVIVE.format(folder=folder).splitlines(),
            # Without this, the other processes of a run would wait for one that has died.
            "slurm_srun_args": ["--kill-on-bad-exit=1"],
            "slurm_additional_parameters": further,
        }


REVIVE = """\
code=$?
# Exit code 137: killed, for example by the kernel or an operator. Requeue at most five times, to resume from the last
# checkpoint. An array's task is named by array and index, because the job id of one task is the id of the whole array,
# and requeueing that would requeue every task.
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
    """An executor (inline, local or slurm) and the profile of its jobs."""

    executor: Executor
    profile: Profile = field(default_factory=Profile)


def placement(executor: str, profile: Path | None, slurm: list[str] | None) -> Placement:
    """Make a placement from command-line options.

    `profile` is a YAML file, and `slurm` are KEY=VALUE overrides of it. Raises UsageError for invalid values.
    """
    if executor not in EXECUTORS:
        raise unknown("executor", executor, EXECUTORS)
    if executor != "slurm" and (profile or slurm):
        raise UsageError(f"--profile and --slurm need --executor slurm, not {executor}")
    settings: dict[str, Any] = read_yaml(profile) if profile else {}
    for override in slurm or []:
        merge(settings, parse_override(override, "--slurm"))
    note(replaced(slurm, "--slurm"))
    try:
        return Placement(cast(Executor, executor), Profile.model_validate(settings))
    except ValidationError as error:
        raise UsageError(f"Slurm profile: {first_problem(error, Profile)}") from error
