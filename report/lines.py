"""Lines (a method with its settings, over seeds) and pools of lines with equal cost, which are compared."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from bench.analysis.forgetting import Forgetting, forgetting
from bench.analysis.names import readable
from bench.analysis.records import STOPS, Record, line_settings
from bench.backbones.micro.worlds import DRAWN
from bench.config.settings import flattened
from bench.config.spec import measuring
from bench.hashing import text_hash
from bench.registry import registered
from report.checks import printable
from report.evidence import Evidence, FoundRun

EQUAL = 0.05
"""Largest relative difference of two costs that count as equal; budgets end on whole updates."""


class Conditions(NamedTuple):
    """What two runs must have in common for their scores to be comparable."""

    backbone: str
    weights: str
    """Hash of the backbone's weights."""
    tasks: tuple[str, ...]
    """In alphabetical order, because the order of a cascade is a setting."""
    split: str
    steps: int
    guidance: float
    """Scale of the scores along training and, without a grid, of the final ones."""
    prompts: str
    """Hash of the headline and strata of every task."""
    scorers: str = ""
    """The settings of the scorers that decide what they measure."""
    grid: tuple[float, ...] = ()
    """Scales from which every model's final scores have its own best."""


@dataclass(frozen=True)
class Line:
    """One method with its settings, and its finished run for each seed."""

    label: str
    records: list[Record]
    training_nfe: float
    teacher_nfe: float
    """Cost of training its teachers; 0 for methods without teachers, NaN if no record gives it."""
    identity: str = ""
    """Hash of its settings."""
    title: str = ""
    """Its name for readers."""
    typed: str = ""
    """The method and the settings in which it differs, as `bench compare` prints them: its label until `titled`."""
    beyond: str = ""
    """What tells it from lines of other budgets in one table, such as " at 1,079,040"."""

    @cached_property
    def settings(self) -> str:
        """Hash of its settings without the budget: the same line at any budget."""
        settings = line_settings(self.records[0].spec)
        return text_hash({name: value for name, value in settings.items() if name != "budget"})

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.records[0].summary["method"]

    @property
    def total_nfe(self) -> float:
        """Training NFE of a run and of its teachers."""
        return self.training_nfe + self.teacher_nfe

    @property
    def stage_ends(self) -> dict[str, float]:
        """Task -> fraction of the budget at which its stage of a cascade ends, without the last; else empty."""
        if self.method != "cascade":
            return {}
        first = self.records[0]
        order = first.spec["params"].get("order") or tuple(first.summary["models"]["student"])
        # Stages have equal shares of the budget. The last one ends with the run, so nothing can be forgotten after it.
        return {task: place / len(order) for place, task in enumerate(order[:-1], 1)}

    def forgetting(self, task: str) -> Forgetting:
        """How far a task's score dropped during training."""
        ends = self.stage_ends
        later = [end for end in ends.values() if end > ends.get(task, 1.0)]
        evaluations = [record.evaluations for record in self.records]
        return forgetting(evaluations, task, ends.get(task), min(later, default=None))


@dataclass
class Pool:
    """Lines under the same conditions and with the same budget, which are compared."""

    world: Conditions
    place: str
    """The conditions in words."""
    tasks: tuple[str, ...]
    """In the order of the first run."""
    budget: float
    """Training NFE of most of its runs."""
    lines: list[Line]
    whole: bool = False
    """Whether the budget includes the teachers' training; its lines are then in other pools too."""
    unfinished: list[FoundRun] = field(default_factory=list)
    folders: dict[str, list[FoundRun]] = field(default_factory=dict)
    """Line's label -> its finished runs."""
    pictured: dict[str, list[FoundRun]] = field(default_factory=dict)
    """Line's label -> its runs that kept images, by seed, including those in `repeated`."""
    repeated: list[FoundRun] = field(default_factory=list)
    """Finished runs of a line and seed that another folder already has; excluded from every mean."""
    odd: list[FoundRun] = field(default_factory=list)
    """Finished runs whose cost differs from most of their line; excluded from every mean."""

    @property
    def title(self) -> str:
        """Conditions and budget in words."""
        if not self.lines:
            return f"{self.place}; no finished run"
        spent = "NFE per run, including the teachers' training" if self.whole else "training NFE per run"
        return f"{self.place}; about {self.budget:,.0f} {spent}"

    @property
    def missing_seeds(self) -> dict[str, list[int]]:
        """Line's label -> the seeds that other lines have but it does not."""
        have = {}
        for line in self.lines:
            have[line.label] = {record.summary["seed"] for record in line.records}
        every = sorted(set().union(*have.values()))
        absent = {label: [seed for seed in every if seed not in own] for label, own in have.items()}
        return {label: seeds for label, seeds in absent.items() if seeds}

    def spread(self) -> dict[str, tuple[float, float]]:
        """Line's label -> smallest and largest cost of its runs, for lines with runs of unequal cost."""
        found = {}
        for label, members in self.folders.items():
            costs = [run.spent for run in members]
            least, most = min(costs), max(costs)
            # Zero would have no ratio to the largest cost.
            if least and not near(least, most):
                found[label] = least, most
        return found

    def reference(self) -> Line | None:
        """The line that the others are compared with: analytic OPD if present, otherwise the first."""
        named = [line for line in self.lines if line.method == "opd_analytic"]
        return next(iter(named or self.lines), None)


