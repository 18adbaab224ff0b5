"""On a real Slurm of one and two nodes (tests/slurm/start.sh; .ci/run starts it): jobs end as runs in this process do, whatever
happens to them on the way. Skipped where Slurm is not running."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench.cli.run import train
from bench.config.resolve import resolve
from bench.jobs.dispatch import dispatch
from bench.jobs.launches import Job, launches
from bench.jobs.placement import Placement, Profile
from bench.jobs.status import cancel, survey
from tests.commands import Command
from tests.jobs.work import speak
from tests.once import once


def _answers() -> bool:
    if not shutil.which("sinfo"):
        return False
    try:
        return subprocess.run(["sinfo", "-h"], capture_output=True, timeout=10).returncode == 0
    except subprocess.TimeoutExpired:
        return False


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _answers(), reason="no Slurm answers: install slurmctld, slurmd, slurm-client and munge, "
                       "and start tests/slurm/start.sh as root"),
]  # fmt: skip

SHORT = [
    "--tasks", "ocr", "--set", "evaluation.steps=1", "--set", "evaluation.points=[0.5]", "--set", "checkpoint_every=1",
]  # fmt: skip
ONE = ["run", "--method", "opd_analytic", *SHORT, "--set", "params.trajectories=24"]
SLURM = ["--executor", "slurm", "--slurm", "minutes=10"]
CLOCKS = {"seconds", "references", "peak_bytes"}
"""References are evaluated by whoever comes first of the runs that share them."""


def bench(*words: str, root: Path, timeout: float = 500) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "bench", *words, "--results", str(root)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


def start(*words: str, root: Path) -> Command:
    return Command([*words, "--results", str(root)])


@pytest.fixture(autouse=True)
def one_after_the_other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Workers of pytest-xdist steal tests from each other, but a node of this Slurm has processors for one of them."""
    base = tmp_path_factory.getbasetemp()
    with (base.parent / "slurm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of 80 updates without Slurm."""

    def make(folder: Path) -> None:
        done = bench(*ONE, "--set", "budget.updates=80", root=folder / "results")
        assert done.returncode == 0, done.stderr

    return next(once(tmp_path_factory, "undisturbed", make).glob("results/*/summary.json")).parent


def without_clocks(value):
    if isinstance(value, dict):
        return {key: without_clocks(v) for key, v in value.items() if key not in CLOCKS}
    return [without_clocks(v) for v in value] if isinstance(value, list) else value


def assert_same(mine: Path, theirs: Path) -> None:
    """Bit for bit but for the clocks."""
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        rows = [[without_clocks(json.loads(x)) for x in (f / name).read_text().splitlines()] for f in (mine, theirs)]
        assert rows[0] == rows[1]
    summaries = [without_clocks(json.loads((f / "summary.json").read_text())) for f in (mine, theirs)]
    assert summaries[0] == summaries[1]
    for name in ("checkpoint.safetensors", "adapter/adapter_model.safetensors"):
        a, b = load_file(mine / name), load_file(theirs / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def wait_for(found, seconds: float = 240, every: float = 0.3):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(every)
    raise AssertionError("waited in vain")


def running(root: Path, beyond: float = 0.0):
    """The line of the run once it has come further than `beyond` of its budget."""
    lines = survey(root) if root.is_dir() else []
    return next((x for x in lines if x.state == "running" and (x.fraction or 0) > beyond), None)


def the_job(root: Path) -> Job:
    (job,) = [job for launch in launches(root) for job in launch.jobs]
    return job


def starts(folder: Path) -> int:
    return len((folder / "provenance.jsonl").read_text().splitlines())


def test_a_comparison_ends_with_the_same_records(root: Path, tmp_path: Path) -> None:
    words = ["compare", "--methods", "opd_analytic,sft", *SHORT, "--seeds", "0,1", "--budget", "400"]
    done = bench(*words, *SLURM, root=root)
    assert done.returncode == 0, done.stderr
    here = bench(*words, "--executor", "inline", root=tmp_path / "inline" / "results")
    assert here.returncode == 0, here.stderr
    runs = sorted(path.parent for path in root.glob("*/summary.json"))
    assert len(runs) == 4
    for run in runs:
        assert_same(run, tmp_path / "inline" / "results" / run.name)
    tables = [
        json.loads(next(r.glob("comparison-*.json")).read_text()) for r in (root, tmp_path / "inline" / "results")
    ]
    assert tables[0] == tables[1]
    assert len({job.id.partition("_")[0] for launch in launches(root) for job in launch.jobs}) == 1  # one array


def test_time_limits_do_not_change_the_result(root: Path, undisturbed: Path) -> None:
    """The job's process is stopped, lest it end early; Slurm lets it go on to take the warning.

    Slurm may send the warning a minute early: with a limit of one minute a slow machine never came to a first update.
    """
    limits = ["--slurm", "minutes=2", "--slurm", "signal_s=20"]
    process = start(*ONE, "--set", "budget.updates=80", "--executor", "slurm", *limits, root=root)
    wait_for(lambda: running(root))
    (number,) = processes(root)
    os.kill(number, signal.SIGSTOP)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    run = next(root.glob("*/summary.json")).parent
    (launch,) = launches(root)
    log = launch.log(the_job(root)).read_text() + launch.log(the_job(root), "out").read_text()
    assert "this job is timed-out" in log
    assert starts(run) > 1
    assert_same(run, undisturbed)


@pytest.mark.parametrize("how", ["requeue", "preempt", "kill"])
def test_disturbances_do_not_change_the_result(root: Path, undisturbed: Path, how: str) -> None:
    process = start(*ONE, "--set", "budget.updates=80", *SLURM, root=root)
    line = wait_for(lambda: running(root, 0.1))
    job = the_job(root)
    if how == "requeue":  # no signal comes with it
        subprocess.run(["scontrol", "requeue", job.id], check=True)
    elif how == "preempt":
        subprocess.run(["scancel", "--signal=USR2", job.id], check=True)
    else:
        (number,) = processes(root)
        os.kill(number, signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert starts(root / line.name) == 2
    assert_same(root / line.name, undisturbed)


def test_one_killed_job_of_an_array_disturbs_no_other(root: Path) -> None:
    process = start(*ONE, "--seeds", "0,1", "--set", "budget.updates=80", *SLURM, root=root)
    wait_for(lambda: len([x for x in survey(root) if (x.fraction or 0) > 0.05]) == 2 if root.is_dir() else False)
    os.kill(processes(root)[0], signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    folders = [path.parent for path in root.glob("*/summary.json")]
    assert sorted(starts(folder) for folder in folders) == [1, 2]


def processes(root: Path) -> list[int]:
    """Numbers of the Python processes that carry out jobs of a results folder."""
    told = subprocess.run(["pgrep", "-f", f"submitit.core._submit {root}"], capture_output=True, text=True).stdout
    names = {int(number): Path(f"/proc/{number}/comm") for number in told.split()}
    return [number for number, path in names.items() if path.exists() and path.read_text().startswith("python")]


def test_a_cancelled_job_leaves_a_run_that_goes_on(root: Path, undisturbed: Path) -> None:
    process = start(*ONE, "--set", "budget.updates=80", *SLURM, root=root)
    line = wait_for(lambda: running(root, 0.1))
    assert cancel(root, [line.name]) == [line.name]
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "cancelled" in said
    assert [(x.state, x.note) for x in survey(root)] == [("stopped", "cancelled")]
    done = bench(*ONE, "--set", "budget.updates=80", root=root)
    assert done.returncode == 0, done.stderr
    assert_same(root / line.name, undisturbed)


def test_an_interrupt_leaves_the_jobs_and_the_same_command_waits_for_them(root: Path) -> None:
    # Long enough that the job still runs when the interrupt arrives, also on a busy machine.
    words = [*ONE, "--set", "budget.updates=240", *SLURM]
    process = start(*words, root=root)
    wait_for(lambda: running(root))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "jobs that continue in Slurm: 1" in said
    done = bench(*words, root=root)
    assert done.returncode == 0, done.stderr
    assert the_job(root)  # still the only one
    assert starts(next(root.glob("*/summary.json")).parent) == 1


def test_a_failure_is_shown_within_half_a_minute(root: Path) -> None:
    """Of the moment in which the job failed: until then its processes import torch, which takes what the machine takes."""
    process = start(*ONE, "--set", "device=cuda:99", "--teachers", "train", *SLURM, root=root)
    failed = lambda: [x for x in survey(root) if x.state == "failed" and x.name.startswith("single_task")]
    (line,) = wait_for(lambda: failed() if root.is_dir() else [])
    shown = time.time()
    assert "torch sees" in line.note  # no GPU, or fewer
    assert shown - min(path.stat().st_mtime for path in root.glob("launches/*/told/*.json")) < 30
    process.communicate(timeout=120)
    assert process.returncode == 1
    notes = {line.name.partition("-")[0]: line.note for line in survey(root)}
    assert notes["opd_analytic"] == "not started, dependency failed: teacher for ocr, seed 0"


def test_what_others_need_comes_first_and_once(root: Path) -> None:
    """Two students of one teacher, here three quick commands, in the order in which Slurm started them."""
    root.mkdir()
    jobs = [
        Job("teacher", {"says": "teacher"}),
        Job("student 0", {"says": "0"}, needs=("teacher",)),
        Job("student 1", {"says": "1"}, needs=("teacher",)),
    ]
    told: list[str] = []
    slurm = Placement("slurm", Profile(minutes=5))
    assert dispatch(jobs, speak, root, slurm, "cpu", lambda label, _: told.append(label)) == {}
    assert told[0] == "teacher"
    ids = {job.label: job.id for launch in launches(root) for job in launch.jobs}
    assert ids["student 0"].partition("_")[0] == ids["student 1"].partition("_")[0]
    ended = {label: times(identity) for label, identity in ids.items()}
    assert ended["teacher"][1] <= min(ended["student 0"][0], ended["student 1"][0])


def times(job: str) -> tuple[str, str]:
    command = ["squeue", "-h", "-a", "-r", "-t", "all", "-j", job.partition("_")[0], "-o", "%i|%S|%e"]
    rows = [line.split("|") for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines()]
    return next((row[1], row[2]) for row in rows if row[0] == job)


def test_several_processes_of_a_job_share_a_run(root: Path) -> None:
    """Two tasks of one job find each other and make one run."""
    overrides = [word for word in ONE if "=" in word] + ["budget.updates=3"]
    spec = resolve("opd_analytic", ["ocr"], overrides=overrides)
    root.mkdir()
    two = Placement("slurm", Profile(minutes=10, processes=2))
    assert dispatch([Job("two", spec.record())], train, root, two, "cpu", lambda *_: None) == {}
    (entry,) = [json.loads(x) for x in next(root.glob("*/provenance.jsonl")).read_text().splitlines()]
    assert entry["processes"] == 2


def test_a_run_on_two_nodes_ends_with_the_record_of_one_in_this_process(root: Path, tmp_path: Path) -> None:
    """One process on each of two nodes, which two daemons stand in for; with and without weights of their own."""
    # With so large an eps AdamW's step is proportional to the gradient, and not rounding's sign.
    exact = ["optimizer.eps=1", "optimizer.lr=1", "budget.updates=2"]
    spec = resolve("opd_analytic", ["ocr"], overrides=[word for word in ONE if "=" in word] + exact)
    inline = tmp_path / "inline" / "results"
    inline.mkdir(parents=True)
    assert dispatch([Job("inline", spec.record())], train, inline, Placement("inline"), "cpu", lambda *_: None) == {}
    root.mkdir()
    nodes = Placement("slurm", Profile(minutes=10, nodes=2, partition="pair"))
    sharded = resolve("opd_analytic", ["ocr"], overrides=[w for w in ONE if "=" in w] + [*exact, "compute.shard=true"])
    second = tmp_path / "sharded" / "results"
    second.mkdir(parents=True)
    for made, where in ((spec, root), (sharded, second)):
        assert dispatch([Job("nodes", made.record())], train, where, nodes, "cpu", lambda *_: None) == {}
        (folder,), (alone,) = ([*place.glob("opd_*")] for place in (where, inline))
        assert folder.name == alone.name
        (entry,) = [json.loads(x) for x in (folder / "provenance.jsonl").read_text().splitlines()]
        assert entry["processes"] == 2
        weights, expected = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (folder, alone))
        assert max((weights[name] - expected[name]).abs().max() for name in expected) < 1e-6
        for record in ("metrics.jsonl", "evaluations.jsonl"):
            rows, wanted = (
                [json.loads(line) for line in (f / record).read_text().splitlines()] for f in (folder, alone)
            )
            assert [row.keys() for row in rows] == [row.keys() for row in wanted]
        summaries = [json.loads((f / "summary.json").read_text()) for f in (folder, alone)]
        assert summaries[0]["updates"] == summaries[1]["updates"] == 2
        scores = [s["models"]["student"]["ocr"]["rows"]["reward"] for s in summaries]
        assert scores[0] == pytest.approx(scores[1], abs=0.02)
