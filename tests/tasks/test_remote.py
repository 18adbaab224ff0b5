"""Scoring over HTTP, remembered scores, and pictures that a scorer cannot take."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.api.scores import Unscorable, score_each
from bench.api.task import Prompt, Scores, Task
from bench.cli.score import score_folder
from bench.config.resolve import resolve
from bench.errors import BenchError, MissingError, UsageError
from bench.sampler.levels import FlowLevels
from bench.sampler.rollout import euler
from bench.scoring import client, remote
from bench.scoring.cache import RememberingTask
from bench.scoring.folders import write
from bench.scoring.loading import load_task
from bench.scoring.server import server_for
from bench.training.evaluate import evaluate
from bench.training.execute import Session, execute
from tests.commands import bench


class Moody(Task):
    """Scores brightness; cannot take a picture whose first pixel is red."""

    name, version, headline = "moody", "1", "brightness"

    def __init__(self) -> None:
        super().__init__("photo")
        self.calls: list[int] = []

    def prompts(self, split: str) -> list[Prompt]:
        return [Prompt(f"a photo of a {shape}") for shape in ("ring", "star", "circle")]

    def score(self, images_BCHW, prompts) -> Scores:
        self.calls.append(len(prompts))
        if ((images_BCHW[:, 0, 0, 0] == 1) & (images_BCHW[:, 1, 0, 0] == 0)).any():
            raise RuntimeError("red makes me angry")
        brightness = images_BCHW.mean((1, 2, 3)).double().numpy()
        return Scores(brightness, {"brightness": brightness}, [{"text": p.text} for p in prompts])


@pytest.fixture
def serving() -> Iterator:
    """serving(task) -> address of a server that scores for it."""
    servers = []

    def serve(task: Task) -> str:
        servers.append(server_for(task, "127.0.0.1", 0))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def pictures(count: int = 3, red: tuple[int, ...] = ()) -> torch.Tensor:
    """On the grid of bytes, so that a trip through PNG changes nothing."""
    made = torch.randint(0, 255, (count, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 255
    for i in red:
        made[i, :, 0, 0] = torch.tensor([1.0, 0.0, 0.0])
    return made


PROMPTS = [Prompt(f"picture {i}", metadata={"ünï": [1, None]}) for i in range(3)]


def test_a_served_scorer_scores_as_it_does_at_home(serving, micro) -> None:
    for name in ("ocr", "geneval", "pickscore"):
        home = load_task(name, "micro")
        away = load_task(name, "micro", {"url": serving(home)})
        assert (away.scorer_name, away.headline) == (home.scorer_name, home.headline)
        prompts = home.prompts("test")[:5]
        images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        images = (images * 255).round() / 255
        here, there = home.score(images, prompts), away.score(images, prompts)
        np.testing.assert_allclose(there.rewards, here.rewards, atol=1e-6)
        assert set(there.metrics) == set(here.metrics)
        for metric, values in here.metrics.items():
            np.testing.assert_allclose(there.metrics[metric], values, atol=1e-5)


def test_a_run_may_be_scored_elsewhere(serving, tmp_path: Path) -> None:
    url = serving(load_task("ocr", "micro"))
    overrides = ["budget.updates=1", "params.groups=2", "params.group_size=2", "evaluation.steps=1"]
    home = resolve("single_task", ["ocr"], overrides=overrides)
    away = resolve("single_task", ["ocr"], overrides=[*overrides, f"scorers.ocr.url={url}"])
    summaries = [execute(spec, Session(tmp_path / name / "results")) for name, spec in (("h", home), ("a", away))]
    rows = [s["models"]["student"]["ocr"]["rows"]["reward"] for s in summaries]
    assert rows[0] == pytest.approx(rows[1], abs=1e-6)
    assert summaries[0]["scorers"] == summaries[1]["scorers"]


def test_a_picture_that_cannot_be_scored_is_lost_alone(serving, micro) -> None:
    scores = score_each(Moody(), pictures(red=(1,)), PROMPTS)
    assert np.isnan(scores.rewards).tolist() == [False, True, False]
    assert np.isnan(scores.metrics["brightness"]).tolist() == [False, True, False]
    away = remote.RemoteTask(Moody(), serving(Moody()))
    np.testing.assert_allclose(away.score(pictures(red=(1,)), PROMPTS).rewards, scores.rewards)
    with pytest.raises(BenchError, match="failed on every image: red makes me angry"):
        score_each(Moody(), pictures(red=(0, 1, 2)), PROMPTS)
    with pytest.raises(Unscorable, match=r"failed on every image: red makes me angry"):
        away.score(pictures(red=(0, 1, 2)), PROMPTS)

    class Half(Moody):
        def score(self, images_BCHW, prompts) -> Scores:
            return Scores(np.array([0.5, np.nan, 0.5]), {"brightness": np.ones(3)})

    found = evaluate(micro, Half(), None, euler(FlowLevels(3.0), 1), 1.0)
    assert found.failed == 1
    assert found.estimate().value == 1
    assert json.loads(json.dumps(found.record(), allow_nan=False))["rows"]["reward"][1] is None


def test_no_server_and_nonsense_answers_are_clear(serving, monkeypatch) -> None:
    monkeypatch.setattr(client, "PAUSES_S", (0, 0))
    gone = remote.RemoteTask(Moody(), "http://127.0.0.1:9")
    with pytest.raises(MissingError, match=r"no scorer answers at http://127\.0\.0\.1:9 .*bench serve moody"):
        gone.score(pictures(), PROMPTS)
    for url in ("file:///etc/passwd", "http://localhost:abc", "localhost:8600", "http://"):
        with pytest.raises(UsageError, match="takes an http address"):
            load_task("ocr", "micro", {"url": url})

    def answering(body: bytes) -> remote.RemoteTask:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST

            def log_message(self, *_) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return remote.RemoteTask(Moody(), f"http://127.0.0.1:{server.server_port}/")

    for body, said in (
        (b"<html>", "did not return JSON"),
        (b"[1]", "returned JSON of type list, not an object"),
        (b'{"rewards": [0.1, 0.2]}', "2 numbers for 3 images"),
        (b'{"rewards": [0.1, "x", 0.2]}', "invalid scores"),
        (b'{"rewards": [0.1, 2, 0.2]}', r"outside \[0, 1\]"),
        (b'{"metrics": {}}', "invalid scores"),
    ):
        with pytest.raises(BenchError, match=said):
            answering(body).score(pictures(), PROMPTS)
    with pytest.raises(BenchError, match="does not speak scoring protocol 1"):
        _ = answering(b'{"protocol": 2}').scorer_name
    assert np.isnan(answering(b'{"rewards": [0.1, null, 0.2]}').score(pictures(), PROMPTS).rewards[1])


def test_a_server_refuses_what_is_no_request(serving) -> None:
    url = serving(Moody())
    for path, body, status in (
        ("/score", b"{}", 400),
        ("/score", b"not json", 400),
        ("/score", json.dumps({"prompts": [{"text": "a"}], "images": ["AAAA"]}).encode(), 400),
        ("/score", json.dumps({"prompts": [], "images": []}).encode(), 400),
        ("/elsewhere", b"{}", 404),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(url + path, body))
        assert refused.value.code == status
        assert "error" in json.load(refused.value)


def test_known_pictures_are_not_scored_again(tmp_path: Path) -> None:
    inner = Moody()
    task = RememberingTask(inner, tmp_path / "scores.sqlite")
    first = task.score(pictures(red=(1,)), PROMPTS)
    assert inner.calls == [3, 1, 1, 1]
    again = RememberingTask(inner, tmp_path / "scores.sqlite").score(
        pictures(4, red=(1,))[[2, 0, 3]], [PROMPTS[2], PROMPTS[0], PROMPTS[1]]
    )
    assert inner.calls[4:] == [1]
    np.testing.assert_array_equal(again.rewards[:2], first.rewards[[2, 0]])
    assert again.details[0] == {"text": "picture 2"}
    task.score(pictures()[:1], [Prompt("another prompt")])
    assert inner.calls[5:] == [1]
    (tmp_path / "broken.sqlite").write_text("no database" * 100)
    with pytest.raises(UsageError, match="cannot keep scores"):
        RememberingTask(inner, tmp_path / "broken.sqlite")


def test_a_folder_with_a_broken_file_loses_that_file_alone(clip_folder, tmp_path: Path, capsys) -> None:
    write(tmp_path / "made", PROMPTS, pictures(), [(0, 0), (1, 0), (2, 0)])
    (tmp_path / "made" / "00001" / "samples" / "0000.png").write_bytes(b"\x89PNG broken")
    settings = [f"scorers.pickscore.{key}={clip_folder}" for key in ("model", "processor")]
    with pytest.raises(
        BenchError, match=r"1 of 3 images could not be scored; .*00001/samples/0000\.png is not a readable image"
    ):
        score_folder("pickscore", tmp_path / "made", settings, "photo", 2)
    assert "2 images" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "made" / "results-pickscore.jsonl").read_text().splitlines()]
    assert [line["pickscore"] is None for line in lines] == [False, True, False]
    assert [line["prompt"] for line in lines] == ["picture 0", "picture 1", "picture 2"]


def test_a_reward_that_only_a_server_knows(serving, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("".join(f"picture {i}\n" for i in range(200)))
    (tmp_path / "test.txt").write_text("a test\n")
    task = load_task("remote", "photo", {"prompts": str(tmp_path), "url": serving(Moody())})
    assert (task.scorer_name, task.headline) == (Moody().scorer_name, "reward")
    prompts = task.sample(40, np.random.default_rng(0))
    scores = task.score(pictures(40), prompts)  # several requests
    np.testing.assert_allclose(scores.rewards, pictures(40).mean((1, 2, 3)).numpy(), atol=1e-6)
    assert len(scores.details) == 40
    with pytest.raises(MissingError, match=r"set scorers\.remote\.url"):
        load_task("remote", "photo").score(pictures(), PROMPTS)


def test_monstrous_and_broken_pictures_are_no_pictures(tmp_path: Path, monkeypatch) -> None:
    from PIL import Image

    from bench.scoring.pictures import from_file

    Image.new("RGB", (64, 64)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match="exceeds limit"):
        from_file(tmp_path / "large.png")


@pytest.fixture
def page() -> Iterator:
    """page(status, body, **headers) -> address of a server that answers everything so, and what it was asked."""
    servers = []

    def serve(status: int, body: bytes, **headers: str) -> tuple[str, list[str]]:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(status)
                for name, text in headers.items():
                    self.send_header(name.replace("_", "-"), text)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}", asked

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_scorer_on_this_machine_is_asked_without_a_proxy(host: str, serving, monkeypatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert remote.RemoteTask(Moody(), "http://127.3.2.1:1").client.proxy is None
    assert remote.RemoteTask(Moody(), "http://[::1]:1").client.proxy is None
    assert remote.RemoteTask(Moody(), "http://example.org").client.proxy == "127.0.0.1:9 from http_proxy"
    url = serving(Moody()).replace("127.0.0.1", host)
    assert remote.RemoteTask(Moody(), url).scorer_name == Moody().scorer_name


def test_the_proxy_that_was_asked_is_named_and_its_password_is_not(page, monkeypatch) -> None:
    login, asked = page(200, b"<!DOCTYPE html><html><head><title>Log\n in</title></head></html>")
    monkeypatch.setenv("http_proxy", login.replace("//", "//me:secret@"))
    monkeypatch.delenv("no_proxy", raising=False)
    proxy = login.removeprefix("http://")
    with pytest.raises(BenchError, match="did not return JSON") as refused:
        _ = remote.RemoteTask(Moody(), "http://scorer.invalid:8600").scorer_name
    assert asked == ["http://scorer.invalid:8600/"]
    for said in ("a web page 'Log in'", f"the proxy {proxy} from http_proxy", "add scorer.invalid to no_proxy"):
        assert said in str(refused.value)
    assert "secret" not in str(refused.value)
    monkeypatch.setenv("no_proxy", "scorer.invalid")
    with pytest.raises(MissingError, match="no scorer answers") as gone:
        _ = remote.RemoteTask(Moody(), "http://scorer.invalid:8600").scorer_name
    assert "proxy" not in str(gone.value)


def test_what_has_never_answered_is_given_up_at_once(page, serving, monkeypatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(client, "sleep", waited.append)
    for url in ("http://127.0.0.1:9", "http://nowhere.invalid"):
        with pytest.raises(MissingError, match="no scorer answers"):
            remote.RemoteTask(Moody(), url).score(pictures(), PROMPTS)
    url, _ = page(502, b"<html><title>Bad gateway</title></html>")
    with pytest.raises(BenchError, match="answered 502: a web page 'Bad gateway'"):
        remote.RemoteTask(Moody(), url).score(pictures(), PROMPTS)
    assert set(waited) == {0}
    url, asked = page(503, b'{"error": "come again"}')  # it is there, and busy
    with pytest.raises(MissingError, match="503"):
        _ = remote.RemoteTask(Moody(), url).scorer_name
    assert len(asked) == 1 + len(client.PAUSES_S)
    away = remote.RemoteTask(Moody(), serving(Moody()))
    _ = away.scorer_name
    away.client.url = "http://127.0.0.1:9"  # it goes away while a run depends on it
    waited.clear()
    with pytest.raises(MissingError, match="no scorer answers"):
        away.score(pictures(), PROMPTS)
    assert waited == [0, *client.PAUSES_S]


@pytest.mark.parametrize(
    ("said", "pauses"),
    [
        ("30", (0, 30, 30, 30, 60)),
        ("2", (0, 2, 5, 20, 60)),
        ("86400", (0, 600, 600, 600, 600)),
        ("Thu, 01 Jan 2015 00:00:00 GMT", (0, 1, 5, 20, 60)),
        ("Fri, 31 Dec 9999 23:59:59 GMT", (0, 600, 600, 600, 600)),
        ("Fri, 31 Dec 9999 23:59:59", (0, 600, 600, 600, 600)),
        ("soon", (0, 1, 5, 20, 60)),
    ],
)
def test_a_busy_server_is_asked_again_when_it_says(said: str, pauses: tuple[int, ...], page, monkeypatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(client, "sleep", waited.append)
    url, _ = page(429, b'{"error": "too many"}', Retry_After=said)
    with pytest.raises(MissingError, match="429"):
        _ = remote.RemoteTask(Moody(), url).scorer_name
    assert tuple(waited) == pauses


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://x/", "http://me:secret@x", "http://x?key=1", "http://x y", "http://a..b", "http://ü"],
)
def test_what_is_no_address_is_refused_before_anything_is_written(url: str, tmp_path: Path) -> None:
    for words in (
        ["run", "--method", "single_task", "--tasks", "ocr", "--set", f"scorers.ocr.url={url}"],
        ["eval", "--adapter", "base", "--tasks", "ocr", "--set", f"scorers.ocr.url={url}"],
    ):
        done = bench(words, tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "scorers.ocr.url takes an" in done.stderr
        assert "secret" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"rewards": "123"}', "not a list of numbers"),
        (b'{"rewards": [true, 0, 0]}', "not a list of numbers"),
        (b'{"rewards": ["0.5", 0, 0]}', "not a list of numbers"),
        (b'{"rewards": [0, 0, 0], "metrics": {"m": [Infinity, 0, 0]}}', "infinite"),
        (b'{"rewards": [0, 0, 0], "metrics": {"m": [1' + b"0" * 400 + b", 0, 0]}}", "too large"),
        (b'{"rewards": [0, 0, 0], "metrics": [1]}', "invalid scores"),
        (b'{"rewards": [0, 0, 0], "details": {"a": 1}}', "details are not a list"),
        (b'{"rewards": [0, 0, 0], "details": [{}]}', "1 details for 3 images"),
        (b"[" * 100_000, "did not return JSON"),
    ],
)
def test_what_is_no_score_is_no_score(body: bytes, said: str, page) -> None:
    with pytest.raises(BenchError, match=said) as refused:
        remote.RemoteTask(Moody(), page(200, body)[0]).score(pictures(), PROMPTS)
    assert refused.value.exit_code == 1


def test_large_pictures_are_sent_a_few_at_a_time(serving, monkeypatch) -> None:
    inner = Moody()
    monkeypatch.setattr(remote, "PIXELS", 130)
    remote.RemoteTask(inner, serving(inner)).score(pictures(5), [Prompt("a")] * 5)
    assert inner.calls == [2, 2, 1]


def test_a_server_without_the_headline_is_named(page, micro) -> None:
    url, _ = page(200, json.dumps({"rewards": [0.5]}).encode())

    class One(Moody):
        def prompts(self, split: str) -> list[Prompt]:
            return [Prompt("a photo of a ring")]

    with pytest.raises(BenchError, match="gives reward, not the headline metric 'brightness'"):
        evaluate(micro, remote.RemoteTask(One(), url), None, euler(FlowLevels(3.0), 1), 1.0)


def test_a_picture_that_fails_alone_in_its_part_costs_nothing_else(micro) -> None:
    class Second(Moody):
        def score(self, images_BCHW, prompts) -> Scores:
            if any(p.text.endswith("star") for p in prompts):
                raise RuntimeError("no stars")
            return Scores(np.ones(len(prompts)), {"brightness": np.ones(len(prompts))})

    found = evaluate(micro, Second(), None, euler(FlowLevels(3.0), 1), 1.0, batch=1)
    assert np.isnan(found.rows["brightness"]).tolist() == [False, True, False]

    class Never(Second):
        def prompts(self, split: str) -> list[Prompt]:
            return [Prompt("a photo of a star")] * 20

    with pytest.raises(BenchError, match="no stars"):
        evaluate(micro, Never(), None, euler(FlowLevels(3.0), 1), 1.0, batch=1)