def _words(worlds: list[Conditions]) -> dict[Conditions, str]:
    """All conditions in words, with hashes only where nothing else distinguishes two of them. A drawn world is always
    labelled as one, so that nobody takes its scores for those of real images."""
    plain = {}
    for world in worlds:
        name = world.backbone
        if name in DRAWN:
            name += ", a drawn world (not GenEval, OCR or PickScore on real images)"
        where = f"{name}; {', '.join(world.tasks)}; {world.split} prompts, {world.steps} steps"
        guided = f"guidance {world.guidance:g}"
        if world.grid:
            scales = ", ".join(f"{scale:g}" for scale in world.grid)
            guided = f"each model and task at its own best guidance of {scales}; along training at {world.guidance:g}"
        plain[world] = printable(f"{where}, {guided}")
    for world, text in list(plain.items()):
        twins = [other for other in worlds if other is not world and plain[other].startswith(text)]
        if any(other.weights != world.weights for other in twins):
            plain[world] += f", weights {world.weights[:10]}"
        if any(other.scorers != world.scorers for other in twins):
            plain[world] += printable(f", scorers {world.scorers or 'as they are by default'}")
        if any(other.prompts != world.prompts for other in twins):
            plain[world] += f", prompts {world.prompts}"
    return plain


def pools(evidence: Evidence) -> list[Pool]:
    """Pools of equal budget under each set of conditions, largest first; pools that count the teachers come last."""
    worlds: dict[Conditions, list[FoundRun]] = defaultdict(list)
    for run in evidence.runs:
        worlds[_conditions_of(run)].append(run)
    # An unfinished run has no prompts yet; it joins the runs that agree in everything else, if there are any.
    for world in [world for world in worlds if not world.prompts]:
        kin = [other for other in worlds if other.prompts and other._replace(prompts="") == world]
        if kin:
            worlds[kin[0]] += worlds.pop(world)
    words = _words(list(worlds))
    found = [_world(world, words[world], runs, evidence) for world, runs in worlds.items()]
    found.sort(key=_size, reverse=True)
    return [pool for pools_ in found for pool in pools_]


def _conditions_of(run: FoundRun) -> Conditions:
    held_out, prompts = run.spec["evaluation"], ""
    if run.record:
        shown = run.record.summary["models"]["student"]
        # Records do not hold the prompts themselves, so their strata and number stand for them.
        parts = [[task, row["headline"], row["strata"].tolist()] for task, row in sorted(shown.items())]
        prompts = text_hash(parts)
    return Conditions(
        backbone=run.spec["backbone"],
        weights=run.weights,
        tasks=tuple(sorted(run.spec["tasks"])),
        split=held_out["split"],
        steps=held_out["steps"],
        guidance=held_out["guidance"],
        prompts=prompts,
        scorers=_scorers(run.spec),
        grid=tuple(held_out.get("guidance_grid", ())),
    )


def _scorers(spec: dict) -> str:
    """What a run sets of its tasks' scorers, apart from where they run."""
    own = {task: scorer for task, scorer in spec.get("scorers", {}).items() if task in spec["tasks"]}
    settings = ((task, *setting) for task, scorer in measuring(own).items() for setting in scorer.items())
    return ", ".join(f"{task}.{key}={value}" for task, key, value in sorted(settings))


def _size(pools_: list[Pool]) -> int:
    return sum(len(line.records) for pool in pools_ for line in pool.lines)


