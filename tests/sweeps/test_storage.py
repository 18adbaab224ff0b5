"""A study outlives a damaged journal and a database that breaks down; passwords are in no output and no file."""

import contextlib
import errno
import fcntl
import math
import os
import re
import shutil
import sqlite3
import warnings
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from bench.errors import UsageError
from bench.masking import masked, without_secrets
from sweeps.journal import DamagedJournal, StorageError, mend
from sweeps.measure import Measured
from sweeps.storage import Place, check_storage, open_storage
from sweeps.study import StudySpec, open_study
from sweeps.summary import summarise
from sweeps.worker import work
from tests.commands import SERVER, bench
from tests.sweeps import fast_worker
from tests.sweeps.fast_worker import value

pytestmark = pytest.mark.usefixtures("few_prompts")

STUDY = {
    "name": "tiny", "method": "opd_analytic", "tasks": "ocr", "budget": 64, "points": 1, "trials": 3,
    "settings": {"evaluation.steps": 1, "params.trajectories": 2, "checkpoint_every": 1},
    "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
}  # fmt: skip


def study(**changes) -> StudySpec:
    return StudySpec.model_validate(STUDY | changes)


def fast(spec, place, chosen, reached) -> Measured:
    return Measured({"ocr": [value(chosen)]}, [])


def told(found: optuna.Study) -> list[tuple]:
    return [(trial.number, trial.params, trial.values, trial.state) for trial in found.trials]


def write_study(folder: Path, **changes) -> Path:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(STUDY | changes))
    return folder / "results" / "sweeps" / "tiny" / "journal.log"


def refused(folder: Path, *options: str, code: int = 2, before=None) -> str:
    """The one line that `bench sweep tiny.yaml` ends in."""
    done = bench(["sweep", "tiny.yaml", *options], folder, before)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[bytes, list[tuple], bytes]:
    """The journal of a study of three trials, what it holds, and its folder's mark."""
    place = Place(tmp_path_factory.mktemp("whole"))
    done = work(study(), place, carry_out=fast)
    return place.journal.read_bytes(), told(done), (place.folder / "home").read_bytes()


def test_a_cut_line_costs_nothing(tmp_path: Path) -> None:
    """The study goes on and its finished runs are told, not run, again."""
    journal = write_study(tmp_path)
    assert bench(["sweep", "tiny.yaml"], tmp_path).returncode == 0
    os.truncate(journal, journal.stat().st_size - 20)
    write_study(tmp_path, trials=4)
    for _ in range(2):
        done = bench(["sweep", "tiny.yaml"], tmp_path)
        assert done.returncode == 0, done.stderr
        assert "4 complete" in done.stdout
    assert len(list((journal.parent / "runs").glob("*/summary.json"))) == 4


def test_wherever_a_journal_is_cut_the_study_ends_the_same(tmp_path: Path, whole) -> None:
    content, wanted, home = whole
    ends = [number for number, byte in enumerate(content) if byte == 10]
    cuts = sorted({*range(0, len(content), 97), *ends, *(end + 1 for end in ends)})
    for cut in cuts:
        place = Place(tmp_path / f"{cut}")
        place.folder.mkdir()
        place.journal.write_bytes(content[:cut])
        (place.folder / "home").write_bytes(home)
        assert told(work(study(), place, carry_out=fast)) == wanted, cut
        with pytest.raises(UsageError, match="was started with a different"):
            open_study(study(budget=65), place)


def test_zeros_at_the_end_are_a_cut_line(tmp_path: Path, whole) -> None:
    """As a file system leaves them after a crash."""
    path = tmp_path / "journal.log"
    path.write_bytes(whole[0] + bytes(100))
    mend(path)
    assert path.read_bytes() == whole[0]


