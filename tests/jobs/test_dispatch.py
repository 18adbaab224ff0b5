"""Jobs in this process and in processes of this machine; their records; status, cancel and logs over them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.cli.status import Tail, logs
from bench.config.resolve import resolve, teacher_spec
from bench.errors import BenchError, MissingError, PartialError, UsageError
from bench.jobs.dispatch import dispatch
from bench.jobs.launches import Job, Launch, launches, new_launch, work_file
from bench.jobs.outcome import failure_of, last_error
from bench.jobs.placement import Placement, placement
from bench.jobs.runs import spec_of, teacher_jobs
from bench.jobs.scheduler import GONE, State
from bench.jobs.status import cancel, survey
from bench.jobs.submitted import STARTS, Submitted
from bench.registry import registered
from bench.store.provenance import code_hash
from bench.store.run import Run
from bench.system.processes import identity, lives
from bench.terminal import legible
from tests.commands import Command, bench, computed_s
from tests.folders import data, needs_data
from tests.jobs.work import speak

SHORT = [
    "run", "--method", "opd_analytic", "--tasks", "ocr", "--set", "budget.updates=2", "--set", "evaluation.steps=1",
    "--set", "params.trajectories=2", "--set", "evaluation.points=[]",
]  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


def carried(jobs: list[Job], root: Path, executor: str) -> tuple[dict[str, str], list[tuple]]:
    told: list[tuple] = []
    return dispatch(jobs, speak, root, Placement(executor), "cpu", lambda *a: told.append(a)), told


@pytest.mark.parametrize("executor", ["inline", "local"])
def test_one_failure_stops_no_other_job_but_what_needs_it(root: Path, executor: str) -> None:
    jobs = [
        Job("bad", {"fails": "unknown method 'nothing'"}),
        Job("good", {"says": "good"}),
        Job("after good", {"says": "after"}, needs=("good",)),
    ]
    failures, told = carried(jobs, root, executor)
    assert list(failures) == ["bad"]
    assert "unknown method 'nothing'" in failures["bad"]
    assert sorted(label for label, _ in told) == ["after good", "bad", "good"]
    order = [label for label, _ in told]
    assert order.index("after good") > order.index("good")


@pytest.mark.parametrize("executor", ["inline", "local"])
def test_what_needs_a_failed_job_is_not_started(root: Path, executor: str) -> None:
    jobs = [Job("bad", {"fails": "no"}), Job("student", needs=("bad",))]
    failures, _ = carried(jobs, root, executor)
    assert failures["student"] == "not started, dependency failed: bad"


def test_a_run_that_is_done_by_now_is_not_submitted(root: Path, monkeypatch) -> None:
    """Another command's job may end between the first look at a run and its submission."""
    from bench.jobs import dispatch as module

    (root / "r").mkdir()

    def late(root: Path):
        (root / "r" / "summary.json").write_text("{}")
        return {}

    monkeypatch.setattr(module, "_active", late)
    failures, told = carried([Job("a", {"fails": "submitted"}, run="r")], root, "local")
    assert failures == {}
    assert told == [("a", None)]


def test_a_log_is_followed_from_its_last_lines_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tail = Tail(log)
    assert tail.more() == []  # nothing is written yet
    log.write_bytes(b"".join(b"line %d\n" % n for n in range(150)) + b"10%\r20%\nhalf")
    assert tail.more() == [f"line {n}" for n in range(51, 150)] + ["20%"]
    assert tail.more() == []
    with log.open("ab") as file:
        file.write(b" and whole\nrest \x1b[31m")
    assert tail.more() == ["half and whole"]
    assert tail.more(whole=False) == [legible("rest \x1b[31m", lines=True)]  # the job has ended
    assert tail.more(whole=False) == []


