"""The confirmation of a study: which settings, which seeds, what is chosen, and what a dry run says of it."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

from bench.errors import BenchError, BusyError, MissingError, UsageError
from report.checks import STUDY as RECORD
from report.checks import checked
from report.studies import study_parts
from sweeps import confirm as confirming
from sweeps.confirm import confirm, confirmed
from sweeps.measure import Measured
from sweeps.storage import Place
from sweeps.study import StudySpec, candidates, read_study
from sweeps.summary import show, summarise
from sweeps.worker import work
from tests.commands import bench

pytestmark = pytest.mark.usefixtures("few_prompts")

STUDY = {
    "name": "s", "method": "opd_analytic", "tasks": "ocr", "budget": 300, "trials": 4, "seeds": 100,
    "space": {"optimizer.lr": {"choices": [0.001, 0.002, 0.003]}},
    "enqueue": [{"optimizer.lr": 0.001}, {"optimizer.lr": 0.002}, {"optimizer.lr": 0.003}],
    "confirm": {"best": 2, "seeds": "101-102"},
}  # fmt: skip
TRIED = {0.001: 0.5, 0.002: 0.7, 0.003: 0.6}
"""Scores of the trials by learning rate. The fourth trial repeats one of the three."""
AGAIN = {0.001: 0.9, 0.002: 0.1, 0.003: 0.6}
"""Scores with further seeds: the trials' best setting is not the best."""


def study(**changes) -> StudySpec:
    return StudySpec.model_validate(STUDY | changes)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "results" / "s")


def tried(spec: StudySpec, place: Place):
    return work(spec, place, carry_out=lambda s, p, chosen, r: Measured({"ocr": [TRIED[chosen["optimizer.lr"]]]}, ["a"]))


def row(value: float) -> dict:
    return {"prompts": ["p"], "scores": [value], "trained": "reward", "mean": value}


class Made:
    """Stands in for runs: their summaries, in memory."""

    done: dict[tuple[float, int], dict]

    def __init__(self, monkeypatch, errors: dict | None = None):
        self.done, self.asked, self.errors = {}, [], errors or {}
        made = self

        class Run:
            def __init__(self, root, spec, fingerprint):
                self.key = spec.optimizer.lr, spec.seed
                self.folder = Path(f"run-{spec.optimizer.lr}-s{spec.seed}")

            @property
            def summary(self):
                return made.done.get(self.key)

        monkeypatch.setattr(confirming, "Run", Run)
        monkeypatch.setattr(confirming, "execute", self.execute)
        monkeypatch.setattr(confirming, "score", lambda row: row["mean"])
        monkeypatch.setattr(confirming, "BUSY_S", 0)

    def execute(self, run, session) -> dict:
        key = run.optimizer.lr, run.seed
        self.asked.append(key)
        if error := self.errors.get(key, [None]).pop(0) if self.errors.get(key) else None:
            raise error
        self.done[key] = {"models": {"student": {"ocr": row(AGAIN[run.optimizer.lr])}}}
        return self.done[key]


def test_the_best_different_settings_are_run_again_and_the_best_mean_is_chosen(place: Place, monkeypatch) -> None:
    spec, made = study(), Made(monkeypatch)
    done = tried(spec, place)
    assert [trial.user_attrs["settings"]["optimizer.lr"] for trial in candidates(spec, done.trials)] == [0.002, 0.003]
    confirm(spec, done, place)
    assert made.asked == [(0.002, 101), (0.002, 102), (0.003, 101), (0.003, 102)]
    rows = confirmed(spec, done, place)
    assert [(row["settings"]["optimizer.lr"], row["value"]) for row in rows] == [
        (0.003, pytest.approx((0.6 + 0.6 + 0.6) / 3)),
        (0.002, pytest.approx((0.7 + 0.1 + 0.1) / 3)),
    ]
    assert rows[0]["scores"] == {"ocr": [0.6, 0.6, 0.6]}
    assert rows[0]["runs"] == ["a", "run-0.003-s101", "run-0.003-s102"]
    summary = summarise(spec, done, place)
    assert summary["best"][0]["settings"] == {"optimizer.lr": 0.002}
    assert summary["chosen"]["settings"] == {"optimizer.lr": 0.003}
    assert "optimizer.lr=0.003" in summary["command"]
    assert shlex.split(summary["command"])[-1 - summary["command"].count("--set") * 2] == "100,101,102"
    parts = study_parts(checked(RECORD, json.loads(json.dumps(summary))), "s")
    trials, again = parts[0], parts[1]
    assert [row["trial"] for row in again.rows] == [2, 1]
    assert again.rows[1] == {"trial": 1, "tried": 0.7, "mean": pytest.approx(0.3), "ocr": pytest.approx(0.3), "seeds": 3}
    strong = {trials.rows[index]["trial"] for index, _ in trials.strong}
    assert strong == {2}


