"""Runs as lines: one method with its settings over seeds, in pools of lines that spent the same and so compare."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

from bench.hashing import text_hash
from bench.records import Record
from bench.registry import registered
from report.evidence import Evidence, Found

EQUAL = 0.05
"""Relative difference up to which two costs count as equal: budgets end on whole updates."""
NOT_THE_LINE = ("seed", "evaluation", "probes", "checkpoint_every", "device")
"""Settings in which runs of one line may differ."""
World = tuple[str, tuple[str, ...], str, int, float]
"""Backbone, tasks, split, steps and guidance of the evaluation: scores of two worlds never compare."""


@dataclass(frozen=True)
class Line:
    """One method with its settings, and its finished runs, one a seed."""

    label: str
    records: list[Record]
    training_evaluations: float
    teacher_evaluations: float
    """What its teachers cost to train; 0 for methods without teachers, NaN where no record says."""
    identity: str = ""
    """Hash of its settings."""

    @property
    def method(self) -> str:
        return self.records[0].summary["method"]

    @property
    def total_evaluations(self) -> float:
        return self.training_evaluations + self.teacher_evaluations


@dataclass
class Pool:
    """Lines of one world at one budget: they are compared."""

    world: World
    budget: float
    """Training evaluations of a run, as most of its runs have them."""
    lines: list[Line]
    whole: bool = False
    """Whether the budget counts the teachers' training: its lines are then in other pools too."""
    unfinished: list[Found] = field(default_factory=list)
    folders: dict[str, list[Found]] = field(default_factory=dict)
    """Line's label -> its finished runs."""
    pictured: dict[str, list[Found]] = field(default_factory=dict)
    """Line's label -> its runs that kept pictures, by seed; those among them that are `repeated` too."""
    repeated: list[Found] = field(default_factory=list)
    """Finished runs of a line and seed that another folder already gives: in no mean."""

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.world[1]

    @property
    def title(self) -> str:
        spent = "evaluations a run, the teachers' training counted" if self.whole else "training evaluations a run"
        return f"{world_title(self.world)}; about {self.budget:,.0f} {spent}"

    @property
    def missing_seeds(self) -> dict[str, list[int]]:
        """Line's label -> seeds that other lines have and it has not."""
        have = {line.label: {r.summary["seed"] for r in line.records} for line in self.lines}
        every = sorted(set().union(*have.values()))
        return {label: absent for label, own in have.items() if (absent := [s for s in every if s not in own])}

    def reference(self) -> Line | None:
        """Whom the others are compared with: analytic OPD where there is one, else the first."""
        named = [line for line in self.lines if line.method == "opd_analytic"]
        return (named or self.lines or [None])[0]


def world_title(world: World) -> str:
    """For people; the drawn world is never taken for real pictures."""
    backbone, _, split, steps, guidance = world
    name = "micro, a drawn world (not GenEval, OCR or PickScore of real pictures)" if backbone == "micro" else backbone
    return f"{name}; {split} prompts, {steps} steps, guidance {guidance:g}"


def pools(evidence: Evidence) -> list[Pool]:
    """Pools of equal budget, world by world, those with the most runs first; then those that count the teachers."""
    worlds: dict[World, list[Found]] = defaultdict(list)
    for run in evidence.runs:
        held_out = run.spec["evaluation"]
        world = (run.spec["backbone"], tuple(run.spec["tasks"]), *(held_out[k] for k in ("split", "steps", "guidance")))
        worlds[world].append(run)
    found = [_world(world, runs, evidence) for world, runs in worlds.items()]
    return [pool for pools_ in sorted(found, key=lambda pools_: -_size(pools_)) for pool in pools_]


def _size(pools_: list[Pool]) -> int:
    return sum(len(line.records) for pool in pools_ for line in pool.lines)


def _world(world: World, runs: list[Found], evidence: Evidence) -> list[Pool]:
    groups: dict[str, list[Found]] = defaultdict(list)
    for run in runs:
        if run.record:
            settings = {name: value for name, value in run.spec.items() if name not in NOT_THE_LINE}
            groups[text_hash(settings)].append(run)
    spent = {identity: _training(members) for identity, members in groups.items()}
    made = [_pool(world, budget, identities, groups, evidence) for budget, identities in _budgets(spent, groups)]
    made = made or [Pool(world, 0.0, [])]
    made[0].unfinished = [run for run in runs if not run.record]
    return made + _whole(world, made)


def _training(members: list[Found]) -> float:
    spent = [run.record.summary["cost"]["evaluations"].get("training", 0) for run in members]
    return sum(spent) / len(spent)