def _world(world: Conditions, place: str, runs: list[FoundRun], evidence: Evidence) -> list[Pool]:
    groups: dict[str, list[FoundRun]] = defaultdict(list)
    for run in runs:
        if run.record:
            groups[text_hash(line_settings(run.spec))].append(run)
    odd: list[FoundRun] = []
    for identity, members in groups.items():
        usual = _usual([run.spent for run in members])
        strangers = [run for run in members if run.spent != usual and not near(run.spent, usual)]
        # Then no cost is typical, for example with a budget in seconds.
        # Those that an alarm ended are the very runs that a mean must not lose.
        if 2 * len(strangers) >= len(members) or STOPS in line_settings(members[0].spec):
            strangers = []
        odd += strangers
        groups[identity] = [run for run in members if run not in strangers]
    spent = {identity: _mean_cost(members) for identity, members in groups.items()}
    tasks = tuple(runs[0].spec["tasks"])
    start = Pool(world, place, tasks, 0.0, [])
    made = []
    for budget, identities in _budgets(spent, groups):
        made.append(_pool(replace(start, budget=budget), identities, groups, evidence))
    # Without any finished run there is still one pool, which lists the unfinished ones.
    made = made or [start]
    unfinished = [run for run in runs if not run.record]
    made[0] = replace(made[0], unfinished=unfinished, odd=odd)
    return made + _whole(made)


def _mean_cost(members: list[FoundRun]) -> float:
    return sum(run.spent for run in members) / len(members)


def _usual(budgets: list[float]) -> float:
    """The most frequent budget; of several, the largest."""
    counts = Counter(budgets)
    return max(counts, key=lambda b: (counts[b], b))


def _budgets(
    spent: dict[str, float],
    groups: dict[str, list[FoundRun]],
) -> list[tuple[float, list[str]]]:
    """(budget, identities of the lines with that budget), ordered by number of methods and then of runs.

    Lines without training join the first budget.
    """

    def weight(identities: list[str]) -> tuple[int, int]:
        members = [run for identity in identities for run in groups[identity]]
        return len({run.spec["method"] for run in members}), len(members)

    left = {identity: budget for identity, budget in spent.items() if budget}
    idle = [identity for identity, budget in spent.items() if not budget]
    found: list[tuple[float, list[str]]] = []
    # Being near is not transitive (95, 100, 105), so the pools are taken greedily, heaviest first.
    while left:
        around = {}
        for budget in left.values():
            around[budget] = [identity for identity, other in left.items() if near(other, budget)]
        # Of pools with equal weight the largest budget wins, so that the order does not depend on that of the files.
        heaviest = max(around, key=lambda b: (weight(around[b]), b))
        identities = around[heaviest]
        budgets = [left[identity] for identity in identities for _ in groups[identity]]
        found.append((_usual(budgets), identities))
        left = {identity: other for identity, other in left.items() if identity not in identities}
    if not found:
        return [(0.0, idle)] if idle else []
    (budget, identities), *others = found
    return [(budget, identities + idle), *others]


def near(a: float, b: float) -> bool:
    """Whether two costs count as equal (EQUAL)."""
    return bool(b) and abs(a / b - 1) <= EQUAL


def _pool(
    start: Pool,
    identities: list[str],
    groups: dict[str, list[FoundRun]],
    evidence: Evidence,
) -> Pool:
    lines: list[Line] = []
    folders: dict[str, list[FoundRun]] = {}
    pictured: dict[str, list[FoundRun]] = {}
    repeated: list[FoundRun] = []
    labels = _labels({identity: groups[identity][0].spec for identity in identities})
    for identity in identities:
        members = sorted(groups[identity], key=lambda run: run.spec["seed"])
        told = {label for run in members for label in evidence.labels.get(run.name, [None])}
        only = told.pop() if len(told) == 1 else None
        typed = printable(labels[identity] if only is None else only)
        # Two comparisons may use one label for lines with different settings.
        label = typed if typed not in folders else f"{typed} ({identity})"
        # Of runs with equal seeds the first is kept: later entries overwrite earlier ones, hence the reversals.
        by_seed = {run.spec["seed"]: run for run in reversed(members)}
        once = list(by_seed.values())[::-1]
        folders[label] = once
        pictured[label] = [run for run in members if run.result.summary.get("pictures")]
        repeated += [run for run in members if run not in once]
        records = [run.result for run in once]
        spec = records[0].spec
        title = printable(readable(typed, spec["params"], spec["method"]))
        lines.append(Line(label, records, _mean_cost(once), _teachers(once, evidence), identity, title, label))
    # Methods that are not installed here come after those that are.
    rank = {name: place for place, name in enumerate(registered("method"))}
    lines.sort(key=lambda line: (rank.get(line.method, len(rank)), line.label))
    return replace(start, lines=lines, folders=folders, pictured=pictured, repeated=repeated)


