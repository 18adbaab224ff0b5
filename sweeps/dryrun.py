"""`bench sweep --dry-run`: the search space, the trials that are still to be made, and what they cost at most."""

from collections import Counter

from optuna.trial import TrialState

from bench.cli.forecast import counted, hours_lines, of_jobs, seeds_text, teacher_lines
from bench.config.resolve import describe
from bench.jobs.dispatch import refuse_placement
from bench.jobs.placement import Placement
from bench.jobs.runs import teacher_jobs
from bench.printing import terminal
from bench.store.run import Run
from sweeps.storage import Place
from sweeps.study import MEAN, Axis, StudySpec, candidates, find_study, shown, trials_left


def explain_study(spec: StudySpec, place: Place, placement: Placement, workers: int) -> None:
    """Print what a sweep would do. Loads no model, changes nothing on disk and does not create the study.

    Raises UsageError where the sweep would, and StorageError for a storage that cannot be used.
    """
    from rich.table import Table

    study = find_study(spec, place)
    trials = study.get_trials(deepcopy=False) if study else []
    specs = [spec.run(spec.example(), seed) for seed in spec.seed_list]
    refuse_placement(placement, place.folder, specs[0].device)
    states = Counter(trial.state for trial in trials)
    running, left = states[TrialState.RUNNING], trials_left(spec, trials)
    table = Table(title=f"search space of the study {spec.name}: {spec.method} on {', '.join(spec.task_list)}")
    for head in ("setting", "values"):
        table.add_column(head, overflow="fold")
    for name, axis in spec.space.items():
        table.add_row(name, _values(axis))
    out = terminal(110)
    out.print(table)
    known = [f"{count} {state.name.lower()}" for state, count in states.items() if state != TrialState.WAITING]
    backbone_hash = describe(spec.backbone).fingerprint()
    again = spec.confirm.best * len(spec.further_seeds) if spec.confirm else 0
    if not left and not running:
        runs_left = (run for trial in candidates(spec, trials) for run in spec.confirming(trial))
        again = sum(Run(place.runs, run, backbone_hash).summary is None for run in runs_left)
    specs += [spec.run(spec.example(), seed) for seed in spec.further_seeds]
    runs = (left + running) * len(spec.seed_list) + again
    goals = "the mean over tasks" if spec.objective == MEAN else ", ".join(spec.objective)
    pruner = "none" if spec.pruner == "none" else f"{spec.pruner}, at {spec.points} points of the budget"
    shares = [*known, f"{left} to start"]
    if workers > 1:
        shares.append(f"by {workers} workers")
    lines = [
        f"{counted(spec.trials, 'trial')} of {seeds_text(spec.seed_list)}: {', '.join(shares)}",
        f"objective: {goals}, on validation prompts; sampler: {spec.sampler}; pruner: {pruner}",
        *(f"tried first: {', '.join(shown(dict(tried)))}" for tried in spec.enqueue),
        *([f"then the best {spec.confirm.best} with {seeds_text(spec.further_seeds)}"] if spec.confirm else []),
        f"training NFE: at most {counted(runs, 'run')} x {spec.budget:,} = {runs * spec.budget:,}, plus less than one "
        "update per run, because runs end on whole updates; pruned trials cost less",
    ]
    first, _ = teacher_jobs([Run(place.runs, run, backbone_hash) for run in specs], place.runs)
    if runs:
        lines += teacher_lines(specs, first, place.runs)
    if runs and first:
        nfe = of_jobs(first, place.runs).to_do
        lines.append(f"trained first: {counted(len(first), 'teacher')}, {nfe:,} training NFE in addition")
    lines += hours_lines({"with the first settings": (specs[0], runs)}, "if all had these settings")
    lines.append(f"study folder: {place.folder}")
    for line in lines:
        out.print(line, soft_wrap=True)


def _values(axis: Axis) -> str:
    """The values of a dimension, and under them the conditions on which it is varied, as text."""
    if axis.choices is not None:
        values = ", ".join(map(str, axis.choices))
    else:
        low, high = axis.ends
        values = f"{low:g} to {high:g}{', log scale' if axis.log else ''}"
    conditions = [f"if {name} is {' or '.join(map(str, allowed))}" for name, allowed in axis.when.items()]
    return "\n".join([values, *conditions])