def _budgets(spent: dict[str, float], groups: dict[str, list[Found]]) -> list[tuple[float, list[str]]]:
    """(budget, identities of the lines that spent it), first the one of most methods and then of most runs.

    What trains nothing goes with the first.
    """

    def weight(identities: list[str]) -> tuple[int, int]:
        members = [run for identity in identities for run in groups[identity]]
        return len({run.spec["method"] for run in members}), len(members)

    left = {identity: budget for identity, budget in spent.items() if budget}
    idle = [identity for identity, budget in spent.items() if not budget]
    found: list[tuple[float, list[str]]] = []
    while left:
        around = {b: [identity for identity, other in left.items() if near(other, b)] for b in left.values()}
        identities = around[max(around, key=lambda b: (weight(around[b]), b))]
        usual = Counter({b: sum(len(groups[i]) for i in identities if left[i] == b) for b in around})
        found.append((max(usual, key=lambda b: (usual[b], b)), identities))
        left = {identity: other for identity, other in left.items() if identity not in identities}
    if idle and not found:
        return [(0.0, idle)]
    return [(budget, [*identities, *(idle if k == 0 else [])]) for k, (budget, identities) in enumerate(found)]


def near(a: float, b: float) -> bool:
    """Whether two costs count as equal."""
    return bool(b) and abs(a / b - 1) <= EQUAL


def _pool(
    world: World, budget: float, identities: list[str], groups: dict[str, list[Found]], evidence: Evidence
) -> Pool:
    pool, order = Pool(world, budget, []), list(registered("method"))
    labels = _labels({identity: groups[identity][0].spec for identity in identities})
    for identity in identities:
        members = sorted(groups[identity], key=lambda run: run.spec["seed"])
        told = {label for run in members for label in evidence.labels.get(run.name, [None])}
        label = told.pop() if len(told) == 1 and None not in told else labels[identity]
        label = label if label not in pool.folders else f"{label} ({identity})"
        once = list({run.spec["seed"]: run for run in reversed(members)}.values())[::-1]  # of equal seeds the first
        pool.folders[label] = once
        pool.pictured[label] = [run for run in members if run.record.summary.get("pictures")]
        pool.repeated += [run for run in members if run not in once]
        records = [run.record for run in once]
        pool.lines.append(Line(label, records, _training(once), _teachers(once, evidence), identity))
    rank = {name: place for place, name in enumerate(order)}
    pool.lines.sort(key=lambda line: (rank.get(line.method, len(rank)), line.label))
    return pool


def _teachers(members: list[Found], evidence: Evidence) -> float:
    teachers = members[0].record.summary["teachers"]
    if not teachers:
        return 0.0
    known = [evidence.teacher_costs[run.name] for run in members if run.name in evidence.teacher_costs]
    if known:
        return known[0]
    costs = [teacher.get("evaluations") for teacher in teachers.values()]
    return float("nan") if None in costs else float(sum(costs))


def _whole(world: World, made: list[Pool]) -> list[Pool]:
    """Lines without teachers that spent what others spent with theirs, and those others."""
    lines = apart(made)
    found: list[Pool] = []
    for line, pool in lines:
        taught = [(other, home) for other, home in lines if other.teacher_evaluations and home is not pool]
        same = [(other, home) for other, home in taught if near(line.total_evaluations, other.total_evaluations)]
        budget = same[0][0].total_evaluations if same else 0.0
        if line.teacher_evaluations or not same or any(near(budget, known.budget) for known in found):
            continue
        members = [(other, home) for other, home in lines if near(other.total_evaluations, budget)]
        folders = {other.label: _folders(other, home) for other, home in members}
        found.append(Pool(world, budget, [other for other, _ in members], whole=True, folders=folders))
    return found


def _folders(line: Line, pool: Pool) -> list[Found]:
    return next(pool.folders[own.label] for own in pool.lines if own.identity == line.identity)


def apart(made: list[Pool]) -> list[tuple[Line, Pool]]:
    """Every line of a world's budgets and its pool; those beyond the first budget are labelled with theirs."""
    return [
        (line if pool is made[0] else replace(line, label=f"{line.label} at {line.training_evaluations:,.0f}"), pool)
        for pool in made if not pool.whole
        for line in pool.lines
    ]  # fmt: skip


def _labels(specs: dict[str, dict]) -> dict[str, str]:
    """Identity -> method, with the settings that are not what most of the method's lines have."""
    flat = {identity: _flat(spec) for identity, spec in specs.items()}
    labels = {}
    for identity, settings in flat.items():
        peers = [other for other in flat.values() if other["method"] == settings["method"]]
        own = [key for key in settings if _usual([str(peer.get(key)) for peer in peers]) != str(settings[key])]
        shown = ",".join(f"{k.removeprefix('params.').removeprefix('sampler.')}={settings[k]}" for k in own)
        labels[identity] = f"{settings['method']} {shown}" if shown else settings["method"]
    return labels


def _usual(values: list[str]) -> str | None:
    """The most frequent value; None where two are."""
    (first, count), *others = Counter(values).most_common(2)
    return None if others and others[0][1] == count else first


def _flat(section: dict, prefix: str = "") -> dict:
    result: dict = {}
    for key, value in section.items():
        if not prefix and key in NOT_THE_LINE:
            continue
        path = f"{prefix}{key}"
        result |= _flat(value, f"{path}.") if isinstance(value, dict) and value else {path: value}
    return result