DAMAGE = {
    "a line in the middle": lambda whole: whole[:300] + whole[400:],
    "glued lines": lambda whole: whole.replace(b"\n", b"", 1),
    "zeros in the middle": lambda whole: whole[:200] + bytes(50) + whole[250:],
    "another tool's text": lambda _: b"2026-01-01 training started\n",
    "another tool's text without an end": lambda _: b"training started",
    "no object": lambda _: b"[]\n",
    "another kind of object": lambda _: b'{"step": 1}\n',
    "no UTF-8": lambda whole: whole.replace(b"tiny", b"t\xff\xfey", 1),
    "deep nesting": lambda whole: whole + b"[" * 100_000 + b"\n",
    "an operation of another version": lambda whole: whole + b'{"op_code": 99, "worker_id": "x"}\n',
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_journal_is_refused_and_left_as_it_is(tmp_path: Path, whole, damage: str) -> None:
    journal = write_study(tmp_path)
    journal.parent.mkdir(parents=True)
    before = DAMAGE[damage](whole[0])
    journal.write_bytes(before)
    (journal.parent / "home").write_bytes(whole[2])
    said = refused(tmp_path)
    assert str(journal) in said and "move" in said
    assert journal.read_bytes() == before
    assert not list(journal.parent.glob("*.lock"))
    journal.rename(tmp_path / "away")  # the cure
    assert told(work(study(), Place(journal.parent), carry_out=fast)) == whole[1]


def _told_again(record: bytes, *changes: tuple[bytes, bytes]):
    """A journal with other words in one record."""

    def change(whole: bytes) -> bytes:
        lines = whole.splitlines(keepends=True)
        index = next(i for i, line in enumerate(lines) if record in line)
        for before, after in changes:
            assert before in lines[index]
            lines[index] = lines[index].replace(before, after)
        return b"".join(lines)

    return change


def _values(whole: bytes, *values: bytes) -> bytes:
    """A journal with these values of its first trials."""
    left = iter(values)
    return re.sub(rb'(?<="values":\[)[^]]+', lambda found: next(left, found[0]), whole)


CONTRADICTIONS = {
    "an infinite value": lambda whole: _values(whole, b"Infinity"),
    "no number": lambda whole: _values(whole, b"NaN", b"NaN", b"NaN"),
    "another value": lambda whole: _values(whole, b"0.5"),
    "two values": lambda whole: _values(whole, b"0.5,0.5"),
    "infinite scores": lambda whole: _told_again(b'"scores"', (b"[0.", b"[1e999, 0."))(_values(whole, b"Infinity")),
    "scores of no task": _told_again(b'"scores"', (b'"ocr"', b'"orc"'), (b"[0.", b'["x", 0.')),
    "no scores": _told_again(b'"scores"', (b'"scores"', b'"sores"')),
    "settings out of range": _told_again(b'{"settings"', (b'"optimizer.lr":0', b'"optimizer.lr":1')),
    "infinite settings": _told_again(b'{"settings"', (b'"optimizer.lr":0', b'"optimizer.lr":1e999, "x":0')),
    "no runs": _told_again(b'"runs"', (b"[]", b"[1]")),
}


@pytest.mark.parametrize("damage", CONTRADICTIONS)
def test_a_trial_that_contradicts_itself_is_never_the_best(tmp_path: Path, whole, damage: str) -> None:
    place = Place(tmp_path / "s")
    place.folder.mkdir()
    (place.folder / "home").write_bytes(whole[2])
    place.journal.write_bytes(before := CONTRADICTIONS[damage](whole[0]))
    assert before != whole[0]
    with pytest.raises(DamagedJournal, match=r"journal\.log, trial 0 is damaged: .*move it away"):
        open_study(study(), place)
    assert place.journal.read_bytes() == before


def test_a_setting_that_rounding_led_out_of_its_range_is_no_damage() -> None:
    axis = study().space["optimizer.lr"]
    assert axis.gave(math.nextafter(axis.low, 0)) and axis.gave(axis.high)
    assert not any(axis.gave(value) for value in (axis.low * 0.99, math.inf, math.nan, "0.001"))


@pytest.mark.parametrize("change", ["value = 2.0", "value = NULL, value_type = 'INF_POS'"])
def test_a_databases_trial_that_contradicts_itself_is_never_the_best(tmp_path: Path, change: str) -> None:
    path, url = database(tmp_path)
    place = Place(tmp_path / "s", url)
    done = work(study(), place, carry_out=fast)
    assert len(summarise(study(), done, place)["best"]) == 3
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"UPDATE trial_values SET {change} WHERE trial_id = 2")
        connection.commit()
    for use in (lambda: open_study(study(), place), lambda: summarise(study(), _fresh(place), place)):
        with pytest.raises(StorageError, match=r"studies\.db, trial 1 is damaged: its value"):
            use()