def test_a_job_s_output_is_followed_until_it_ends(tmp_path: Path, monkeypatch, capsys) -> None:
    """While Slurm does not answer, too."""
    launch = new_launch(tmp_path, "slurm", [Job("a", {}, run="r-0123456789-s0", id="7")])
    paths = {kind: launch.log(launch.jobs[0], kind) for kind in ("out", "err")}
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    steps = [("out", "one\n", State("RUNNING")), ("out", "two\n", None), ("err", "thr", State("PENDING")), ("err", "ee", GONE)]

    def answers(_launches) -> dict | None:
        kind, text, state = steps.pop(0)
        with paths[kind].open("a") as file:
            file.write(text)
        return None if state is None else {(launch.name, "a"): state}

    monkeypatch.setattr("bench.cli.status.states", answers)
    monkeypatch.setattr("bench.cli.status.REFRESH_S", 0)
    logs(tmp_path, "r-", follow=True)
    assert not steps
    assert capsys.readouterr().out == f"==> {paths['out']}\none\ntwo\n==> {paths['err']}\nthree\n"


@pytest.mark.slow
def test_local_jobs_make_runs_and_their_records_and_logs(root: Path, capsys) -> None:
    """Two at a time of three; records, status and logs; again: nothing is left to do."""
    words = [*SHORT, "--seeds", "0-2", "--executor", "local", "--results", str(root)]
    first = bench(words)
    assert first.returncode == 0, first.stderr
    (launch,) = launches(root)
    assert len(launch.jobs) == 3
    assert len({job.id for job in launch.jobs}) == 3
    assert {line.state for line in survey(root)} == {"done"}
    name = launch.jobs[0].run
    logs(root, name)
    whole = capsys.readouterr().out
    assert "updates" in whole
    logs(root, name, follow=True)  # the job has ended
    assert set(whole.splitlines()) >= set(capsys.readouterr().out.splitlines())
    with pytest.raises(UsageError, match="did you mean"):
        logs(root, name.replace("analytic", "analitic"))
    again = bench(words)
    assert again.stdout == first.stdout
    assert len(launches(root)) == 1


@pytest.mark.slow
def test_a_killed_local_run_is_stopped_or_failed_and_goes_on(root: Path) -> None:
    """cancel, then the same command; a second command meanwhile waits for the first one's job."""
    short = [word.replace("updates=2", "updates=150") for word in SHORT]
    long = [*short, "--set", "checkpoint_every=1", "--executor", "local"]
    words = [*long, "--results", str(root)]
    process = Command(words)
    line = wait_for(lambda: next((x for x in survey(root) if x.state == "running" and x.fraction), None))
    assert 0 < line.fraction < 1
    assert line.left_s > 0
    assert line.where.startswith("local ")
    second = Command(words)
    time.sleep(6)
    assert len([job for launch in launches(root) for job in launch.jobs if job.id]) == 1
    assert cancel(root, [line.name[:14]]) == [line.name]
    for waiting in (process, second):
        _, said = waiting.communicate(timeout=120)
        assert waiting.returncode == 1
        assert "cancelled" in said
    line = wait_for(lambda: next((x for x in survey(root) if x.state != "running"), None))  # its process is on its way
    assert (line.state, line.note) == ("stopped", "cancelled")
    done = bench(words)
    assert done.returncode == 0, done.stderr
    starts = (root / line.name / "provenance.jsonl").read_text().splitlines()
    assert len(starts) == 2


def wait_for(found, seconds: float = 120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.2)
    raise AssertionError("waited in vain")


def test_a_failed_start_is_on_record_until_the_next(root: Path) -> None:
    run = Run(root, resolve("opd_analytic", ["ocr"]), "f")
    with pytest.raises(ValueError, match="broke"), run.lock():
        run.open()
        raise ValueError("it\nbroke")
    assert [(x.state, x.note) for x in survey(root)] == [("failed", "it broke")]
    with run.lock():
        assert [x.state for x in survey(root)] == ["running"]
    assert [x.state for x in survey(root)] == ["stopped"]
    with pytest.raises(KeyboardInterrupt), run.lock():
        raise KeyboardInterrupt
    assert [x.state for x in survey(root)] == ["stopped"]


