"""Workers share a study: nothing is lost or done twice, whoever dies; trials fail, prune and resume as they should."""

import errno
import json
import os
import random
import shlex
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState

from bench.errors import BenchError, DamagedError, MissingError, UsageError
from sweeps.measure import Measured, PrunedError
from sweeps.storage import Place
from sweeps.study import StudySpec, open_study, read_study
from sweeps.summary import store, summarise
from sweeps.worker import TRIES, Claims, work
from tests import commands
from tests.commands import SERVER, Command, bench
from tests.sweeps import fast_worker
from tests.sweeps.fast_worker import value

pytestmark = pytest.mark.usefixtures("few_prompts")

STUDY = {
    "name": "s", "method": "opd_analytic", "tasks": "ocr", "budget": 300, "trials": 6,
    "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
}  # fmt: skip


def study(**changes) -> StudySpec:
    return StudySpec.model_validate(STUDY | changes)


def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "results" / "s")


def scored(number: float) -> Measured:
    return Measured({"ocr": [number]}, [])


@pytest.mark.slow
def test_eight_workers_of_which_two_are_killed(tmp_path: Path) -> None:
    """200 trials: every number once, every trial complete, and only a dead worker's trial was carried out again."""
    import yaml

    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY | {"trials": 200, "sampler": "random"}))
    folder = place(tmp_path).folder
    workers = [SERVER.Process(target=fast_worker.main, args=(tmp_path / "study.yaml", folder)) for _ in range(8)]
    for worker in workers:
        worker.start()
    rng = random.Random(0)
    done = folder / "carried-out.txt"
    for count in (30, 110):
        end = time.monotonic() + 200
        while not (done.exists() and len(done.read_text().splitlines()) >= count):
            assert time.monotonic() < end, "the workers do not get on"
            time.sleep(0.05)
        time.sleep(rng.random() / 5)
        rng.choice([w for w in workers if w.exitcode is None]).kill()
    for worker in workers:
        worker.join(300)
    assert sorted(worker.exitcode for worker in workers) == [-9, -9, 0, 0, 0, 0, 0, 0]
    found = open_study(study(trials=200, sampler="random"), place(tmp_path))
    assert [trial.number for trial in found.trials] == list(range(200))
    assert {trial.state for trial in found.trials} == {TrialState.COMPLETE}
    assert all(trial.value == value(trial.params) for trial in found.trials)
    times = Counter(line.split()[1] for line in done.read_text().splitlines())
    again = {repr(t.params["optimizer.lr"]) for t in found.trials if t.user_attrs.get("tries", 1) > 1}
    assert len(again) <= 2
    assert set(times) == {repr(trial.params["optimizer.lr"]) for trial in found.trials}
    assert {lr for lr, count in times.items() if count > 1} <= again


def test_what_a_dead_worker_had_drawn_stays(tmp_path: Path) -> None:
    """The trial is taken over with its number and settings, and the missing ones are drawn; at last it fails."""
    space = STUDY["space"] | {"params.trajectories": {"choices": [2, 4]}}
    spec = study(space=space, trials=1)
    claims = Claims(place(tmp_path).folder / "trials")
    begun = open_study(spec, place(tmp_path))
    trial = begun.ask()
    drawn = trial.suggest_float("optimizer.lr", 1e-4, 1e-2, log=True)  # and dies here
    tried = []

    def die(spec, place, chosen, reached):
        tried.append(chosen)
        raise KeyboardInterrupt

    for _ in range(TRIES + 1):  # interrupts are no deaths
        with pytest.raises(KeyboardInterrupt):
            work(spec, place(tmp_path), carry_out=die)
    assert {chosen["optimizer.lr"] for chosen in tried} == {drawn}
    assert tried[0] == tried[-1]
    trial.set_user_attr("tries", TRIES)
    held = claims.take(0)
    assert claims.take(0) is None  # a living worker's is not taken
    held.close()
    with pytest.raises(BenchError, match="every trial failed; error of the last one: its worker died"):
        work(spec, place(tmp_path), carry_out=die)
    assert len(tried) == TRIES + 1


