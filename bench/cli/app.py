"""The `bench` command line: every command's options, and the entry point.

Heavy modules are imported inside the commands, so that `bench --help` and commands without a model start fast and
never load torch.
"""

import inspect
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.core import TyperCommand

from bench.cli.completion import kinds, registered_names
from bench.cli.options import (
    RUNS,
    Axes,
    Backbone,
    BackboneOrPreset,
    DryRun,
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
from bench.system.background import finish

app = typer.Typer(
    name="bench",
    help="Compare methods that post-train one text-to-image model on several rewards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def run(
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="Method to run (bench list methods); default: the preset's.",
            autocompletion=registered_names("method"),
        ),
    ] = None,
    tasks: TasksOrPreset = None,
    backbone: BackboneOrPreset = None,
    seeds: Seeds = "0",
    preset: Preset = None,
    set_: LaterSet = None,
    teachers: Annotated[
        str | None,
        typer.Option(
            "--teachers",
            help="'shipped', 'train' (train them with the backbone's recipe), or a folder with one adapter folder per "
            "task, as written by bench teach.",
        ),
    ] = None,
    results: Results = RUNS,
    dry_run: DryRun = False,
    executor: Executor = "inline",
    profile: ProfileFile = None,
    slurm: Slurm = None,
) -> None:
    """Train one student per seed. Rerun to resume; a finished run prints its summary."""
    from bench.config.contradictions import replaced
    from bench.config.resolve import refuse_training, resolve
    from bench.config.settings import parse_seeds
    from bench.config.trackers import check_trackers
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
    check_trackers(spec.trackers)
    specs = [spec.with_seed(s) for s in seed_list]
    note([*replaced(set_), *taught_otherwise(specs, root)])
    if dry_run:
        from bench.cli.dryrun import explain

        explain(spec)
        return
    # Imported last: it loads torch, which a dry run and a refused setting do without.
    from bench.cli.run import run_seeds

    run_seeds(specs, root, where)


@app.command()
def teach(
    tasks: TasksOrPreset = None,
    backbone: BackboneOrPreset = None,
    seeds: Seeds = "0",
    preset: Preset = None,
    set_: LaterSet = None,
    results: Results = RUNS,
    dry_run: DryRun = False,
    executor: Executor = "inline",
    profile: ProfileFile = None,
    slurm: Slurm = None,
) -> None:
    """Train one teacher per task with single-task RL and collect them in a folder for --teachers.

    With default settings, these are the same teachers as those of --teachers train.
    """
    from bench.config.contradictions import replaced
    from bench.config.own_settings import own_settings
    from bench.config.resolve import TEACHER_METHOD, preset_tasks, resolve
    from bench.config.settings import parse_seeds
    from bench.config.trackers import check_trackers
    from bench.jobs.placement import placement
    from bench.printing import note
    from bench.system.files import results_root

    names = preset_tasks(preset, None if tasks is None else split_names(tasks))
    seed_list, root, where = parse_seeds(seeds), results_root(results), placement(executor, profile, slurm)
    members = [(seed, task) for seed in seed_list for task in names]
    own = {task: own_settings(set_ or [], task, names) for task in names}
    specs = [resolve(TEACHER_METHOD, [task], seed, backbone, preset, own[task]) for seed, task in members]
    check_trackers(specs[0].trackers)
    note(replaced(set_))
    if dry_run:
        from bench.cli.dryrun_teach import explain_teaching

        explain_teaching(specs, root, where)
        return
    from bench.cli.run import teach_tasks

    teach_tasks(specs, root, where)


@app.command()
def compare(
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            "--method",
            help="Methods to compare, separated by commas, or 'all' (bench list methods).",
            autocompletion=registered_names("method"),
        ),
    ] = "all",
    tasks: Tasks = "all",
    backbone: Backbone = "micro",
    seeds: Seeds = "0-4",
    budget: Annotated[
        int | None,
        typer.Option(
            "--budget",
            min=1,
            help="Training NFE per run (a forward pass counts 1, a backward pass 2); default: the budget of "
            "opd_analytic's recipe.",
        ),
    ] = None,
    grid: Grid = None,
    axes: Axes = None,
    set_: Set = None,
    results: Results = RUNS,
    dry_run: DryRun = False,
    executor: Executor = "local",
    profile: ProfileFile = None,
    slurm: Slurm = None,
) -> None:
    """Run methods x settings x seeds at one budget, in parallel, and print one table."""
    from bench.cli.comparison_plan import plan_comparison
    from bench.config.settings import parse_seeds
    from bench.jobs.placement import placement
    from bench.printing import note
    from bench.system.files import results_root

    where, root = placement(executor, profile, slurm), results_root(results)
    plan = plan_comparison(
        split_names(methods),
        split_names(tasks),
        backbone,
        parse_seeds(seeds),
        budget,
        axes=[*(grid or []), *(axes or [])],
        overrides=set_ or [],
        root=root,
    )
    note(plan.notes)
    if dry_run:
        from bench.cli.dryrun_compare import explain_comparison

        explain_comparison(plan, where)
        return
    from bench.cli.compare import compare_methods

    compare_methods(plan, where)