def test_progress_and_time_left(root: Path) -> None:
    run = Run(root, resolve("opd_analytic", ["ocr"], overrides=["budget={nfe: 1000}"]), "f")
    with run.lock():
        run.open()
        row = {"step": 3, "evaluations": {"training": 250}, "seconds": {"training": 8.0, "evaluation": 2.0, "idle": 9}}
        run.append("metrics.jsonl", row)
        with (run.folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 4, "evalu')  # being written
        (line,) = survey(root)
    assert (line.state, line.fraction, line.left_s) == ("running", 0.25, pytest.approx(30))


def test_processes_are_told_apart() -> None:
    assert lives(identity())
    assert lives(f"{os.getpid()} elsewhere 1") is None
    assert not lives(" ".join([*identity().split()[:2], "1"]))  # the number was given out again
    assert not lives("")


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (
            "Traceback\n  File x\nbench.errors.MissingError: no GPU: use cpu\nsrun: error: vm: task 0: Exited\n",
            "no GPU: use cpu",
        ),
        ("Traceback\nbench.errors.MissingError: no GPU: use cpu\n", "no GPU: use cpu"),
        ("torch.OutOfMemoryError: full\n", "OutOfMemoryError: full"),
        ("slurmstepd: error: Detected 1 oom_kill event\n", "Detected 1 oom_kill event"),
        ("all is well\n", None),
    ],
)
def test_the_last_error_of_a_log(tmp_path: Path, log: str, said: str | None) -> None:
    (tmp_path / "log").write_text(log)
    found = last_error(tmp_path / "log")
    assert (found is None) if said is None else said in found


def test_what_slurm_says_of_a_job_without_a_result(root: Path) -> None:
    launch = new_launch(root, "slurm", [])
    job = Job("a", run="r", id="7")
    assert "(timeout)" in failure_of(launch, job, root, State("TIMEOUT"))
    assert "(timeout)" in failure_of(launch, job, root, GONE)  # Slurm has forgotten it, we have not
    stopped = Job("c", run="s", id="9")
    assert failure_of(launch, stopped, root, State("CANCELLED")) == "cancelled"
    needy = Job("b", run="r", needs=("teacher",), id="8")
    assert failure_of(launch, needy, root, State("CANCELLED")) == "not started, dependency failed: teacher"
    launch.mark_cancelled(needy)
    assert failure_of(launch, needy, root, GONE) == "cancelled"


