"""The `bench` command. Heavy imports wait until a command needs them."""

import inspect
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.core import TyperCommand

from bench.cli.options import (
    RUNS,
    Axes,
    Backbone,
    BackboneOrPreset,
    Executor,
    Grid,
    LaterSet,
    Preset,
    ProfileFile,
    Results,
    Seeds,
    Set,
    Slurm,
    Tasks,
    TasksOrPreset,
    split_names,
)
from bench.errors import UsageError, exit_on_error, one_line
from bench.registry import find, origin, ours, registered, rivals

app = typer.Typer(
    name="bench",
    help="Compare ways of making one text-to-image model good at several rewards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def run(
    method: Annotated[str | None, typer.Option("--method", help="A registered method; a preset may name it.")] = None,
    tasks: TasksOrPreset = None,
    backbone: BackboneOrPreset = None,
    seeds: Seeds = "0",
    preset: Preset = None,
    set_: LaterSet = None,
    teachers: Annotated[
        str | None,
        typer.Option(
            "--teachers",
            help="'shipped', 'train' (by the backbone's recipe), or a folder with one adapter folder a task, as of "
            "bench teach.",
        ),
    ] = None,
    results: Results = RUNS,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run and what it would cost, and stop.")
    ] = False,
    executor: Executor = "inline",
    profile: ProfileFile = None,
    slurm: Slurm = None,
) -> None:
    """Train one student, resume it, or print its finished summary."""
    from bench.config.contradictions import replaced
    from bench.config.resolve import refuse_training, resolve
    from bench.config.settings import parse_seeds
    from bench.jobs.placement import placement
    from bench.printing import note
    from bench.system.files import results_root
    from bench.training.teacher_sets import check_teachers, taught_otherwise

    seed_list, root = parse_seeds(seeds), results_root(results)
    names = None if tasks is None else split_names(tasks)
    where = placement(executor, profile, slurm)
    spec = resolve(method, names, seed_list[0], backbone, preset, set_, teachers)
    refuse_training(spec.method, set_ or [])
    check_teachers([spec])
    note([*replaced(set_), *taught_otherwise([spec.with_seed(s) for s in seed_list], root)])
    if dry_run:
        from bench.cli.dryrun import explain

        explain(spec)
        return
    from bench.cli.run import run_seeds

    run_seeds([spec.with_seed(s) for s in seed_list], root, where)


@app.command()
def teach(
    tasks: TasksOrPreset = None,
    backbone: BackboneOrPreset = None,
    seeds: Seeds = "0",
    preset: Preset = None,
    set_: LaterSet = None,
    results: Results = RUNS,
    executor: Executor = "inline",
    profile: ProfileFile = None,
    slurm: Slurm = None,
) -> None:
    """Train one teacher a task by single-task RL, and put them into a folder for --teachers.

    Trained as they are by default, they are also those that --teachers train means.
    """
    from bench.config.resolve import TEACHER_METHOD, preset_tasks, resolve
    from bench.config.settings import parse_seeds
    from bench.jobs.placement import placement
    from bench.system.files import results_root

    names = preset_tasks(preset, None if tasks is None else split_names(tasks))
    seed_list, root, where = parse_seeds(seeds), results_root(results), placement(executor, profile, slurm)
    specs = [resolve(TEACHER_METHOD, [task], s, backbone, preset, set_) for s in seed_list for task in names]
    from bench.cli.run import teach_tasks
    from bench.config.contradictions import replaced
    from bench.printing import note

    note(replaced(set_))
    teach_tasks(specs, root, where)


@app.command()
def compare(
    methods: Annotated[str, typer.Option("--methods", "--method", help="Comma-separated methods, or 'all'.")] = "all",
    tasks: Tasks = "all",
    backbone: Backbone = "micro",
    seeds: Seeds = "0-4",
    budget: Annotated[
        int | None,
        typer.Option(
            "--budget",
            min=1,
            help="Training NFE each (forward 1, backward 2 by convention); default: opd_analytic's recipe.",
        ),
    ] = None,
    grid: Grid = None,
    axes: Axes = None,
    set_: Set = None,
    results: Results = RUNS,
    executor: Executor = "local",
    profile: ProfileFile = None,
    slurm: Slurm = None,
) -> None:
    """Run methods x settings x seeds at one budget, in parallel, and print one table."""
    from bench.cli.compare import compare_methods
    from bench.config.settings import parse_seeds
    from bench.jobs.placement import placement

    grids, where = [*(grid or []), *(axes or [])], placement(executor, profile, slurm)
    compare_methods(
        split_names(methods), split_names(tasks), backbone, parse_seeds(seeds), budget, grids, set_ or [], results,
        where,
    )  # fmt: skip