def test_failures_do_not_stop_a_study(tmp_path: Path) -> None:
    def some(spec, place, chosen, reached):
        if chosen["optimizer.lr"] > 1e-3:
            raise BenchError("it\ndiverged")
        return scored(0.5)

    said = []
    done = work(study(trials=8), place(tmp_path), said.append, some)
    states = Counter(trial.state for trial in done.trials)
    assert set(states) == {TrialState.COMPLETE, TrialState.FAIL}
    assert sum(states.values()) == 8
    assert "it diverged" in {trial.user_attrs.get("error") for trial in done.trials}
    assert any("it diverged" in line for line in said)
    work(study(trials=10), place(tmp_path), carry_out=some)  # the same study may be given more
    assert len(open_study(study(trials=10), place(tmp_path)).trials) == 10


def _raised(error: Exception, cause: Exception | None = None) -> Exception:
    error.__cause__ = cause
    return error


ENVIRONMENT = {
    "a full disk": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "checkpoint.safetensors"),
    "a scorer that does not answer": MissingError("no scorer answers at http://127.0.0.1:9"),
    "a scorer that breaks": _raised(BenchError("http://127.0.0.1:9 answered 500"), OSError("500")),
    "a place that cannot be written": _raised(UsageError("cannot write to runs"), PermissionError("runs")),
    "a damaged checkpoint": DamagedError("corrupt checkpoint"),
    "a missing package": ImportError("no module named x"),
}
MEMORY = {
    "no memory": MemoryError("not enough"),
    "no memory, explained": _raised(BenchError("out of memory on cuda in training"), torch.OutOfMemoryError()),
    "no host memory": RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    "a broken GPU": RuntimeError("CUDA error: device-side assert triggered"),
}


@pytest.mark.parametrize("cause", ENVIRONMENT)
def test_what_no_settings_cause_stops_the_sweep_and_burns_no_trial(tmp_path: Path, cause: str) -> None:
    def breaks(spec, place, chosen, reached):
        raise ENVIRONMENT[cause]

    said: list[str] = []
    for _ in range(TRIES + 1):
        with pytest.raises((BenchError, OSError)) as caught:
            work(study(trials=2), place(tmp_path), said.append, breaks)
        assert str(ENVIRONMENT[cause]) in str(caught.value)
    assert said == []
    done = work(study(trials=2), place(tmp_path), carry_out=lambda *_: scored(0.5))
    assert [trial.state for trial in done.trials] == [TrialState.COMPLETE] * 2