def test_profiles(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "gpu.yaml"
    file.write_text("partition: gpu\ngpus: 8\nminutes: 600\nsetup: [module load cuda]\nsbatch: {reservation: mine}\n")
    found = placement("slurm", file, ["partition=big", "cpus=4"]).profile
    asked = found.parameters("bench", tmp_path, "afterok:3")
    assert (asked["slurm_partition"], asked["gpus_per_node"], asked["tasks_per_node"]) == ("big", 8, 8)
    assert asked["slurm_dependency"] == "afterok:3"
    assert asked["slurm_setup"][-1] == "module load cuda"
    assert asked["slurm_additional_parameters"]["reservation"] == "mine"
    with pytest.raises(UsageError, match="did you mean 'partition'"):
        placement("slurm", None, ["partitoin=gpu"])
    with pytest.raises(UsageError, match="did you mean 'slurm'"):
        placement("slrum", None, None)
    with pytest.raises(UsageError, match="need --executor slurm"):
        placement("local", None, ["cpus=2"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="no Slurm on this machine"):
        dispatch([Job("a")], speak, tmp_path, Placement("slurm"), "cpu", lambda *_: None)
    with pytest.raises(UsageError, match="asks for GPUs, but the runs are on the CPU"):
        dispatch([Job("a")], speak, tmp_path, Placement("slurm", found), "cpu", lambda *_: None)
    with pytest.raises(UsageError, match="not below the time limit"):
        placement("slurm", None, ["minutes=1"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("memory_gb=.inf", "memory_gb"),
        ("memory_gb=.nan", "memory_gb"),
        ("memory_gb=true", "memory_gb: Input should be a plain decimal number, not a truth value"),
        ("gpus=true", "gpus: Input should be a plain decimal number, not a truth value"),
        ("gpus='2'", "gpus: Input should be a plain decimal number, not text"),
        ("gpus=20000", "gpus"),
        ("minutes=1" + "0" * 30, "minutes"),
        ("cpus=1" + "0" * 400, "cpus"),
        ("signal_s=70000", "signal_s"),
        ("array_parallelism=0", "array_parallelism"),
        ('partition="a\\nb"', "partition: it should be one non-empty line"),
        ('account="a\\e[2Jb"', "account: it should be one non-empty line"),
        ("qos=' '", "qos: it should be one non-empty line"),
        ("constraint=''", "constraint: it should be one non-empty line"),
        ("sbatch.bad name=1", "'bad name' is not a long option of sbatch"),
        ("sbatch.--gres=1", "'--gres' is not a long option of sbatch"),
        ("sbatch.nice=.inf", "sbatch: nice should be finite"),
        ("sbatch.nice=true", "sbatch: Input should be a plain decimal number"),
        ('sbatch.comment="a\\n#SBATCH --x"', "sbatch: it should be one non-empty line"),
        ("sbatch={1: 2}", "sbatch.1"),
    ],
)
def test_what_no_job_can_ask_for(given: str, said: str) -> None:
    with pytest.raises(UsageError, match=r"^Slurm profile: ") as refused:
        placement("slurm", None, [given])
    assert said in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 500


def test_a_setting_of_slurm_that_is_replaced_is_told(capsys) -> None:
    found = placement("slurm", None, ["partition=x", "cpus=2", "partition=y", "cpus=2"]).profile
    assert (found.partition, found.cpus) == ("y", 2)
    assert capsys.readouterr().err == "note: --slurm partition=y overrides --slurm partition=x\n"


def test_every_launch_has_a_folder_of_its_own(root: Path) -> None:
    made = [new_launch(root, "local", [Job("a")]) for _ in range(5)]
    assert len({launch.folder for launch in made}) == 5
    assert sorted(launch.name for launch in launches(root)) == sorted(launch.name for launch in made)
    (known,) = made[0].submitted({"a": "12"})
    assert launches(root)[sorted(x.name for x in made).index(made[0].name)].jobs == [known]
    assert Launch.log(made[0], known).name == "12_0_log.err"


def test_a_missing_teacher_is_trained_once_for_all_runs(root: Path) -> None:
    specs = [resolve("opd_analytic", ["ocr"], s, teachers="train", overrides=[f"optimizer.lr={lr}"])
             for s in (0, 1) for lr in (1e-3, 1e-4)]  # fmt: skip
    runs = [Run(root, spec, "f") for spec in [*specs, resolve("multi_reward", ["ocr"])]]
    jobs, needs = teacher_jobs(runs, root)
    assert [job.label for job in jobs] == ["teacher for ocr, seed 0", "teacher for ocr, seed 1"]
    assert [needs[run.folder.name] for run in runs] == [
        *[("teacher for ocr, seed 0",)] * 2, *[("teacher for ocr, seed 1",)] * 2, ()
    ]  # fmt: skip
    assert spec_of(jobs[1].work) == teacher_spec(specs[2], "ocr")
    assert jobs[1].run == Run(root, teacher_spec(specs[2], "ocr"), "f").folder.name


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["sampler.steps=7", "ema.every=3", "optimizer.lr=1.1e-5", "device=cuda:1"],
        ["evaluation.pictures=true", "evaluation.shift=1.7", "compute.batch=5", "compute.precision=bfloat16"],
        ["scorers.ocr.url=http://localhost:1", "lora.targets=[attn.to_q]", "evaluation.points=[0.1, 1]"],
    ],
)
@pytest.mark.parametrize("method", registered("method"))
def test_a_job_s_file_is_its_run_s_spec(root: Path, method: str, overrides: list[str]) -> None:
    """Written as JSON and read back nothing is lost, and the run has the same folder."""
    tasks = ["ocr"] if method == "single_task" else ["ocr", "geneval"]
    if method in ("draft_k", "refl"):  # which need the gradient of a reward that no server gives
        tasks, overrides = ["pickscore"], [word for word in overrides if not word.startswith("scorers")]
    of_method = data(root / "data", tuple(tasks)) if needs_data(method) else []
    spec = resolve(method, tasks, 3, overrides=[*overrides, *of_method])
    launch = new_launch(root, "local", [Job("a", spec.model_dump(mode="json"))])
    found = spec_of(json.loads(work_file(launch.folder, "a").read_text()))
    assert found.model_dump(mode="json") == spec.model_dump(mode="json")
    assert Run(root, found, "f").folder == Run(root, spec, "f").folder


