"""A run is one scorer's from start to end, wherever that answers."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bench.config.resolve import describe, resolve
from bench.errors import BenchError, MissingError, UsageError
from bench.jobs.placement import placement
from bench.jobs.runs import carry_out_runs
from bench.store.run import Run
from bench.training import same_scorers
from bench.training.execute import Session, execute
from tests.jobs.work import speak

pytestmark = pytest.mark.usefixtures("few_prompts")

NOWHERE = "http://127.0.0.1:9"
Q = ["budget.updates=2", "evaluation.steps=1", "evaluation.split=validation", "params.trajectories=2", "checkpoint_every=1"]


@pytest.fixture
def scorer():
    """scorer(name, reward) -> a server whose pictures all have this reward."""
    servers = []

    def start(name: str, reward: float) -> ThreadingHTTPServer:
        class Handler(BaseHTTPRequestHandler):
            def _answer(self, content: dict) -> None:
                body = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                self._answer({"protocol": 1, "scorer": name})

            def do_POST(self) -> None:
                count = len(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["images"])
                self._answer({"rewards": [reward] * count, "metrics": {"exact": [reward] * count}})

            def log_message(self, *_) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,), daemon=True).start()
        return servers[-1]

    same_scorers._name.cache_clear()
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def at(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def spec(url: str | None, *more: str):
    return resolve("opd_analytic", ["ocr"], overrides=[*Q, *more, *([f"scorers.ocr.url={url}"] if url else [])])


def mean_score(summary: dict) -> float:
    rows = summary["models"]["student"]["ocr"]["rows"]["exact"]
    return sum(rows) / len(rows)


def jobs(run: Run) -> dict[str, str]:
    return carry_out_runs({"a": run}, speak, placement("local", None, None))


def test_a_finished_run_is_not_another_scorer_s(tmp_path: Path, scorer) -> None:
    session, mine, other = Session(tmp_path / "results"), scorer("engineA", 0.25), scorer("engineB", 0.75)
    twin = scorer("engineA", 0.25)
    summary = execute(spec(at(mine)), session)
    assert summary["scorers"] == {"ocr": "engineA"} and mean_score(summary) == 0.25
    run = lambda url: Run(session.root, spec(url), describe("micro").fingerprint())
    (start,) = run(at(mine)).starts()
    assert start["scorer_names"]["ocr"] == "engineA"
    for url in (at(other), None):
        for again in (lambda url=url: execute(spec(url), session), lambda url=url: jobs(run(url))):
            with pytest.raises(UsageError, match="was scored by 'engineA' for ocr, but the scorer is now"):
                again()
    with pytest.raises(MissingError, match="no scorer answers"):
        execute(spec(NOWHERE), session)
    assert execute(spec(at(twin)), session) == summary  # the same scorer elsewhere
    mine.shutdown()
    mine.server_close()
    same_scorers._name.cache_clear()
    assert execute(spec(at(mine)), session) == summary  # its server is gone, but it gave this result
    assert jobs(run(at(mine))) == {}


def test_a_finished_run_of_the_local_scorer_is_no_server_s(tmp_path: Path, scorer) -> None:
    session = Session(tmp_path / "results")
    summary = execute(spec(None), session)
    with pytest.raises(UsageError, match=r"was scored by 'ocr-.*' for ocr, but the scorer is now 'engineB'"):
        execute(spec(at(scorer("engineB", 0.75))), session)
    with pytest.raises(BenchError):
        execute(spec(NOWHERE), session)
    assert execute(spec(None), session) == summary
    # Records from before names were kept are believed.
    (path,) = session.root.glob("opd_*/summary.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scorers": {}}))
    assert execute(spec(at(scorer("engineB", 0.75))), session)["scorers"] == {}


def test_a_run_goes_on_under_its_own_scorer_alone(tmp_path: Path, scorer) -> None:
    mine, other = scorer("engineA", 0.25), scorer("engineB", 0.75)

    def stop(_label, progress) -> None:
        if progress.scores is None and not progress.doing and progress.step == 1:
            raise BenchError("stopped")

    with pytest.raises(BenchError, match="stopped"):
        execute(spec(at(mine)), Session(tmp_path / "results", listen=stop))
    session = Session(tmp_path / "results")
    with pytest.raises(UsageError, match="was scored by 'engineA' for ocr, but the scorer is now 'engineB'"):
        execute(spec(at(other)), session)
    assert mean_score(execute(spec(at(mine)), session)) == 0.25
    (path,) = session.root.glob("opd_*/provenance.jsonl")
    assert len(path.read_text().splitlines()) == 2  # a start that was refused is none


def test_a_finished_run_keeps_the_further_scorers_of_its_rewards(tmp_path: Path, scorer, tiny_tasks) -> None:
    session, mine, other = Session(tmp_path / "results"), scorer("engineA", 0.25), scorer("engineB", 0.75)
    few = ["rewards.red.dark=1", "evaluation.steps=1", "evaluation.split=validation"]
    of = lambda url: resolve("merge", ["red", "ocr"], overrides=[*few, f"scorers.dark.url={url}"], teachers=str(teachers))
    teachers = tmp_path / "teachers"
    for task in ("red", "ocr"):
        shutil.copytree(describe("micro").teachers / "ocr", teachers / task)
    summary = execute(of(at(mine)), session)
    assert summary["scorers"]["red"] == "1.0 x micro-red-1 + 1.0 x engineA"
    assert set(summary["models"]["student"]["red"]["rows"]["dark.reward"]) == {0.25}
    with pytest.raises(UsageError, match=r"was scored by '.*engineA' for red, but the scorer is now '.*engineB'"):
        execute(of(at(other)), session)
    mine.shutdown()
    mine.server_close()
    same_scorers._name.cache_clear()
    assert execute(of(at(mine)), session) == summary  # its server is gone, but it gave this result