def _teachers(members: list[FoundRun], evidence: Evidence) -> float:
    """NFE of training a run's teachers, the mean over those runs of which it is known; NaN if it is known of none."""
    costs = [cost for run in members if (cost := _teachers_of(run, evidence)) is not None]
    return sum(costs) / len(costs) if costs else float("nan")


def _teachers_of(run: FoundRun, evidence: Evidence) -> float | None:
    teachers = run.result.summary["teachers"]
    if teachers and run.name in evidence.teacher_costs:
        return evidence.teacher_costs[run.name]
    costs = [teacher.get("evaluations") for teacher in teachers.values()]
    return None if None in costs else float(sum(costs))


def _whole(made: list[Pool]) -> list[Pool]:
    """Pools of lines without teachers whose cost equals that of other lines with their teachers, and those lines."""
    lines = apart(made)
    found: list[Pool] = []
    for line, pool in lines:
        taught = [(other, home) for other, home in lines if other.teacher_nfe and home is not pool]
        same = [(other, home) for other, home in taught if near(line.total_nfe, other.total_nfe)]
        budget = same[0][0].total_nfe if same else 0.0
        if line.teacher_nfe or not same or any(near(budget, known.budget) for known in found):
            continue
        members = [(other, home) for other, home in lines if near(other.total_nfe, budget)]
        budget = _usual([round(other.total_nfe) for other, _ in members for _ in other.records])
        folders = {other.label: _folders(other, home) for other, home in members}
        within = [other for other, _ in members]
        whole = Pool(pool.world, pool.place, pool.tasks, budget, within, whole=True, folders=folders)
        found.append(whole)
    return found


def _folders(line: Line, pool: Pool) -> list[FoundRun]:
    # By identity, because `apart` changes labels.
    return next(pool.folders[own.label] for own in pool.lines if own.identity == line.identity)


def titled(pool: Pool) -> Pool:
    """The pool with the lines' titles in place of their labels, which stay where two lines have one title."""
    titles = {line.label: line.title + line.beyond for line in pool.lines}
    counts = Counter(titles.values())
    names = {label: title if counts[title] == 1 else label for label, title in titles.items()}
    return replace(
        pool,
        lines=[replace(line, label=names[line.label]) for line in pool.lines],
        folders={names[label]: runs for label, runs in pool.folders.items()},
        pictured={names[label]: runs for label, runs in pool.pictured.items()},
    )


def of_teachers(pool: Pool, others: list[Pool]) -> bool:
    """Whether a pool only has the runs of a teacher whose students are in another pool.

    There is nothing to compare then; such runs are shown in words, as over-optimised, and among the provenance.
    """
    if [line.method for line in pool.lines] != ["single_task"]:
        return False
    same = [other for other in others if other.world.weights == pool.world.weights]
    taught = [record.summary["teachers"].keys() for other in same for line in other.lines for record in line.records]
    return any(set(pool.tasks) <= tasks for tasks in taught)


def apart(made: list[Pool]) -> list[tuple[Line, Pool]]:
    """All lines under the same conditions with their pools; lines outside the first budget carry it in their label."""
    found = []
    for pool in made:
        if pool.whole:
            continue
        for line in pool.lines:
            shown = line
            if pool is not made[0]:
                spent = f" at {line.training_nfe:,.0f}"
                shown = replace(line, label=line.label + spent, beyond=spent)
            found.append((shown, pool))
    return found


def _labels(specs: dict[str, dict]) -> dict[str, str]:
    """Identity -> method name with the settings that differ from most of the method's lines."""
    flat = {identity: flattened(line_settings(spec)) for identity, spec in specs.items()}
    labels = {}
    for identity, settings in flat.items():
        peers = [other for other in flat.values() if other["method"] == settings["method"]]
        shown = []
        for key, value in settings.items():
            # As text, because settings may be lists, which cannot be counted.
            if _common([str(peer.get(key)) for peer in peers]) != str(value):
                short = key.removeprefix("params.").removeprefix("sampler.")
                shown.append(f"{short}={value}")
        labels[identity] = f"{settings['method']} {','.join(shown)}" if shown else settings["method"]
    return labels


def _common(values: list[str]) -> str | None:
    """The most frequent value; None if two are equally frequent."""
    (first, count), *others = Counter(values).most_common(2)
    return None if others and others[0][1] == count else first