@pytest.mark.parametrize("cause", MEMORY)
def test_a_trial_that_never_has_the_memory_fails_in_the_end(tmp_path: Path, cause: str) -> None:
    """The worker ends each time, as if the system had killed it; then the study goes on with the others."""
    taken = []

    def breaks(spec, place, chosen, reached):
        taken.append(chosen["optimizer.lr"])
        if taken[0] == taken[-1]:
            raise MEMORY[cause]
        return scored(0.5)

    for _ in range(TRIES):
        with pytest.raises(BenchError, match=str(MEMORY[cause]) or "OutOfMemoryError"):
            work(study(trials=2), place(tmp_path), carry_out=breaks)
    done = work(study(trials=2), place(tmp_path), carry_out=breaks)
    assert [trial.state for trial in done.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert str(MEMORY[cause]) in done.trials[0].user_attrs["error"]


def test_a_score_that_is_not_finite_is_no_result(tmp_path: Path) -> None:
    scores = iter([float("inf"), float("nan"), 0.5])
    done = work(study(trials=3), place(tmp_path), carry_out=lambda *_: scored(next(scores)))
    assert [trial.state for trial in done.trials] == [TrialState.FAIL, TrialState.FAIL, TrialState.COMPLETE]


def test_a_result_that_cannot_be_stored_is_printed(tmp_path: Path) -> None:
    import yaml

    (tmp_path / "s.yaml").write_text(yaml.safe_dump(STUDY | {"trials": 2}))
    where = Place(tmp_path / "results" / "sweeps" / "s")
    work(read_study(tmp_path / "s.yaml"), where, carry_out=lambda s, p, chosen, r: scored(value(chosen)))
    (where.folder / "summary.json").mkdir()
    done = bench(["sweep", "s.yaml"], tmp_path)
    assert done.returncode == 1
    assert "to repeat the best trial:" in done.stdout
    assert done.stderr.startswith("error: the result could not be stored in ") and done.stderr.count("\n") == 1


def test_a_damaged_run_costs_the_difference_alone(tmp_path: Path, capsys) -> None:
    name = "opd_analytic-0-s0"
    spec, numbers = study(trials=2), iter([0.25, 0.5])
    done = work(spec, place(tmp_path), carry_out=lambda *_: Measured({"ocr": [next(numbers)]}, [name]))
    assert summarise(spec, done, place(tmp_path))["best_minus_first"] is None
    assert capsys.readouterr().err == ""
    run = place(tmp_path).runs / name
    run.mkdir(parents=True)
    for damage in ("{", "{}", '{"folder": "x"}'):
        (run / "summary.json").write_text(damage)
        summary = summarise(spec, done, place(tmp_path))
        assert summary["best_minus_first"] is None
        assert summary["best"][0]["values"] == [0.5]
        assert str(run / "summary.json") in capsys.readouterr().err


def test_pruning_is_on_the_course_of_the_mean(tmp_path: Path) -> None:
    spec = study(pruner="median", trials=12)
    courses = iter([0.5] * 6 + [0.1] * 6)

    def course(spec, place, chosen, reached):
        level = next(courses)
        for point in range(3):
            if reached(point, level):
                raise PrunedError
        return scored(level)

    done = work(spec, place(tmp_path), carry_out=course)
    states = [trial.state for trial in done.trials]
    assert states[:6] == [TrialState.COMPLETE] * 6
    assert states[6:] == [TrialState.PRUNED] * 6
    assert summarise(spec, done, place(tmp_path))["trials"]["pruned"] == 6


def test_several_objectives_have_a_front(tmp_path: Path) -> None:
    spec = study(tasks=("ocr", "geneval"), objective=("ocr", "geneval"), trials=20, sampler="nsga2")

    def against(spec, place, chosen, reached):
        share = (chosen["optimizer.lr"] - 1e-4) / 1e-2
        return Measured({"ocr": [share], "geneval": [1 - share**2]}, [])

    done = work(spec, place(tmp_path), carry_out=against)
    summary = summarise(spec, done, place(tmp_path))
    assert summary["objectives"] == ["ocr", "geneval"]
    assert len(summary["best"]) == 20  # every point of a falling curve is on its front
    assert [trial["trial"] for trial in summary["complete"]] == list(range(20))
    assert summary["settings"] == {"optimizer.lr": "range"}
    store(summary, place(tmp_path))
    written = json.loads((place(tmp_path).folder / "summary.json").read_text())
    assert written["complete"] == summary["complete"]


def test_what_is_enqueued_comes_first_and_seeds_are_means(tmp_path: Path) -> None:
    spec = study(enqueue=({"optimizer.lr": 1e-3}, {"optimizer.lr": 5e-3}), trials=3, seeds="0-2")
    taken = []

    def note(spec, place, chosen, reached):
        taken.append(chosen["optimizer.lr"])
        return Measured({"ocr": [0.1, 0.2, 0.6]}, [])

    done = work(spec, place(tmp_path), carry_out=note)
    assert taken[:2] == [1e-3, 5e-3]
    assert [trial.value for trial in done.trials] == pytest.approx([0.3] * 3)
    work(spec, place(tmp_path), carry_out=note)
    assert len(taken) == 3


def test_one_worker_draws_the_same_again(tmp_path: Path) -> None:
    def lrs(folder: str) -> list[float]:
        spec = study(trials=12)
        done = work(spec, Place(tmp_path / folder), carry_out=lambda s, p, chosen, r: scored(value(chosen)))
        return [trial.params["optimizer.lr"] for trial in done.trials]

    assert lrs("a") == lrs("b")


def test_another_study_of_the_same_name_is_refused(tmp_path: Path) -> None:
    work(study(trials=1), place(tmp_path), carry_out=lambda *_: scored(1.0))
    with pytest.raises(UsageError, match="was started with a different method, space, budget or seeds"):
        work(study(trials=2, budget=400), place(tmp_path), carry_out=lambda *_: scored(1.0))


def test_a_database_does_as_well(tmp_path: Path) -> None:
    where = Place(tmp_path / "results" / "s", f"sqlite:///{tmp_path}/studies.db")
    done = work(study(trials=3), where, carry_out=lambda *_: scored(1.0))
    assert len(done.trials) == 3
    assert not where.journal.exists()
    names = optuna.get_all_study_names(storage=where.storage)
    assert names == ["s"]


@pytest.mark.slow
def test_a_study_end_to_end(tmp_path: Path, monkeypatch) -> None:
    """Two local workers, real runs, one killed with its runs on the way; the summary's command makes the best again."""

    import yaml

    monkeypatch.setattr(commands, "FEW", False)  # the workers' processes see all prompts
    tiny = STUDY | {"settings": {"evaluation.steps": 1, "params.trajectories": 2, "checkpoint_every": 1}, "points": 2}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny | {"name": "tiny", "trials": 3}))
    words = ["sweep", "tiny.yaml", "--workers", "2", "--executor", "local"]
    process = Command(words, tmp_path)
    folder = tmp_path / "results" / "sweeps" / "tiny"
    end = time.monotonic() + 120
    while not list(folder.glob("runs/*/metrics.jsonl")):
        assert time.monotonic() < end
        time.sleep(0.1)
    (folder / "noted").touch()
    told = subprocess.run(["pgrep", "-f", f"submitit.core._submit {folder}"], capture_output=True, text=True).stdout
    os.kill(int(told.split()[0]), signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    done = bench(words[:-4], tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["trials"]["complete"] == 3
    assert summary["command"].split("\n")[0] in done.stdout
    assert "best minus trial 0" in done.stdout
    best = folder / "runs" / summary["best"][0]["runs"][0]
    made = bench([*shlex.split(summary["command"])[1:], "--results", "results/again"], tmp_path)
    assert made.returncode == 0, made.stderr
    models = [json.loads((run / "summary.json").read_text())["models"]["student"]
              for run in (best, tmp_path / "results" / "again" / best.name)]  # fmt: skip
    assert models[0] == models[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"space": {"optimizer.lr": {"low": 1}}}, "give either low and high, or choices"),
        ({"space": {"optimizer.lr": {"low": 2, "high": 1}}}, "not below high"),
        ({"space": {"optimiser.lr": {"low": 1, "high": 2}}, "enqueue": [{"optimiser.lr": 1}]}, "optimizer"),
        ({"enqueue": [{"optimizer.rl": 1}]}, "did you mean 'optimizer.lr'"),
        ({"objective": ["ocr"], "pruner": "median"}, "single objective"),
        ({"objective": ["orc"]}, "did you mean 'ocr'"),
        ({"methd": "sft"}, "did you mean 'method'"),
        ({"method": "sfft"}, "did you mean 'sft'"),
        ({"settings": {"sampler.kernel": "od"}}, "did you mean 'ode'"),
        ({"space": {"sampler.eta": {"low": 0, "high": 1, "when": {"sampler.kernel": ["cps"]}}}}, "not an earlier dimension"),
        ({"name": "../up"}, "name"),
        ({"settings": {"evaluation": {"split": "test"}}}, "cannot be varied"),
        ({"settings": {"budget.updates": 3}}, "cannot be varied"),
        ({"enqueue": [{"optimizer.lr": 5.0}]}, "is outside its dimension"),
        ({"trials": 10**9}, "trials: .*less than or equal to 100000"),
        ({"points": 10**9}, "points: .*less than or equal to 1000"),
        ({"seeds": "0-9999999999"}, r"study .*s\.yaml: .*more than"),
        ({"seeds": "1,1"}, r"study .*s\.yaml: a seed is named twice"),
        ({"name": "x" * 300}, "at most 100 characters"),
        ({"space": {"optimizer.lr": {"low": 1, "hgih": 2}}}, r"did you mean 'space\.optimizer\.lr\.high'"),
        ({"space": {"sampler": {"steps": {"low": 1, "high": 2}}}}, r"unknown key 'space\.sampler\.steps'"),
        ({"space": {"optimizer.lr": {"low": -float("inf"), "high": 1.0}}}, "must be within"),
        ({"space": {"optimizer.lr": {"low": float("nan"), "high": 1.0}}}, "must be within"),
        ({"space": {"sampler.steps": {"low": 1, "high": 10**40}}}, "must be within"),
        ({"space": {"sampler.steps": {"choices": [4, 4.0]}}}, "twice"),
        ({"settings": {"sampler.steps": 3, "sampler": {"steps": 4}}}, "given twice"),
        ({"settings": {"optimizer": {"lr": 1e-3}}}, r"optimizer\.lr is given twice"),
        ({"objective": []}, "objective"),
        ({"objective": ["ocr", "ocr"]}, "twice"),
        ({"enqueue": [{"optimizer.lr": {"low": 1}}]}, "enqueue"),
        ({1: 2}, "strings"),
    ],
)
def test_a_bad_file_is_refused_before_the_first_trial(tmp_path: Path, change: dict, said: str) -> None:
    import yaml

    (tmp_path / "s.yaml").write_text(yaml.safe_dump(STUDY | change))
    with pytest.raises(UsageError, match=said):
        read_study(tmp_path / "s.yaml")


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join(8 * [f'*{old}'])}]\n" for old, new in zip("abcdefghij", "bcdefghijk")
)


