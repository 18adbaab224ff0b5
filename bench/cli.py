"""The `bench` command. Heavy imports wait until a command needs them."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.errors import BenchError, PartialError, UsageError, one_line

app = typer.Typer(
    name="bench",
    help="Compare ways of making one text-to-image model good at several rewards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Tasks = Annotated[str, typer.Option("--tasks", help="Comma-separated tasks, or 'all'.")]
Backbone = Annotated[str, typer.Option("--backbone", help="A registered backbone.")]
TasksOrPreset = Annotated[
    str | None, typer.Option("--tasks", help="Comma-separated tasks, or 'all'; default: the preset's, or all.")
]
BackboneOrPreset = Annotated[
    str | None, typer.Option("--backbone", help="A backbone, or a pipeline; default: the preset's, or micro.")
]
Seeds = Annotated[str, typer.Option("--seeds", help="A seed, a range or a list: 0, 0-2, 0,3,5.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable.")]
Preset = Annotated[
    Path | None, typer.Option("--preset", help="YAML file of settings, or a name of bench list presets.")
]
Results = Annotated[Path, typer.Option("--results", help="Folder for runs; must lie in a folder named 'results'.")]
Grid = Annotated[
    list[str] | None, typer.Option("--grid", metavar="[METHOD.]KEY=V1,V2", help="An axis of settings; more may follow.")
]
Axes = Annotated[list[str] | None, typer.Argument(metavar="[[METHOD.]KEY=V1,V2]...", help="Further axes.")]
RUNS = Path("results/runs")


def parse_seeds(text: str) -> list[int]:
    """'0-2' or '0,3,5' -> seeds. Raises UsageError for anything else, or a seed named twice."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"--seeds takes 0, 0-2 or 0,3,5, got {text!r}")
        if dash and int(last) < int(first):
            raise UsageError(f"--seeds range {part!r} runs backwards")
        seeds += range(int(first), int(last or first) + 1)
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"a seed is named twice in --seeds {text}")
    return seeds


def split_names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@app.command()
def run(
    method: Annotated[str | None, typer.Option("--method", help="A registered method; a preset may name it.")] = None,
    tasks: TasksOrPreset = None,
    backbone: BackboneOrPreset = None,
    seeds: Seeds = "0",
    preset: Preset = None,
    set_: Set = None,
    teachers: Annotated[
        str | None, typer.Option("--teachers", help="'shipped', 'train', or a folder with one adapter folder a task.")
    ] = None,
    results: Results = RUNS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would run, and stop.")] = False,
) -> None:
    """Train one student, resume it, or print its finished summary."""
    from bench.spec import resolve
    from bench.store import results_root

    seed_list, root = parse_seeds(seeds), results_root(results)
    names = None if tasks is None else split_names(tasks)
    spec = resolve(method, names, seed_list[0], backbone, preset, set_, teachers)
    if dry_run:
        from bench.dryrun import explain

        explain(spec)
        return
    from bench.console import Console
    from bench.runner import Session, execute
    from bench.sheet import contact_sheet
    from bench.workers import connect

    summaries, failures = [], []
    workers = connect(spec.device)
    with Console(quiet=not workers.main) as console:
        for seed in seed_list:
            try:
                summaries.append(execute(spec.with_seed(seed), Session(root, workers, console.say, console.listen)))
            except UsageError:
                raise
            except BenchError as error:
                if len(seed_list) == 1 or workers.count > 1:  # the others wait in this seed's exchanges
                    raise
                failures.append(f"seed {seed}: {one_line(error)}")
        if summaries and workers.main:
            sheet = contact_sheet(spec.with_seed(summaries[0]["seed"]), root, summaries[0])
            console.table(summaries, sheet)
    if failures:
        raise PartialError("; ".join(failures))