@app.command()
def probe(
    methods: Annotated[str, typer.Option("--methods", "--method", help="Comma-separated methods.")],
    tasks: Tasks = "all",
    student: Annotated[str, typer.Option("--student", help="'base', or a peft adapter folder.")] = "base",
    backbone: Backbone = "micro",
    states: Annotated[int, typer.Option("--states", min=2, max=10_000, help="Draws of prompts and noise.")] = 16,
    draws: Annotated[int, typer.Option("--draws", min=1, max=100_000, help="Estimates at each of them.")] = 2,
    by_sigma: Annotated[bool, typer.Option("--by-sigma", help="Also at every noise level by itself.")] = False,
    grid: Grid = None,
    axes: Axes = None,
    set_: Set = None,
    results: Results = RUNS,
    output: Annotated[Path | None, typer.Option("--output", help="Write the numbers to this JSON file.")] = None,
    executor: Executor = "inline",
    profile: ProfileFile = None,
    slurm: Slurm = None,
) -> None:
    """Measure gradient noise and interference between tasks at a frozen student."""
    from bench.cli.probe import Probing, carry_out_probe
    from bench.jobs.placement import placement
    from bench.system.files import results_root

    where, root = placement(executor, profile, slurm), results_root(results)
    asked = Probing(
        split_names(methods), split_names(tasks), student, backbone, [*(grid or []), *(axes or [])], set_ or [],
        states, draws, by_sigma, str(output) if output else None,
    )  # fmt: skip
    carry_out_probe(asked, root, where)


@app.command(name="eval")
def evaluate(
    adapter: Annotated[str, typer.Option("--adapter", help="'base', or a peft adapter folder.")],
    tasks: Tasks = "all",
    backbone: Backbone = "micro",
    guidance: Annotated[str, typer.Option("--guidance", help="One guidance scale, or several with commas.")] = "1",
    steps: Annotated[int, typer.Option("--steps", help="Euler steps.")] = 10,
    split: Annotated[str, typer.Option("--split", help="test, validation or train.")] = "test",
    set_: Set = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write the per-picture scores to this JSON file.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="Write the pictures here, in GenEval's official layout.")
    ] = None,
) -> None:
    """Score an adapter, or the base, on held-out prompts."""
    from bench.cli.evaluate import score_adapter

    score_adapter(adapter, split_names(tasks), backbone, guidance, steps, split, set_ or [], output, pictures)


@app.command()
def score(
    task: Annotated[str, typer.Argument(help="The task whose scorer is used.")],
    source: Annotated[Path, typer.Argument(help="Folder in GenEval's layout, or a results.jsonl of its evaluator.")],
    set_: Set = None,
    world: Annotated[str, typer.Option("--world", help="Kind of pictures: photo or micro.")] = "photo",
    batch: Annotated[int, typer.Option("--batch", min=1, max=100_000, help="Pictures scored together.")] = 8,
) -> None:
    """Score pictures that any tool made, in the official GenEval layout."""
    from bench.cli.score import score_folder

    score_folder(task, source, set_ or [], world, batch)


@app.command()
def serve(
    task: Annotated[str, typer.Argument(help="The task whose scorer is served.")],
    set_: Set = None,
    world: Annotated[str, typer.Option("--world", help="Kind of pictures: photo or micro.")] = "photo",
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one.")] = 8600,
) -> None:
    """Score pictures over HTTP for runs elsewhere (--set scorers.TASK.url=http://HOST:PORT)."""
    from bench.scoring.server import serve as answer

    answer(task, set_ or [], world, host, port)


@app.command(name="list")
def list_(what: Annotated[str, typer.Argument(help="methods, tasks, backbones, kernels or presets.")]) -> None:
    """List what is registered."""
    from bench.cli.list import print_list

    print_list(what)


@app.command()
def perf(
    output: Annotated[Path | None, typer.Option("--output", help="Write the numbers to this JSON file.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option("--compare", help="Compare two such files instead.")
    ] = None,
) -> None:
    """Measure this machine: memory, arithmetic, kernels, updates against the straightforward loop, scorers."""
    from bench.perf.command import perf as measure

    measure(output, compare)


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", help="Again and again until nothing runs or waits.")] = False,
    results: Results = RUNS,
) -> None:
    """List runs: pending, running with progress and time left, done, failed with the error."""
    from bench.cli.status import show
    from bench.system.files import results_root

    show(results_root(results), watch)