@app.command()
def probe(
    methods: Annotated[
        str,
        typer.Option(
            "--methods",
            "--method",
            help="Methods to probe, separated by commas; the first is the reference.",
            autocompletion=registered_names("method"),
        ),
    ],
    tasks: Tasks = "all",
    student: Annotated[
        str,
        typer.Option("--student", help="Frozen student: 'base', or a folder: a peft adapter's or a model's."),
    ] = "base",
    backbone: Backbone = "micro",
    states: Annotated[
        int, typer.Option("--states", min=2, max=10_000, help="Number of states; each has its own prompts and noise.")
    ] = 16,
    draws: Annotated[
        int, typer.Option("--draws", min=1, max=100_000, help="Number of gradient estimates at each state.")
    ] = 2,
    by_sigma: Annotated[
        bool, typer.Option("--by-sigma", help="Also measure gradient noise at each noise level separately.")
    ] = False,
    grid: Grid = None,
    axes: Axes = None,
    set_: Set = None,
    results: Results = RUNS,
    output: Annotated[Path | None, typer.Option("--output", help="Write the measurements to this JSON file.")] = None,
    dry_run: DryRun = False,
    executor: Executor = "inline",
    profile: ProfileFile = None,
    slurm: Slurm = None,
) -> None:
    """Measure gradient noise and interference between tasks at a frozen student."""
    from bench.cli.probe_plan import Probing
    from bench.jobs.placement import placement
    from bench.system.files import results_root

    where, root = placement(executor, profile, slurm), results_root(results)
    asked = Probing(
        methods=split_names(methods),
        tasks=split_names(tasks),
        student=student,
        backbone=backbone,
        axes=[*(grid or []), *(axes or [])],
        overrides=set_ or [],
        states=states,
        draws=draws,
        by_sigma=by_sigma,
        output=str(output) if output else None,
    )
    if dry_run:
        from bench.cli.dryrun_probe import explain_probe

        explain_probe(asked, root, where)
        return
    from bench.cli.probe import carry_out_probe

    carry_out_probe(asked, root, where)


@app.command(name="eval")
def evaluate(
    adapter: Annotated[
        str,
        typer.Option("--adapter", help="What to score: 'base', or a folder: a peft adapter's or a model's."),
    ],
    tasks: Tasks = "all",
    backbone: Backbone = "micro",
    guidance: Annotated[
        str, typer.Option("--guidance", help="Guidance scale, or several separated by commas (1,2.5).")
    ] = "1",
    steps: Annotated[int, typer.Option("--steps", help="Number of Euler steps per image.")] = 10,
    split: Annotated[str, typer.Option("--split", help="Prompts to score: test, validation or train.")] = "test",
    set_: Set = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write the scores of every image to this JSON file.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="Write the images to this folder, in GenEval's official layout.")
    ] = None,
) -> None:
    """Score an adapter, or the base, on held-out prompts."""
    from bench.cli.evaluate import score_adapter

    names, overrides = split_names(tasks), set_ or []
    score_adapter(adapter, names, backbone, guidance, steps, split, overrides, output, pictures)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for the student and its model card.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="Write the whole pipeline with the student's weights merged into it.")
    ] = False,
) -> None:
    """Write a run's student for stock diffusers and peft, with a model card that has its scores."""
    from bench.cli.export import export as write

    write(run, output, merged)


@app.command()
def sample(
    output: Annotated[Path, typer.Option("--output", help="New folder for the images, in GenEval's layout.")],
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts, each in quotes.")] = None,
    file: Annotated[
        str | None, typer.Option("--prompts", help="File with one prompt per line; - reads the standard input.")
    ] = None,
    adapter: Annotated[
        str,
        typer.Option("--adapter", help="What draws them: 'base', or a folder: a peft adapter's or a model's."),
    ] = "base",
    backbone: Backbone = "micro",
    each: Annotated[int, typer.Option("--each", min=1, max=10_000, help="Images per prompt.")] = 1,
    guidance: Annotated[
        str | None, typer.Option("--guidance", help="Guidance scale; default: the model's own.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Number of Euler steps per image.")] = 10,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the noise.")] = 0,
    set_: Set = None,
) -> None:
    """Draw images from your own prompts, with an adapter or the base."""
    from bench.cli.sample import Sampling, draw, prompts_in
    from bench.cli.scales import scales_in

    texts = [*(prompts or []), *(prompts_in(file) if file else [])]
    scales = scales_in(guidance) if guidance else [None]
    if len(scales) > 1:
        raise UsageError(f"--guidance {guidance}: give one scale; images of several would need several folders")
    draw(Sampling(adapter, backbone, texts, each, scales[0], steps, seed, set_ or []), output)