def test_a_thousand_runs_are_listed_at_once(root: Path) -> None:
    spec = json.dumps({"spec": {"budget": {"updates": 10}}})
    for i in range(1000):
        folder = root / f"method-{i:010x}-s0"
        folder.mkdir()
        (folder / "spec.json").write_text(spec)
        (folder / "summary.json").write_text("{}")
    words = [sys.executable, "-m", "bench", "status", "--results", str(root)]
    before = computed_s()
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout.count("done") == 1001
    assert computed_s() - before < 6  # under 2 s on an idle machine; cores that are shared also compute more slowly


def test_code_that_changed_since_submission_is_refused(root: Path) -> None:
    launch = new_launch(root, "local", [Job("a")])
    with pytest.raises(UsageError, match="has changed since this job was submitted"):
        Submitted(speak, launch.folder, "a", root, "", "other")()


def test_code_of_plug_ins_counts(tmp_path: Path, monkeypatch) -> None:
    """A job is refused too when the code of another package's method has changed since it was submitted."""
    from importlib.metadata import EntryPoint

    from bench.store import provenance

    (tmp_path / "otherpackage").mkdir()
    file = tmp_path / "otherpackage" / "__init__.py"
    file.write_text("raise ImportError('looking at it imports nothing')")
    monkeypatch.syspath_prepend(tmp_path)
    alone = code_hash()
    honest = provenance.registered
    point = EntryPoint("other", "otherpackage.method:Other", "bench.methods")
    gone = EntryPoint("gone", "nopackage.method:Gone", "bench.methods")
    more = lambda kind: honest(kind) | ({"other": point, "gone": gone} if kind == "method" else {})
    monkeypatch.setattr(provenance, "registered", more)
    with_it = code_hash()
    assert with_it != alone
    file.write_text("raise ImportError('another')")
    assert code_hash() not in (alone, with_it)
    assert provenance.packages()["otherpackage"] == ""


def test_a_run_that_gets_no_further_is_not_requeued(root: Path) -> None:
    launch = new_launch(root, "local", [Job("a", run="r")])
    (root / "r").mkdir()
    command = Submitted(speak, launch.folder, "a", root, "r", code_hash())
    for _ in range(STARTS - 1):
        command()
        command = command.checkpoint().function
    command()
    with pytest.raises(BenchError, match=f"no new checkpoint in {STARTS} starts"):
        command.checkpoint()
    (root / "r" / "checkpoint.safetensors").touch()
    assert command.checkpoint().function.idle_starts == 0