def _fresh(place: Place) -> optuna.Study:
    return optuna.load_study(study_name="tiny", storage=open_storage(place))


def test_a_study_that_is_shown_again_writes_nothing(tmp_path: Path, whole) -> None:
    place = Place(tmp_path / "s")
    place.folder.mkdir()
    (place.folder / "home").write_bytes(whole[2])
    place.journal.write_bytes(whole[0])
    assert told(work(study(), place, carry_out=fast)) == whole[1]
    assert place.journal.read_bytes() == whole[0]


def test_a_journal_that_is_a_folder_or_leads_nowhere_is_named(tmp_path: Path) -> None:
    journal = write_study(tmp_path)
    journal.mkdir(parents=True)
    assert str(journal) in refused(tmp_path)
    journal.rmdir()
    journal.symlink_to(tmp_path / "gone" / "journal.log")
    assert str(journal) in refused(tmp_path)


def test_workers_that_start_at_once_on_a_cut_journal(tmp_path: Path) -> None:
    place = Place(tmp_path / "results" / "tiny")
    work(study(trials=1), place, carry_out=fast)
    with place.journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"dead","stud')
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY | {"trials": 12}))
    workers = [SERVER.Process(target=fast_worker.main, args=(tmp_path / "study.yaml", place.folder)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(200)
    assert [worker.exitcode for worker in workers] == [0] * 4
    found = open_study(study(trials=12), place)
    assert [trial.number for trial in found.trials] == list(range(12))
    assert {trial.state for trial in found.trials} == {TrialState.COMPLETE}


@pytest.mark.parametrize("loss", ["cut", "gone", "damaged"])
def test_a_journal_that_breaks_under_a_worker_loses_no_trial(tmp_path: Path, loss: str) -> None:
    place = Place(tmp_path / "s")
    kept = tmp_path / "kept"

    def breaks(spec, place, chosen, reached) -> Measured:
        if kept.exists():
            return fast(spec, place, chosen, reached)
        shutil.copy(place.journal, kept)
        if loss == "gone":
            place.journal.unlink()
        else:
            with place.journal.open("r+b") as file:
                file.truncate(300 if loss == "cut" else None)
                file.seek(0 if loss == "damaged" else 300)
                file.write(b"?\n" if loss == "damaged" else b"")
        return fast(spec, place, chosen, reached)

    with pytest.raises(UsageError, match=r"journal\.log"):
        work(study(), place, carry_out=breaks)
    shutil.copy(kept, place.journal)
    done = work(study(), place, carry_out=breaks)
    assert [trial.state for trial in done.trials] == [TrialState.COMPLETE] * 3


def test_a_full_disk_leaves_no_half_line_behind(tmp_path: Path, monkeypatch) -> None:
    """A write that fails half-way is one line; the next one, of whatever worker, drops the half first."""
    place, real = Place(tmp_path / "s"), os.fsync
    failing = []

    def full(descriptor: int) -> None:
        if failing and str(place.journal) == os.readlink(f"/proc/self/fd/{descriptor}"):
            os.truncate(place.journal, place.journal.stat().st_size - 9)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    def fills(spec, place, chosen, reached) -> Measured:
        failing.append(True)
        return fast(spec, place, chosen, reached)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"journal\.log .*No space left"):
        work(study(), place, carry_out=fills)
    assert not place.journal.read_bytes().endswith(b"\n")
    failing.clear()
    assert [t.state for t in work(study(), place, carry_out=fast).trials] == [TrialState.COMPLETE] * 3


# Databases


def database(folder: Path) -> tuple[Path, str]:
    return folder / "studies.db", f"sqlite:///{folder}/studies.db"


def _another_version(path: Path) -> None:
    work(study(), Place(path.parent / "other", f"sqlite:///{path}"), carry_out=fast)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE version_info SET schema_version = 1, library_version = '0.1.0'")
        connection.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
        connection.commit()


BAD_DATABASES = {
    "no database": lambda path: path.write_bytes(b"not a database at all" * 99),
    "another version": _another_version,
    "a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("executor", ["inline", "local"])
@pytest.mark.parametrize("bad", BAD_DATABASES)
def test_a_bad_database_is_refused_before_anything_is_written(tmp_path: Path, bad: str, executor: str) -> None:
    write_study(tmp_path)
    path, url = database(tmp_path)
    BAD_DATABASES[bad](path)
    assert f"--storage {url}" in refused(tmp_path, "--storage", url, "--executor", executor)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "url", ["foo", "", " ", "sqlite://", "sqlite:///:memory:", "sqlite:////nowhere/at/all/x.db", "x://a"]
)
def test_what_is_no_database_is_refused_before_anything_is_written(tmp_path: Path, url: str) -> None:
    write_study(tmp_path)
    assert f"--storage {url}".strip() in refused(tmp_path, "--storage", url)
    assert not (tmp_path / "results").exists()


def test_what_a_driver_warns_of_is_not_shown(tmp_path: Path) -> None:
    place = Place(tmp_path, "sqlite:////nowhere/at/all/x.db?password=hidden")
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        for use in (check_storage, open_storage):
            with pytest.raises(StorageError, match=r"password=\*\*\*: "):
                use(place)
    assert not shown


def test_a_locked_database_is_one_line_and_its_trial_goes_on(tmp_path: Path) -> None:
    write_study(tmp_path, trials=1)
    path, url = database(tmp_path)
    spec, place = study(trials=1), Place(tmp_path / "results" / "sweeps" / "tiny", url)

    def lock(spec, place, chosen, reached) -> Measured:
        other.execute("BEGIN EXCLUSIVE")
        return fast(spec, place, chosen, reached)

    with contextlib.closing(sqlite3.connect(path)) as other:
        with pytest.raises(StorageError, match="database is locked"):
            work(spec, place, carry_out=lock)
        assert "locked" in refused(tmp_path, "--storage", url)
        other.rollback()
    assert [trial.state for trial in work(spec, place, carry_out=fast).trials] == [TrialState.COMPLETE]


def test_a_database_that_breaks_in_a_trials_course_fails_no_trial(tmp_path: Path) -> None:
    spec = study(pruner="median", trials=1)
    path, url = database(tmp_path)
    place = Place(tmp_path / "s", url)

    def breaks(spec, place, chosen, reached) -> Measured:
        shutil.copy(path, tmp_path / "kept")
        path.write_bytes(b"x" * 5000)
        reached(0, 0.5)
        raise AssertionError("not reached")

    with pytest.raises(StorageError, match=r"studies\.db"):
        work(spec, place, carry_out=breaks)
    shutil.copy(tmp_path / "kept", path)
    assert [trial.state for trial in work(spec, place, carry_out=fast).trials] == [TrialState.COMPLETE]


# Passwords


SECRET = "hun#ter2.Zq"
URLS = {
    "postgresql": f"postgresql://ada:{SECRET}@db.example/optuna",
    "encoded": "mysql+pymysql://ada:hun%23ter2.Zq@db.example/optuna",
    "query": f"postgresql://db.example/optuna?user=ada&password={SECRET}",
    "odbc": f"mssql+pyodbc:///?odbc_connect=UID%3Dada%3BPWD%3D{SECRET}",
    "at": f"postgresql://ada:p@{SECRET}@db.example/optuna",
    "port": f"postgresql://ada:x@{SECRET}:pw@db.example:port/optuna",
    "question mark": f"postgresql://ada:?{SECRET}@db.example/optuna",
    "braces": f"postgresql://ada:{{{SECRET}}}@db.example/optuna",
    "no slashes": f"postgresql:ada:{SECRET}@db.example/optuna",
    "unknown dialect": f"nosuch://ada:{SECRET}@db.example/optuna",
}


def held(folder: Path, secret: str) -> list[str]:
    """Files under a folder that hold a secret, or any of its pieces."""
    pieces = [piece.encode() for piece in (secret, "hun%23ter2", "ter2.Zq")]
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "tiny.yaml"]
    return [str(path) for path in files if any(piece in path.read_bytes() for piece in pieces)]