@pytest.mark.parametrize("text", [BOMB, "x: &a [*a]\n", "name: " + "[" * 20_000, "name: a\nname: b\n", "\x00"])
def test_a_file_that_is_no_study_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    done = bench(["sweep", "s.yaml"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "s.yaml" in done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("path", sorted(Path("sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_that_come_with_the_project_are_sound(path: Path) -> None:
    found = read_study(path)
    assert found.enqueue
    assert read_study(Path(path.stem)) == found


def test_a_trial_that_ends_while_one_looks_is_left_alone(tmp_path: Path, monkeypatch) -> None:
    """It was RUNNING in the list, and its worker told its value and let go before its lock was tried."""
    spec = study(trials=1)
    begun = open_study(spec, place(tmp_path))
    trial = begun.ask()
    trial.suggest_float("optimizer.lr", 1e-4, 1e-2, log=True)
    trial.set_user_attr("settings", {"optimizer.lr": 1e-3})
    trial.set_user_attr("scores", {"ocr": [1.0]})
    trial.set_user_attr("runs", [])
    take = Claims.take

    def late(self, number: int):
        if begun.trials[0].state == TrialState.RUNNING:
            begun.tell(trial, 1.0)
        return take(self, number)

    monkeypatch.setattr(Claims, "take", late)
    done = work(spec, place(tmp_path), carry_out=lambda *_: scored(0.0))
    assert [t.value for t in done.trials] == [1.0]


def test_equal_settings_wait_for_one_another(tmp_path: Path, monkeypatch) -> None:
    from bench.errors import BusyError
    from sweeps import measure as measuring

    asked = []

    def busy(run, session):
        asked.append(run)
        if len(asked) < 3:
            raise BusyError("in hand")
        return {"models": {"student": {}}}

    monkeypatch.setattr(measuring, "execute", busy)
    monkeypatch.setattr(measuring, "BUSY_S", 0)
    found = measuring.measure(study(), place(tmp_path), {"optimizer.lr": 1e-3}, lambda *_: False)
    assert len(found.runs) == 1
    assert len(asked) == 3


def test_storages_that_cannot_be_are_told_in_one_line(tmp_path: Path) -> None:
    for url in ("foo", f"sqlite:///{tmp_path}/nowhere/x.db"):
        with pytest.raises(UsageError, match="--storage"):
            work(study(trials=1), Place(tmp_path / "results" / "s", url), carry_out=lambda *_: scored(1.0))
    url = f"sqlite:///{tmp_path}/studies.db"
    work(study(trials=1), Place(tmp_path / "results" / "a", url), carry_out=lambda *_: scored(1.0))
    with pytest.raises(UsageError, match="belongs to another results folder"):
        work(study(trials=1), Place(tmp_path / "results" / "b", url), carry_out=lambda *_: scored(1.0))


def test_seeds_may_be_a_number(tmp_path: Path) -> None:
    import yaml

    for seeds, wanted in ((3, [3]), ("0", [0]), ("0-2", [0, 1, 2])):
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(STUDY | {"seeds": seeds}))
        assert read_study(tmp_path / "s.yaml").seed_list == wanted