def test_a_number_that_is_another_ones_by_now_is_not_ours(root: Path, monkeypatch) -> None:
    from bench.jobs import scheduler

    launch = new_launch(root, "slurm", [Job("a", run="r")])
    launch.submitted({"a": "7"})
    monkeypatch.setattr(scheduler, "_squeue", lambda: {("someone", "7"): State("RUNNING")})
    (line,) = survey(root)
    assert line.state == "failed"
    assert cancel(root, ["all"]) == []
    monkeypatch.setattr(scheduler, "_squeue", lambda: {(launch.name, "7"): State("RUNNING", where="node1")})
    (line,) = survey(root)
    assert (line.state, line.where) == ("running", "slurm 7 node1")
    monkeypatch.setattr(scheduler, "_squeue", lambda: None)
    assert survey(root)[0].note == "Slurm does not answer"


def test_an_ended_job_of_another_machine_is_not_running(root: Path, monkeypatch) -> None:
    """What it left in the lock is no sign of life where Slurm says that it has ended."""
    from bench.jobs import scheduler

    run = Run(root, resolve("opd_analytic", ["ocr"]), "f")
    run.open()
    (run.folder / "lock").write_text("12 node7 345")
    (run.folder / "metrics.jsonl").touch()
    assert survey(root)[0].state == "running"  # without a job all there is to go by
    launch = new_launch(root, "slurm", [Job("a", run=run.folder.name)])
    launch.submitted({"a": "7"})
    monkeypatch.setattr(scheduler, "_squeue", dict)
    assert survey(root)[0].state == "failed"


def test_a_failure_after_a_cancellation_is_what_counts(root: Path) -> None:
    launch = new_launch(root, "slurm", [Job("a", run="r")])
    (job,) = launch.submitted({"a": "7"})
    launch.mark_cancelled(job)
    assert failure_of(launch, job, root, GONE) == "cancelled"
    (root / "r").mkdir()
    (root / "r" / "failure.json").write_text('{"error": "it broke"}')
    assert failure_of(launch, job, root, GONE) == "it broke"


def test_a_waiting_local_run_can_be_cancelled_by_name(root: Path) -> None:
    launch = new_launch(root, "local", [Job("a", run="run-a"), Job("b", run="run-b")])
    assert {line.state for line in survey(root)} == {"pending"}
    assert cancel(root, ["run-a"]) == ["run-a"]
    assert [line.name for line in survey(root)] == ["run-b"]
    assert launch.cancelled(launch.jobs[0])
    assert not launch.cancelled(launch.jobs[1])


def test_teachers_that_differ_have_labels_that_differ(root: Path) -> None:
    given = {"teachers": "train", "overrides": None}
    runs = [
        Run(root, resolve("opd_analytic", ["ocr"], **given | {"overrides": [f"compute.precision={p}"]}), "f")
        for p in ("float32", "bfloat16")
    ]
    jobs, needs = teacher_jobs(runs, root)
    assert len({job.label for job in jobs}) == len({job.run for job in jobs}) == 2
    assert needs[runs[0].folder.name] != needs[runs[1].folder.name]


def test_a_busy_run_is_waited_for(root: Path, monkeypatch) -> None:
    from bench.errors import BusyError
    from bench.jobs import submitted

    tries = []

    def carry_out(work, where):
        tries.append((work, where))
        if len(tries) < 3:
            raise BusyError("in hand")

    monkeypatch.setattr(submitted, "BUSY_S", 0)
    submitted.when_free(carry_out, {"seed": 0}, root)
    assert tries == [({"seed": 0}, root)] * 3


def test_a_job_tells_how_it_ended(root: Path) -> None:
    """In JSON, for whoever looks; a stopped one is not failed."""
    launch = new_launch(root, "local", [Job(label, {"fails": "unknown method"} if label == "bad" else {"says": label}) for label in ("good", "bad", "stopped")])
    known = {job.label: job for job in launch.submitted(dict.fromkeys(("good", "bad", "stopped"), "4000000001"))}
    Submitted(speak, launch.folder, "good", root, "", code_hash())()
    with pytest.raises(UsageError, match="unknown method"):
        Submitted(speak, launch.folder, "bad", root, "", code_hash())()
    launch.mark_cancelled(known["stopped"])  # before it has begun
    with pytest.raises(SystemExit):
        Submitted(speak, launch.folder, "stopped", root, "", code_hash())()
    assert {label: launch.told(job)["outcome"] for label, job in known.items()} == {
        "good": "done", "bad": "failed", "stopped": "stopped"
    }  # fmt: skip
    errors = {label: failure_of(launch, job, root, GONE) for label, job in known.items()}
    assert errors["good"] is None
    assert "unknown method" in errors["bad"]
    assert errors["stopped"] == "cancelled"
    assert issubclass(UsageError, BenchError)