@pytest.mark.parametrize("executor", ["inline", "local", "slurm"])
@pytest.mark.parametrize("kind", URLS)
def test_a_password_is_in_no_message(tmp_path: Path, kind: str, executor: str) -> None:
    write_study(tmp_path)
    done = bench(["sweep", "tiny.yaml", "--storage", URLS[kind], "--executor", executor], tmp_path)
    assert done.returncode in (2, 3)
    assert done.stderr.count("\n") == 1 and "--storage" in done.stderr
    assert not any(piece in done.stdout + done.stderr for piece in (SECRET, "ter2", "hun%23"))
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_a_working_database_with_a_secret_leaves_it_in_no_file(tmp_path: Path) -> None:
    """SQLite's own addresses take, and pass over, any parameter: jobs get it by their environment alone."""
    write_study(tmp_path, trials=1)
    url = f"sqlite:///file:{tmp_path}/studies.db?uri=true&token={SECRET.replace('#', '%23')}"
    words = ["sweep", "tiny.yaml", "--executor", "local", "--storage", url]
    done = bench(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 complete" in done.stdout
    assert "ter2" not in done.stdout + done.stderr
    assert list((tmp_path / "results").rglob("launch.json"))
    assert held(tmp_path, SECRET) == []
    assert optuna.get_all_study_names(storage=f"sqlite:///{tmp_path}/studies.db") == ["tiny"]


def _export_url(folder: str) -> None:
    os.environ["STUDIES"] = f"sqlite:///{folder}/studies.db"


def test_the_url_may_come_from_the_environment(tmp_path: Path) -> None:
    write_study(tmp_path, trials=1)
    said = refused(tmp_path, "--storage", "env:STUDIES", code=3)
    assert "STUDIES is not set" in said
    assert "(no name given)" in refused(tmp_path, "--storage", "env:", code=3)
    done = bench(["sweep", "tiny.yaml", "--storage", "env:STUDIES"], tmp_path, _export_url, (str(tmp_path),))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "studies.db").is_file()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ada:pw@h/d", "postgresql://ada:***@h/d"),
        ("postgresql://ada@h/d", "postgresql://ada@h/d"),
        ("postgresql://h:5432/d?sslmode=require;password=x", "postgresql://h:5432/d?sslmode=***&password=***"),
        ("postgresql://h:5432/d?password=p@ss", "postgresql://***"),
        ("postgresql://ada:p?w@h/d", "postgresql://***"),
        ("postgresql://ada:a@b@h/d", "postgresql://***"),
        ("sqlite:////tmp/a:b@c/x.db", "sqlite:////tmp/a:b@c/x.db"),
    ],
)
def test_masks(url: str, shown: str) -> None:
    assert masked(url) == shown