@app.command()
def score(
    task: Annotated[
        str,
        typer.Argument(help="Task whose scorer is used (bench list tasks).", autocompletion=registered_names("task")),
    ],
    source: Annotated[
        Path, typer.Argument(help="Folder of images in GenEval's layout, or a results.jsonl of GenEval's evaluator.")
    ],
    set_: Set = None,
    world: Annotated[
        str, typer.Option("--world", help="Kind of images: photo, or micro for the drawn world.")
    ] = "photo",
    batch: Annotated[
        int, typer.Option("--batch", min=1, max=100_000, help="Maximum number of images scored together.")
    ] = 8,
) -> None:
    """Score images from any tool, in GenEval's official folder layout."""
    from bench.cli.score import score_folder

    score_folder(task, source, set_ or [], world, batch)


@app.command()
def serve(
    task: Annotated[
        str,
        typer.Argument(help="Task whose scorer is served (bench list tasks).", autocompletion=registered_names("task")),
    ],
    set_: Set = None,
    world: Annotated[
        str, typer.Option("--world", help="Kind of images: photo, or micro for the drawn world.")
    ] = "photo",
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 picks a free one.")
    ] = 8600,
) -> None:
    """Score images over HTTP for runs elsewhere (--set scorers.TASK.url=http://HOST:PORT)."""
    from bench.scoring.server import serve as answer

    answer(task, set_ or [], world, host, port)


@app.command(name="list")
def list_(
    what: Annotated[
        str, typer.Argument(help="What to list: methods, tasks, backbones, kernels or presets.", autocompletion=kinds)
    ],
) -> None:
    """List the registered methods, tasks, backbones, kernels or presets."""
    from bench.cli.list import print_list

    print_list(what)


@app.command()
def perf(
    output: Annotated[Path | None, typer.Option("--output", help="Write the measurements to this JSON file.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", help="Measure nothing; compare two files written with --output."),
    ] = None,
    only: Annotated[
        str,
        typer.Option(
            "--only",
            help="Besides checks and ceilings, measure only these, separated by commas: updates, kernels, overhead, "
            "scorers, presets.",
        ),
    ] = "",
    carry: Annotated[
        bool, typer.Option("--carry", help="Measure nothing; list the packages that a machine without network needs.")
    ] = False,
) -> None:
    """Check this machine's results, then measure its bandwidth, matrix products, kernels, training updates and scorers.

    If the file of --output exists, only what it lacks is measured.
    """
    from bench.perf.command import perf as measure

    names = tuple(split_names(only))
    if only and not names:
        raise UsageError(f"--only {only!r} names no section")
    measure(output, compare, names, carry)


@app.command()
def status(
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh the table until nothing is pending or running.")
    ] = False,
    results: Results = RUNS,
) -> None:
    """List runs with their state, progress, time left, and error if they failed."""
    from bench.cli.status import show
    from bench.system.files import results_root

    show(results_root(results), watch)


@app.command()
def cancel(
    names: Annotated[
        list[str],
        typer.Argument(help="What to cancel: names of run folders or their prefixes, names of launches, or 'all'."),
    ],
    results: Results = RUNS,
) -> None:
    """Stop jobs. Checkpoints are kept; rerun the original command to resume."""
    from bench.jobs.status import cancel as stop
    from bench.system.files import results_root
    from bench.terminal import legible

    stopped = stop(results_root(results), names)
    lines = [f"cancelled {legible(name)}" for name in stopped]
    print("\n".join(lines) or "no matching job is pending or running")


@app.command()
def logs(
    name: Annotated[
        str, typer.Argument(help="Name of a run folder or a prefix of it, name of a launch, or label of a job.")
    ],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on printing what the job writes, until it ends.")
    ] = False,
    results: Results = RUNS,
) -> None:
    """Print the last lines of a job's output."""
    from bench.cli.status import logs as print_logs
    from bench.system.files import results_root

    print_logs(results_root(results), name, follow)


@app.command()
def doctor() -> None:
    """Check what works on this machine, and print how to fix the rest."""
    from bench.cli.doctor import examine

    examine()