@pytest.mark.alone
@pytest.mark.parametrize(("slurm", "cancelled", "stops"), [(False, False, True), (True, False, False), (True, True, True)])
def test_a_job_is_interrupted_by_sigterm_but_not_by_slurm_s_preemption(
    root: Path, monkeypatch, slurm: bool, cancelled: bool, stops: bool
) -> None:
    """Slurm sends SIGTERM before it preempts, and starts the job again: it must not end by itself then."""
    import signal


    launch = new_launch(root, "slurm" if slurm else "local", [Job("a")])
    if slurm:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
    reached = []

    def carry_out(work, _root):
        if cancelled:
            launch.mark_cancelled(launch.jobs[0])
        signal.raise_signal(signal.SIGTERM)
        reached.append(work)

    command = Submitted(carry_out, launch.folder, "a", root, "", code_hash())
    before = signal.getsignal(signal.SIGTERM)
    try:
        if stops:
            with pytest.raises(SystemExit):
                command()
        else:
            command()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert bool(reached) is not stops


@pytest.mark.parametrize("executor", ["local", "slurm"])
def test_another_user_s_job_keeps_no_other_from_being_cancelled(root: Path, monkeypatch, executor: str) -> None:
    from types import SimpleNamespace

    from bench.jobs import status

    def kill(number: int, _signal: int) -> None:
        if number == 1000002:
            raise PermissionError(1, "Operation not permitted")

    def scancel(command: list[str], **_) -> SimpleNamespace:
        denied = "scancel: error: Kill job error on job id 1000002: Access/permission denied\n"
        return SimpleNamespace(stderr=denied if command[1] == "1000002" else "")

    monkeypatch.setattr(status, "states", lambda known: {(x.name, j.label): State("RUNNING") for x in known for j in x.jobs})
    monkeypatch.setattr(status.os, "kill", kill)
    monkeypatch.setattr(status.subprocess, "run", scancel)
    launch = new_launch(root, executor, [Job(label, run=f"run-{label}") for label in "abc"])
    launch.submitted({"a": "1000001", "b": "1000002", "c": "1000003"})
    with pytest.raises(PartialError, match=r"not cancelled: run-b \(.*1000002: .*; cancelled: run-a, run-c$"):
        cancel(root, ["all"])
    assert [bool(launch.cancelled(job)) for job in launch.jobs] == [True, False, True]
    launch.mark_cancelled(launch.jobs[1])
    with pytest.raises(PartialError, match="not cancelled"):
        cancel(root, ["run-b"])
    assert launch.cancelled(launch.jobs[1])  # an earlier mark is another's


def test_a_cancelled_process_is_asked_and_one_that_has_gone_is_no_error(root: Path, monkeypatch) -> None:
    from bench.jobs import status

    asked = []
    monkeypatch.setattr(status, "states", lambda known: {(x.name, j.label): State("RUNNING") for x in known for j in x.jobs})
    monkeypatch.setattr(status.os, "kill", lambda *what: asked.append(what) or (_ for _ in ()).throw(ProcessLookupError))
    launch = new_launch(root, "local", [Job("a", run="r")])
    launch.submitted({"a": "4000000001"})
    import signal

    assert cancel(root, ["r"]) == ["r"]
    assert asked == [(4000000001, signal.SIGTERM)]