def test_messages_that_repeat_a_password_do_not() -> None:
    url = "postgresql://ada:p%40ss%20word@h/d"
    for text in (url, "password 'p%40ss%20word'", "user ada, password p@ss word"):
        assert "word@" not in without_secrets(text, url) and "ss word" not in without_secrets(text, url)
        assert "***" in without_secrets(text, url)
    assert "omitted" in without_secrets("a long story of a", "postgresql://ada:a@h/d")


def test_what_a_password_says_must_be_what_sqlalchemy_reads(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="%40"):
        check_storage(Place(tmp_path, "postgresql://ada:p@ss@h/d"))
    assert "pw" not in repr(Place(tmp_path, "postgresql://ada:pw@h/d"))


# Places that take no writing, or no locks


def _no_locks() -> None:
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl.flock = refuse


def _read_only() -> None:
    def refuse(path, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    os.mkdir = refuse


@pytest.mark.parametrize("executor", ["inline", "local"])
def test_a_file_system_without_locks_is_one_line(tmp_path: Path, executor: str) -> None:
    write_study(tmp_path)
    said = refused(tmp_path, "--executor", executor, code=1, before=_no_locks)
    assert "does not support locks (flock)" in said and str(tmp_path / "results" / "sweeps" / "tiny") in said
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("executor", ["inline", "local"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, executor: str) -> None:
    write_study(tmp_path)
    said = refused(tmp_path, "--executor", executor, before=_read_only)
    assert "Read-only file system" in said and "--results" in said