def test_nothing_is_confirmed_before_all_trials_have_finished(place: Place, monkeypatch) -> None:
    made = Made(monkeypatch)
    done = tried(study(trials=3), place)
    confirm(study(trials=4), done, place)
    assert made.asked == [] and confirmed(study(trials=4), done, place) == []
    assert summarise(study(trials=4), done, place)["chosen"]["settings"] == {"optimizer.lr": 0.002}


def test_a_confirmation_may_be_asked_for_later(place: Place, monkeypatch) -> None:
    made = Made(monkeypatch)
    tried(study(confirm=None), place)
    confirm(study(), tried(study(), place), place)
    assert len(made.asked) == 4


def test_runs_of_other_workers_are_left_to_them(place: Place, monkeypatch) -> None:
    """The run in other hands is passed over and asked for again at the end."""
    made = Made(monkeypatch, {(0.002, 101): [BusyError("in hand"), BusyError("in hand")]})
    confirm(study(), tried(study(), place), place)
    assert made.asked == [(0.002, 101), (0.002, 102), (0.003, 101), (0.003, 102), (0.002, 101), (0.002, 101)]


def test_a_setting_that_fails_with_a_further_seed_is_not_chosen(place: Place, monkeypatch, capsys) -> None:
    said: list[str] = []
    made = Made(monkeypatch, {(0.003, 102): [BenchError("the loss is\nnot finite")]})
    done = tried(study(), place)
    confirm(study(), done, place, said.append)
    assert "trial 2, seed 102 failed: the loss is not finite" in said
    assert [(row["trial"], row["value"] is None) for row in confirmed(study(), done, place)] == [(1, False), (2, True)]
    assert summarise(study(), done, place)["chosen"]["trial"] == 1
    made.done.clear()
    summary = summarise(study(), done, place)
    assert summary["chosen"]["trial"] == 1  # of the trials alone
    show(study(), summary, place)
    out = capsys.readouterr().out
    assert "a run of each is missing, so none is confirmed" in out and "to repeat the best trial" in out


@pytest.mark.parametrize("error", [MissingError("no scorer answers"), MemoryError("not enough"), OSError("disk")])
def test_what_no_settings_cause_ends_the_worker(place: Place, monkeypatch, error: Exception) -> None:
    Made(monkeypatch, {(0.002, 101): [error]})
    with pytest.raises((BenchError, OSError), match=str(error)):
        confirm(study(), tried(study(), place), place)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"confirm": {"best": 2, "seeds": "100-101"}}, "confirm.seeds has seed 100, which the trials have too"),
        ({"confirm": {"best": 0, "seeds": 1}}, "confirm.best: .*greater than or equal to 1"),
        ({"confirm": {"best": 2, "seeds": "1,1"}}, "a seed is named twice"),
        ({"confirm": {"best": 2, "seeds": 1, "seed": 1}}, "did you mean 'confirm.seeds'"),
        ({"tasks": "all", "objective": ["ocr", "geneval"]}, "confirm needs the single objective mean"),
    ],
)
def test_a_bad_confirmation_is_refused(tmp_path: Path, change: dict, said: str) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(STUDY | change))
    with pytest.raises(UsageError, match=said):
        read_study(tmp_path / "s.yaml")


@pytest.mark.slow
def test_a_sweep_confirms_its_best(tmp_path: Path) -> None:
    """Real runs by two workers: the dry run's count is kept, the table is printed and a second start repeats nothing."""
    tiny = {"evaluation.steps": 1, "params.trajectories": 2}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(STUDY | {"settings": tiny, "trials": 3, "points": 1}))
    said = bench(["sweep", "s.yaml", "--dry-run"], tmp_path).stdout
    assert "then the best 2 with seeds 101, 102" in said
    assert "at most 7 runs x 300" in said
    done = bench(["sweep", "s.yaml", "--workers", "2", "--executor", "local"], tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results" / "sweeps" / "s"
    summary = json.loads((folder / "summary.json").read_text())
    runs = sorted(path.parent.name for path in folder.glob("runs/*/summary.json"))
    assert len(runs) == 7
    named = [name for row in summary["confirmed"] for name in row["runs"]]
    assert len(named) == 6 and set(named) < set(runs)
    means = [row["value"] for row in summary["confirmed"]]
    assert means == sorted(means, reverse=True)
    assert "the best 2 with seeds 100, 101, 102; the first is chosen" in done.stdout
    assert "at most 0 runs x 300 = 0" in bench(["sweep", "s.yaml", "--dry-run"], tmp_path).stdout
    again = bench(["sweep", "s.yaml"], tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads((folder / "summary.json").read_text())["confirmed"] == summary["confirmed"]