class Command(TyperCommand):
    """A command that rejects ambiguous arguments, which typer accepts silently.

    - Empty values, as from an unset shell variable in quotes: typer would take them for a missing option, or for the
      current folder.
    - Two different values for an option that takes one: typer would drop the first.
    - Integers in notations that settings do not accept either, such as 1_000.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as typer does. Raises UsageError for an empty, contradicting or badly written value."""
        if ctx.resilient_parsing:  # a shell asks for completions of a line that is not finished
            return super().parse_args(ctx, args)
        # A first pass over the arguments, with a parser of its own that appends every value instead of keeping the
        # last one, so that all values of an option can be checked.
        parser = self.make_parser(ctx)
        for option in parser._long_opt.values():
            if option.action == "store":
                option.action = "append"
        given, _, _ = parser.parse_args(args=list(args))
        kinds = get_type_hints(inspect.unwrap(self.callback)) if self.callback else {}
        for parameter in self.get_params(ctx):
            value = given.get(parameter.name)
            values = value if isinstance(value, list) else [value]
            long_names = [option for option in parameter.opts if option.startswith("--")]
            name = long_names[0] if long_names else str(parameter.name).upper()
            kind = kinds.get(str(parameter.name))
            _check_values(name, values, integer=int in (kind, *get_args(kind)))
            several = getattr(parameter, "multiple", False) or parameter.nargs == -1
            other = next((value for value in values if value != values[0]), None)
            if other is not None and not several:
                first, second = _shown(values[0]), _shown(other)
                raise UsageError(f"{name} is given twice, as {first} and as {second}: give it once")
        return super().parse_args(ctx, args)


def _check_values(name: str, values: list[Any], integer: bool) -> None:
    """Raise UsageError if a value of an option or argument is empty, or should be an `integer` and is not."""
    from bench.config.settings import INTEGER, NUMBERS

    for value in values:
        for part in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(part, str):
                continue
            if not part.strip():
                raise UsageError(f"{name} is empty: give a value, or leave it out")
            if integer and not re.fullmatch(NUMBERS[INTEGER], part):
                raise UsageError(f"{name} takes a plain whole number, got {part!r}")


def _shown(value: Any) -> str:
    return repr(" ".join(value) if isinstance(value, list | tuple) else value)


def _print_version(asked: bool) -> None:
    """Print the version and end, if it is asked for."""
    if asked:
        from bench import __version__

        print(f"bench {__version__}")
        raise typer.Exit


def whole(called: str | None = None) -> typer.Typer:
    """The full `bench` application: this file's commands and those of the entry points bench.commands.

    `called` is the name of the command to be carried out. Commands of packages outside this project are imported only
    when called; otherwise they are only listed. Raises UsageError if such a package takes the name of one of bench's
    own commands and it is called.
    """
    full = typer.Typer(
        name="bench",
        help=app.info.help,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    full.callback()(_about)
    full.registered_commands = list(app.registered_commands)
    own = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    for name, point in registered("command").items():
        if name in own:
            if name == called:
                raise UsageError(
                    f"command {name!r} of {origin(point)} has the name of one of bench's own commands: uninstall "
                    "that package"
                )
        elif name == called or (ours("command", name) and not rivals("command", name)):
            full.command(name=name)(find("command", name))
        else:
            package = rivals("command", name) or origin(point)
            full.command(name=name, help=f"Provided by {package}.")(_unloaded)
    for command in full.registered_commands:
        command.cls = Command
    return full


def _about(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _unloaded() -> None:
    """Placeholder for a listed command that is not called."""


def invoke(arguments: list[str]) -> int | None:
    """Carry out one command and return its exit code.

    Exceptions of the command propagate; SIGTERM raises KeyboardInterrupt, as Ctrl-C does.
    """
    from bench.system.interrupts import terminated_is_interrupted

    command = typer.main.get_command(whole(next(iter(arguments), None)))
    try:
        command._main_shell_completion({}, "bench")  # ends the process if a shell asks for completions
        with terminated_is_interrupted(), command.make_context("bench", list(arguments)) as context:
            return command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except typer.Abort as end:
        raise KeyboardInterrupt from end


def main() -> None:
    """Entry point: errors caused by the user or the system end in one line on stderr and an exit code."""
    exit_on_error(_command)


def _command() -> int | None:
    try:
        os.getcwd()
    except OSError as error:
        cause = one_line(error)
        raise UsageError(f"the working directory cannot be used ({cause}): change to an existing one") from error
    try:
        return invoke(sys.argv[1:])
    finally:
        finish()