@app.command()
def cancel(
    names: Annotated[list[str], typer.Argument(help="Run folders, or beginnings of them; launches; or 'all'.")],
    results: Results = RUNS,
) -> None:
    """Stop jobs; what they have checkpointed stays, and the same command goes on."""
    from bench.jobs.status import cancel as stop
    from bench.system.files import results_root
    from bench.terminal import legible

    stopped = stop(results_root(results), names)
    print("\n".join(f"cancelled {legible(name)}" for name in stopped) or "nothing of that was pending or running")


@app.command()
def logs(
    name: Annotated[str, typer.Argument(help="A run folder, or the beginning of one; a launch; a job's label.")],
    results: Results = RUNS,
) -> None:
    """Print the end of a job's output."""
    from bench.cli.status import logs as print_logs
    from bench.system.files import results_root

    print_logs(results_root(results), name)


@app.command()
def doctor() -> None:
    """Say what works on this machine and what would fix the rest."""
    from bench.cli.doctor import examine

    examine()


class Command(TyperCommand):
    """A command of which no option or argument may be empty, as an unset shell variable in quotes makes one: it would
    be taken for one that is not given, or for the current folder. Nor may an option that takes one value be given two:
    the first would be dropped. Whole numbers are written as in settings."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        parser = self.make_parser(ctx)
        for option in parser._long_opt.values():
            if option.action == "store":
                option.action = "append"  # here, so that every value is seen
        given, _, _ = parser.parse_args(args=list(args))
        kinds = get_type_hints(inspect.unwrap(self.callback)) if self.callback else {}
        for parameter in self.get_params(ctx):
            told = given.get(parameter.name)
            values = told if isinstance(told, list) else [told]
            name = next((o for o in parameter.opts if o.startswith("--")), str(parameter.name).upper())
            kind = kinds.get(str(parameter.name))
            _check_values(name, values, whole=int in (kind, *get_args(kind)))
            several = getattr(parameter, "multiple", False) or parameter.nargs == -1
            other = next((value for value in values if value != values[0]), None)
            if other is not None and not several:
                raise UsageError(f"{name} is given twice, as {_shown(values[0])} and as {_shown(other)}: give it once")
        return super().parse_args(ctx, args)


def _check_values(name: str, values: list[Any], whole: bool) -> None:
    """Raise UsageError for an empty value of an option or argument, or for one of a `whole` number that is none."""
    from bench.config.settings import INTEGER, NUMBERS

    for value in values:
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, str) and not part.strip():
                raise UsageError(f"{name} is empty: give a value, or leave it out")
            if whole and isinstance(part, str) and not re.fullmatch(NUMBERS[INTEGER], part):
                raise UsageError(f"{name} takes a plain whole number, got {part!r}")


def _shown(value: Any) -> str:
    return repr(" ".join(value) if isinstance(value, list | tuple) else value)


def whole(called: str | None = None) -> typer.Typer:
    """`bench` with the commands of other packages (entry points bench.commands): sweeps, reports.

    Of packages that are not this project's only the command that is called is imported, the others are just listed.
    """
    full = typer.Typer(
        name="bench", help=app.info.help, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
    )
    full.registered_commands = list(app.registered_commands)
    own = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    for name, point in registered("command").items():
        if name in own:
            if name == called:
                raise UsageError(f"command {name!r} of {origin(point)} is one of bench's own too: uninstall it")
        elif name == called or (ours("command", name) and not rivals("command", name)):
            full.command(name=name)(find("command", name))
        else:
            full.command(name=name, help=f"Of the package {rivals('command', name) or origin(point)}.")(_unloaded)
    for command in full.registered_commands:
        command.cls = Command
    return full


def _unloaded() -> None:
    """Stands in a list for a command that is not called."""


def invoke(arguments: list[str]) -> int | None:
    """Carry out one command; returns its exit code. Raises whatever the command raises, interrupts as they are, and
    KeyboardInterrupt at SIGTERM too."""
    from bench.system.interrupts import terminated_is_interrupted

    command = typer.main.get_command(whole(next(iter(arguments), None)))
    try:
        with terminated_is_interrupted(), command.make_context("bench", list(arguments)) as context:
            return command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except typer.Abort as end:
        raise KeyboardInterrupt from end


def main() -> None:
    """Entry point: one clear line on stderr and an exit code for everything that a user or the system causes."""
    exit_on_error(_command)


def _command() -> int | None:
    try:
        os.getcwd()
    except OSError as error:
        cause = one_line(error)
        raise UsageError(f"the working directory cannot be used ({cause}): change to one that is there") from error
    return invoke(sys.argv[1:])
