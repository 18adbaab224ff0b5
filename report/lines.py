"""Runs as lines: one method with its settings over seeds, in pools of lines whose scores compare."""

from collections import defaultdict
from dataclasses import dataclass, field

from bench.hashing import text_hash
from bench.registry import registered
from report.claims import EQUAL, NOT_THE_LINE
from report.evidence import Evidence, Found
from report.load import Line


@dataclass
class Pool:
    """Lines on one backbone, set of tasks and held-out evaluation."""

    backbone: str
    tasks: tuple[str, ...]
    split: str
    steps: int
    guidance: float
    budget: float
    """Training evaluations of a run of its equal lines."""
    equal: list[Line] = field(default_factory=list)
    """At this budget: these are compared."""
    others: list[Line] = field(default_factory=list)
    """At other budgets: shown with them, never ranked among the equal ones."""
    unfinished: list[Found] = field(default_factory=list)
    folders: dict[str, list[Found]] = field(default_factory=dict)
    """Line's label -> its finished runs."""
    identities: dict[str, str] = field(default_factory=dict)
    """Line's label -> hash of its settings."""
    pictured: dict[str, list[Found]] = field(default_factory=dict)
    """Line's label -> its runs that kept pictures, by seed; those among them that are `repeated` too."""
    repeated: list[Found] = field(default_factory=list)
    """Finished runs of a line and seed that another folder already gives: in no mean."""
    missing_seeds: dict[str, list[int]] = field(default_factory=dict)
    """Line's label -> seeds that other equal lines have and it has not."""

    @property
    def title(self) -> str:
        world = "micro, a drawn world (not GenEval, OCR or PickScore of real pictures)"
        name = world if self.backbone == "micro" else self.backbone
        return f"{name}; {self.split} prompts, {self.steps} steps, guidance {self.guidance:g}"

    @property
    def lines(self) -> list[Line]:
        return [*self.equal, *self.others]

    def reference(self) -> Line | None:
        """Whom the others are compared with: analytic OPD where there is one, else the best."""
        named = [line for line in self.equal if line.method == "opd_analytic"]
        return (named or self.equal or [None])[0]


def pools(evidence: Evidence) -> list[Pool]:
    """Pools in the order of their number of runs. Runs of studies and teachers' single-task runs form pools too."""
    found: dict[tuple, list[Found]] = defaultdict(list)
    for run in evidence.runs:
        held_out = run.spec["evaluation"]
        found[
            run.spec["backbone"], tuple(run.spec["tasks"]), held_out["split"], held_out["steps"], held_out["guidance"]
        ].append(run)
    made = [_pool(key, runs, evidence) for key, runs in found.items()]
    return sorted(made, key=lambda pool: -sum(len(line.records) for line in pool.lines))


def _pool(key: tuple, runs: list[Found], evidence: Evidence) -> Pool:
    groups: dict[str, list[Found]] = defaultdict(list)
    for run in runs:
        if run.record:
            identity = text_hash({name: value for name, value in run.spec.items() if name not in NOT_THE_LINE})
            groups[identity].append(run)
    labels = _labels({identity: members[0].spec for identity, members in groups.items()})
    lines, folders, identities, pictured, repeated = [], {}, {}, {}, []
    for identity, members in groups.items():
        told = {evidence.labels.get(run.name) for run in members}
        label = told.pop() if len(told) == 1 and None not in told else labels[identity]
        label = label if label not in folders else f"{label} ({identity})"
        members.sort(key=lambda run: run.spec["seed"])
        pictured[label] = [run for run in members if run.record.summary.get("pictures")]
        once = list({run.spec["seed"]: run for run in reversed(members)}.values())[::-1]  # of equal seeds the first
        repeated += [run for run in members if run not in once]
        folders[label], identities[label] = once, identity
        lines.append(_line(label, once, evidence))
    order = list(registered("method"))
    lines.sort(key=lambda line: (order.index(line.method) if line.method in order else len(order), line.label))
    budget = _usual([line.training_evaluations for line in lines for _ in line.records])
    equal = [line for line in lines if _near(line.training_evaluations, budget) or not line.training_evaluations]
    pool = Pool(*key, budget, equal, [line for line in lines if line not in equal], folders=folders)
    pool.identities, pool.pictured, pool.repeated = identities, pictured, repeated
    pool.unfinished = [run for run in runs if not run.record]
    seeds = sorted({r.summary["seed"] for line in equal for r in line.records})
    for line in equal:
        if absent := [seed for seed in seeds if seed not in {r.summary["seed"] for r in line.records}]:
            pool.missing_seeds[line.label] = absent
    return pool


def _line(label: str, members: list[Found], evidence: Evidence) -> Line:
    records = [run.record for run in members]
    training = sum(r.summary["cost"]["evaluations"].get("training", 0) for r in records) / len(records)
    return Line(label, records, training, _teachers(label, members, evidence))


def _teachers(label: str, members: list[Found], evidence: Evidence) -> float:
    """What a line's teachers cost: 0 without any, NaN where no record says."""
    teachers = members[0].record.summary["teachers"]
    if not teachers:
        return 0.0
    if label in evidence.teacher_costs:
        return evidence.teacher_costs[label]
    costs = [teacher.get("evaluations") for teacher in teachers.values()]
    return float("nan") if None in costs else float(sum(costs))


def _usual(budgets: list[float]) -> float:
    """The budget that most runs have, those that train nothing left out."""
    spent = sorted(b for b in budgets if b)
    return max(spent, key=lambda b: (sum(_near(other, b) for other in spent), b), default=0.0)


def _near(a: float, b: float) -> bool:
    return bool(b) and abs(a / b - 1) <= EQUAL


def _labels(specs: dict[str, dict]) -> dict[str, str]:
    """Identity -> method, with the settings in which its lines differ."""
    flat = {identity: _flat(spec) for identity, spec in specs.items()}
    labels = {}
    for identity, settings in flat.items():
        peers = [other for other in flat.values() if other["method"] == settings["method"]]
        differ = [key for key in settings if len({str(peer.get(key)) for peer in peers}) > 1]
        shown = ",".join(f"{k.removeprefix('params.').removeprefix('sampler.')}={settings[k]}" for k in differ)
        labels[identity] = f"{settings['method']} {shown}" if shown else settings["method"]
    return labels


def _flat(section: dict, prefix: str = "") -> dict:
    result: dict = {}
    for key, value in section.items():
        if not prefix and key in NOT_THE_LINE:
            continue
        path = f"{prefix}{key}"
        result |= _flat(value, f"{path}.") if isinstance(value, dict) and value else {path: value}
    return result
