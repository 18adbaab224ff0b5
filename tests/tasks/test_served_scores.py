"""`bench score` with scorers and score files that say odd things: nothing wrong gets into results in silence."""

import json
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.api.scores import Unscorable, score_each
from bench.api.task import Prompt, Scores
from bench.cli.evaluate import _print
from bench.cli.score import may_replace, print_summary, score_folder
from bench.errors import BenchError, UsageError
from bench.scoring import cache
from bench.scoring.cache import RememberingTask
from bench.scoring.folders import write
from bench.scoring.remote import RemoteTask
from bench.scoring.server import server_for
from bench.system.files import read_rows
from bench.training.evaluate import Evaluation
from tasks.geneval.task import GenEval
from tests.tasks.test_remote import PROMPTS, Moody, pictures, serving  # noqa: F401

Answer = Callable[[int], dict]


@pytest.fixture
def answering() -> Iterator:
    """answering(answer) -> address of a scorer that gives answer(pictures); `answer` may be a status to answer with."""
    servers = []

    def serve(answer: Answer | int, target: str = "") -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, {"protocol": 1, "scorer": "mine"})

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if isinstance(answer, int):
                    self._send(answer, {})
                else:
                    self._send(200, answer(len(asked["images"])))

            def _send(self, status: int, content: dict) -> None:
                self.send_response(status)
                if status != 200:
                    self.send_header("Location", target)
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def log_message(self, *_) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures of each of three prompts, two of them of one tag."""
    test = GenEval("photo").prompts("test")
    chosen = [next(p for p in test if p.stratum == tag) for tag in ("single_object", "colors")]
    chosen.append(next(p for p in test if p.stratum == "colors" and p.text != chosen[1].text))
    prompts = [prompt for prompt in chosen for _ in range(2)]
    write(tmp_path / "made", prompts, pictures(6), [(i // 2, i % 2) for i in range(6)])
    return tmp_path / "made"


def score(folder: Path, url: str, task: str = "geneval", batch: int = 8) -> list[dict]:
    """Score with a server; the lines that are written."""
    score_folder(task, folder, [f"scorers.{task}.url={url}"], "photo", batch)
    (found,) = folder.glob("results*.jsonl")
    return read_rows(found)


def judged(n: int, **more: object) -> dict:
    return {"rewards": [1.0] * n, "metrics": {"official": [1.0] * n}, **more}


# What a server says


@pytest.mark.parametrize("half", ["reward", "headline"])
def test_half_a_score_is_none_and_is_not_remembered(half: str, answering, folder: Path, capsys) -> None:
    gaps = [1.0] + [None] * 5
    broken = {"rewards": gaps} if half == "reward" else {"metrics": {"official": gaps}}
    mended = []
    url = answering(lambda n: judged(n) | ({} if mended else broken))
    with pytest.raises(BenchError, match=r"5 of 6 images could not be scored; .*no image of 'colors' has a score"):
        score(folder, url)
    captured = capsys.readouterr()
    assert "1 images" in captured.out
    assert captured.err == ""
    assert [row["correct"] for row in read_rows(folder / "results.jsonl")] == [True]
    mended.append(True)
    assert [row["official"] for row in score(folder, url)] == [1] * 6


def test_all_null_is_no_score(answering, folder: Path) -> None:
    for answer in ({"rewards": [None] * 6}, {"rewards": [None] * 6, "details": [{"failure": "too dark"}] * 6},
                   judged(6) | {"metrics": {"official": [None] * 6}}):  # fmt: skip
        said = "too dark" if "details" in answer else "returned no score for any image"
        with pytest.raises(BenchError, match=f"no image could be scored: .*{said}"):
            score(folder, answering(lambda n, answer=answer: answer))
    assert not list(folder.glob("results*"))


def test_no_metric_is_called_reward(answering, folder: Path) -> None:
    with pytest.raises(BenchError, match="a metric is named 'reward'"):
        score(folder, answering(lambda n: judged(n, metrics={"official": [1.0] * n, "reward": [21.5] * n})))
    scores = Scores(np.ones(1), {"reward": np.full(1, 21.5), "brightness": np.ones(1)})
    with pytest.raises(BenchError, match="names a metric 'reward'"):
        Evaluation.of(Moody(), [Prompt("a")], scores)


@pytest.mark.parametrize(
    ("detail", "said"),
    [
        ({"correct": "False"}, "'correct' should be true or false, not \"False\""),
        ({"correct": None}, "not null"),
        ({"correct": 0.5}, "not 0.5"),
        ({"correct": True, "reason": 3}, "'reason' of details should be text, not 3"),
        ({"correct": True, "details": []}, r"'details' of details should be an object, not \[\]"),
    ],
)
def test_details_that_are_no_verdict_are_refused(detail: dict, said: str, answering, folder: Path) -> None:
    with pytest.raises(BenchError, match=f"returned invalid scores: .*{said}"):
        score(folder, answering(lambda n: judged(n, details=[detail] * n)))
    assert not list(folder.glob("results*"))


def test_the_verdict_is_the_metrics(answering, folder: Path) -> None:
    rows = score(folder, answering(lambda n: judged(n, details=[{"correct": False}] * n)))
    assert all((row["correct"], row["reason"], row["details"]) == (True, "", "{}") for row in rows)


def test_what_is_no_verdict_is_not_called_one(answering, folder: Path) -> None:
    rows = score(folder, answering(lambda n: judged(n, metrics={"official": [0.5] * n})))
    assert not any("correct" in row for row in rows)
    assert (folder / "results-geneval.jsonl").is_file()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirection_is_refused_with_its_target(status: int, answering) -> None:
    away = RemoteTask(Moody(), answering(status, "/login?key=secret"))
    with pytest.raises(BenchError, match=f"answered {status}, a redirect to {away.url}/login, which") as refused:
        away.score(pictures(), PROMPTS)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("target", ["http://[bad", "http://me:secret@127.0.0.1/x", "", "file:///etc/passwd"])
def test_a_redirection_to_anything_is_one_line(target: str, answering) -> None:
    with pytest.raises(BenchError, match="answered 307, a redirect to ") as refused:
        RemoteTask(Moody(), answering(307, target)).score(pictures(), PROMPTS)
    assert "secret" not in str(refused.value)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_stratum_without_scores_leaves_no_mean_over_strata(capsys) -> None:
    strata, half = np.array(["a", "a", "b", "b"]), np.array([1.0, 0.0, 1.0, np.nan])
    lost = np.array([1.0, 0.0, np.nan, np.nan])
    whole = Evaluation("t", "official", strata, {"official": half, "other": lost})
    assert (whole.estimate().value, whole.missing, whole.failed) == (0.75, "", 1)
    assert np.isnan(whole.estimate("other").value)  # of a metric, too
    without = Evaluation("t", "official", strata, {"official": lost, "other": half})
    assert np.isnan([without.estimate(metric).value for metric in without.rows]).all()
    assert without.missing == "no image of 'b' has a score, so the mean over tags is undefined"
    print_summary(without, "made up")
    _print("made up", [(1.0, without), (2.0, whole), (3.0, without)])
    shown = capsys.readouterr().out
    assert "b none" in shown
    assert "best guidance scale by headline metric: t 2" in shown


# What is there before


OFFICIAL = '{"filename": "a.png", "tag": "colors", "prompt": "a", "correct": true, "metadata": "{}", "details": "{}"}\n'


@pytest.mark.parametrize("content", [OFFICIAL, "notes of mine\n", '{"reward": 1}\n'])
def test_results_of_others_stay(content: str, answering, folder: Path, capsys) -> None:
    (folder / "results.jsonl").write_text(content)
    url = answering(judged)
    score_folder("geneval", folder, [f"scorers.geneval.url={url}"], "photo", 8)
    assert (folder / "results.jsonl").read_text() == content
    assert len(read_rows(folder / "results-geneval.jsonl")) == 6
    assert "results.jsonl was not written by bench score and is kept; the verdicts are in" in capsys.readouterr().err
    (folder / "results.jsonl").unlink()
    (folder / "results-geneval.jsonl").write_text(content)
    before = sorted(folder.rglob("*"))
    with pytest.raises(UsageError, match=r"results-geneval\.jsonl was not written by bench score, .*: move it away"):
        score_folder("geneval", folder, [f"scorers.geneval.url={url}"], "photo", 8)
    assert sorted(folder.rglob("*")) == before


def test_own_results_are_replaced(answering, folder: Path, capsys) -> None:
    for _ in range(2):
        assert len(score(folder, answering(judged))) == 6
    assert capsys.readouterr().err == ""
    assert may_replace(folder / "nothing.jsonl")


def test_another_tasks_verdicts_leave_genevals_alone(answering, folder: Path) -> None:
    for number in range(3):
        (folder / f"{number:05d}" / "metadata.jsonl").write_text('{"prompt": "a sign that says \\"hello\\""}')
    said = {"metrics": {"exact": [0.0] * 6}, "details": [{"correct": "HELLO", "reason": 3}] * 6}
    assert not any("correct" in row for row in score(folder, answering(lambda n: judged(n) | said), "ocr"))
    assert not (folder / "results.jsonl").exists()


@pytest.mark.parametrize("layout", ["one folder a prompt", "one folder a picture", "a prompt that comes again"])
def test_pictures_of_one_prompt_are_one_cluster_wherever_they_lie(layout: str, answering, tmp_path: Path) -> None:
    tags = ("colors", "counting")
    prompts = [p for tag in tags for p in [q for q in GenEval("photo").prompts("test") if q.stratum == tag][:16]]
    at = {
        "one folder a prompt": [(i // 4, i % 4) for i in range(32)],
        "one folder a picture": [(i, 0) for i in range(32)],
        "a prompt that comes again": [(i // 2, i % 2) for i in range(32)],
    }[layout]
    write(tmp_path / "made", prompts, torch.rand(32, 3, 8, 8), at)
    rng, values = np.random.default_rng(0), []

    def answer(n: int) -> dict:
        values.extend(rng.integers(0, 2, n).astype(float).tolist())
        return judged(n, metrics={"official": values[-n:]})

    from bench.cli.score import imported, scored
    from bench.scoring.folders import read

    task = RememberingTask(RemoteTask(GenEval("photo"), answering(answer)), tmp_path / "c.sqlite")
    found, lines, _ = scored(task, read(tmp_path / "made"), 8)
    expected = Evaluation.of(task, prompts, Scores(np.ones(32), {"official": np.array(values)})).estimate()
    assert found.estimate() == expected
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert imported(tmp_path / "r.jsonl", "geneval").estimate() == expected


# Remembered scores


def edited(path: Path, **changes: object) -> None:
    database = sqlite3.connect(path)
    with database:
        for key, row in database.execute("SELECT key, scores FROM scores").fetchall():
            changed = json.dumps(json.loads(row) | changes)
            database.execute("UPDATE scores SET scores = ? WHERE key = ?", (changed, key))
    database.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"reward": None}, {"reward": 99}, {"reward": -0.1}, {"reward": float("nan")}, {"metrics": {"brightness": None}},
        {"metrics": {}}, {"metrics": {"other": 1.0}}, {"metrics": {"brightness": 0.5, "reward": 1.0}},
        {"details": "abc"}, {"details": [{}, {}]}, {"details": [5]}, {"details": None},
    ],
)  # fmt: skip
def test_remembered_scores_that_cannot_be_are_scored_again(changes: dict, tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    first = RememberingTask(Moody(), path).score(pictures(), PROMPTS)
    edited(path, **changes)
    inner = Moody()
    again = RememberingTask(inner, path).score(pictures(), PROMPTS)
    assert inner.calls == [3]
    np.testing.assert_array_equal(again.rewards, first.rewards)
    assert again.details == first.details


def test_scores_under_other_metrics_are_scored_again_or_refused(tmp_path: Path) -> None:
    path, other = tmp_path / "scores.sqlite", {"brightness": 0.5, "more": 1.0}
    RememberingTask(Moody(), path).score(pictures(), PROMPTS)
    edited(path, metrics=other)
    inner = Moody()
    task = RememberingTask(inner, path)
    found = task.score(pictures(4), [*PROMPTS, PROMPTS[0]])  # one is new: it shows what the scorer gives now
    assert (list(found.metrics), inner.calls) == (["brightness"], [1, 3])
    edited(path, metrics=other)
    task = RememberingTask(Moody(), path)
    task.score(pictures(), PROMPTS)
    with pytest.raises(UsageError, match=r"with the metrics brightness, more, but it now gives brightness: move"):
        task.score(pictures(5)[4:], PROMPTS[:1])


def test_what_fails_again_costs_nothing_that_is_remembered(tmp_path: Path) -> None:
    for _ in range(2):
        task = RememberingTask(Moody(), tmp_path / "scores.sqlite")
        scores = score_each(task, pictures(red=(1,)), PROMPTS)
        assert np.isnan(scores.rewards).tolist() == [False, True, False]
        assert scores.details[1]["failure"].endswith("red makes me angry")


def test_a_held_database_is_waited_for_once_and_said_at_the_start(answering, folder: Path, capsys) -> None:
    holder = sqlite3.connect(folder / "scores.sqlite", isolation_level=None)
    holder.execute("CREATE TABLE scores (key TEXT PRIMARY KEY, scores TEXT)")
    holder.execute("BEGIN EXCLUSIVE")
    said = []

    def answer(n: int) -> dict:
        said.append(capsys.readouterr().err)
        return judged(n)

    started = time.monotonic()
    assert len(score(folder, answering(answer), batch=1)) == 6
    assert time.monotonic() - started < 6 * cache.WAIT_S
    assert said[0].startswith(f"note: scores are not cached: {folder}/scores.sqlite: database is locked")
    assert capsys.readouterr().err == ""
    holder.close()


def test_a_database_that_is_taken_later_is_waited_for_once(tmp_path: Path) -> None:
    task = RememberingTask(Moody(), tmp_path / "scores.sqlite")
    holder = sqlite3.connect(tmp_path / "scores.sqlite", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    started = time.monotonic()
    for i in range(10):
        task.score(pictures(10)[i : i + 1], PROMPTS[:1])
    assert time.monotonic() - started < 5 * cache.WAIT_S
    assert "locked" in task.forgets
    holder.close()


# What is served


def test_a_size_that_cannot_be_scored_is_null_and_costs_no_other(serving) -> None:  # noqa: F811
    class Narrow(Moody):
        def score(self, images_BCHW, prompts) -> Scores:
            if images_BCHW.shape[-1] > 100:
                raise RuntimeError("too wide")
            return super().score(images_BCHW, prompts)

    from bench.scoring.server import score_sizes

    sizes = [torch.ones(3, 8, 8), torch.ones(3, 16, 400), torch.ones(3, 8, 8)]
    found = score_sizes(Narrow(), sizes, PROMPTS)
    assert np.isnan(found.rewards).tolist() == [False, True, False]
    assert found.details[1] == {"failure": "the scorer of task 'moody' failed: too wide"}
    assert score_sizes(Narrow(), sizes[1:2] * 9, PROMPTS * 3).metrics == {}
    away = RemoteTask(Narrow(), serving(Narrow()))
    with pytest.raises(Unscorable, match="too wide"):
        away.score(torch.ones(1, 3, 16, 400), PROMPTS[:1])


def test_a_served_folder_loses_the_picture_that_fails_alone(serving, folder: Path) -> None:  # noqa: F811
    task = GenEval("photo")

    def read(images: torch.Tensor, _: list) -> list[dict]:
        if images.shape[-1] > 1000:
            raise RuntimeError("too wide")
        return [{} for _ in images]

    task.reader = read
    strange = folder / "00001" / "samples" / "0000.png"
    Image.new("RGB", (2000, 50)).save(strange)
    with pytest.raises(BenchError, match=f"1 of 6 images could not be scored; .*{strange}: .*too wide"):
        score(folder, serving(task))
    assert len(read_rows(folder / "results.jsonl")) == 5


@pytest.mark.skipif(not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_a_scorer_is_served_on_an_ipv6_address(capsys, monkeypatch) -> None:
    server = server_for(Moody(), "::1", 0)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    assert RemoteTask(Moody(), f"http://[::1]:{server.server_port}").scorer_name == Moody().scorer_name
    server.shutdown()
    server.server_close()