@app.command()
def teach(
    tasks: TasksOrPreset = None,
    backbone: BackboneOrPreset = None,
    seeds: Seeds = "0",
    preset: Preset = None,
    set_: Set = None,
    results: Results = RUNS,
) -> None:
    """Train one teacher a task by single-task RL; `bench run --teachers train` then uses them."""
    from bench.spec import TEACHER_METHOD, preset_tasks, resolve
    from bench.store import results_root

    names = preset_tasks(preset, None if tasks is None else split_names(tasks))
    seed_list, root = parse_seeds(seeds), results_root(results)
    specs = [resolve(TEACHER_METHOD, [t], s, backbone, preset, set_) for s in seed_list for t in names]
    from bench.console import Console
    from bench.runner import Session, execute
    from bench.workers import connect

    workers = connect(specs[0].device)
    with Console(quiet=not workers.main) as console:
        for spec in specs:
            summary = execute(spec, Session(root, workers, console.say, console.listen))
            if workers.main:
                console.table([summary])


@app.command()
def compare(
    methods: Annotated[str, typer.Option("--methods", "--method", help="Comma-separated methods, or 'all'.")] = "all",
    tasks: Tasks = "all",
    backbone: Backbone = "micro",
    seeds: Seeds = "0-4",
    budget: Annotated[
        int | None, typer.Option("--budget", min=1, help="Training evaluations each; default: opd_analytic's recipe.")
    ] = None,
    grid: Grid = None,
    axes: Axes = None,
    set_: Set = None,
    results: Results = RUNS,
) -> None:
    """Run methods x settings x seeds at one budget, in parallel, and print one table."""
    from bench.comparison import compare_methods

    words = [*(grid or []), *(axes or [])]
    compare_methods(
        split_names(methods), split_names(tasks), backbone, parse_seeds(seeds), budget, words, set_ or [], results
    )


@app.command()
def probe(
    methods: Annotated[str, typer.Option("--methods", "--method", help="Comma-separated methods.")],
    tasks: Tasks = "all",
    student: Annotated[str, typer.Option("--student", help="'base', or a peft adapter folder.")] = "base",
    backbone: Backbone = "micro",
    states: Annotated[int, typer.Option("--states", min=2, help="Draws of prompts and initial noise.")] = 16,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Estimates at each of them.")] = 2,
    by_sigma: Annotated[bool, typer.Option("--by-sigma", help="Also at every noise level by itself.")] = False,
    grid: Grid = None,
    axes: Axes = None,
    set_: Set = None,
    results: Results = RUNS,
    output: Annotated[Path | None, typer.Option("--output", help="Write the numbers to this JSON file.")] = None,
) -> None:
    """Measure gradient noise and interference between tasks at a frozen student."""
    from bench.probe_command import probe_methods

    words = [*(grid or []), *(axes or [])]
    probe_methods(
        split_names(methods), split_names(tasks), student, backbone, words, set_ or [], states, draws, by_sigma,
        results, output,
    )  # fmt: skip


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
    from bench.evaluation_command import score_adapter

    score_adapter(adapter, split_names(tasks), backbone, guidance, steps, split, set_ or [], output, pictures)


@app.command()
def score(
    task: Annotated[str, typer.Argument(help="The task whose scorer is used.")],
    source: Annotated[Path, typer.Argument(help="Folder in GenEval's layout, or a results.jsonl of its evaluator.")],
    set_: Set = None,
    world: Annotated[str, typer.Option("--world", help="Kind of pictures: photo or micro.")] = "photo",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Pictures scored together.")] = 8,
) -> None:
    """Score pictures that any tool made, in the official GenEval layout."""
    from bench.score_command import score_folder

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
    from bench.serve import serve as answer

    answer(task, set_ or [], world, host, port)


@app.command(name="list")
def list_(what: Annotated[str, typer.Argument(help="methods, tasks, backbones, kernels or presets.")]) -> None:
    """List what is registered."""
    from bench.listing import print_list

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
def doctor() -> None:
    """Say what works on this machine and what would fix the rest."""
    from bench.doctor import examine

    examine()


def main() -> None:
    """Entry point: one clear line on stderr and an exit code for every error a user can act on."""
    try:
        code = app(standalone_mode=False)
    except BenchError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        # The command-line parser's own errors; their class is private to typer.
        if not hasattr(error, "format_message"):
            raise
        print(f"error: {' '.join(error.format_message().split())}", file=sys.stderr)
        sys.exit(2)
    sys.exit(code or 0)
