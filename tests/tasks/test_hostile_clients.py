"""A server that scores goes on, in little memory, whatever clients send: raw sockets, as no library would."""

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.api.task import Prompt, Scores, Task
from bench.scoring import server as serve
from bench.scoring.remote import RemoteTask, encode

DEEP = b"[" * 200_000
GOOD = {"text": "a", "stratum": "", "metadata": {}}


class Bright(Task):
    name, version, headline = "bright", "1", "reward"

    def prompts(self, split: str) -> list[Prompt]:
        return [Prompt("a")]

    def score(self, images_BCHW, prompts) -> Scores:
        if any("break" in p.metadata for p in prompts):
            return Scores(np.ones(len(prompts)), {}, [{"what": {1, 2}}] * len(prompts))  # a set is no JSON
        return Scores(images_BCHW.mean((1, 2, 3)).double().numpy(), {})


@pytest.fixture
def port() -> Iterator[int]:
    server = serve.server_for(Bright("photo"), "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def ask(port: int, *pieces: bytes, close: bool = False) -> tuple[int, dict]:
    """Send raw bytes; the status and the JSON that come back."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for piece in pieces:
            connection.sendall(piece)
        if close:
            connection.shutdown(socket.SHUT_WR)
        answer = connection.makefile("rb").read()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def post(body: bytes, *headers: str, path: str = "/score") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", *(headers or (f"Content-Length: {len(body)}",))]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def request(images: object, prompts: object) -> bytes:
    return post(json.dumps({"images": images, "prompts": prompts}).encode())


def dots(width: int, height: int = 1) -> str:
    """A base64 PNG of few bytes and many pixels."""
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


PICTURE = dots(4, 4)
LONG = "Content-Length: "
CASES = {
    "no length": (post(b"{}", "Accept: x"), 411, "Content-Length"),
    "pieces": (post(b"2\r\n{}\r\n0\r\n\r\n", "Transfer-Encoding: chunked"), 411, "Content-Length"),
    "pieces and a length": (post(b"{}", "Transfer-Encoding: chunked", LONG + "2"), 411, "Content-Length"),
    "a negative length": (post(b"{}", LONG + "-1"), 400, "is not a number of bytes"),
    "a length in words": (post(b"{}", LONG + "two"), 400, "is not a number of bytes"),
    "a length that is signed": (post(b"{}", LONG + "+2"), 400, "is not a number of bytes"),
    "two lengths": (post(b"{}", LONG + "2", LONG + "3"), 400, "is not a number of bytes"),
    "no body": (post(b"", LONG + "0"), 400, "empty"),
    "a large length": (post(b"{}", LONG + str(2**31)), 413, "the request is larger than"),
    "a length of ten thousand digits": (post(b"{}", LONG + "9" * 10_000), 413, "the request is larger than"),
    "deep JSON": (post(DEEP), 400, "is not JSON"),
    "deep objects": (post(b'{"a":' * 100_000), 400, "is not JSON"),
    "bytes that are no text": (post(b"\xff\xfe\x00"), 400, "invalid request"),
    "an array": (post(b"[1]"), 400, "JSON object"),
    "a number": (post(b"7"), 400, "JSON object"),
    "images that are a word": (request("AAAA", [GOOD]), 400, "list of text"),
    "an image that is a number": (request([1], [GOOD]), 400, "list of text"),
    "prompts that are an object": (request([PICTURE], {"text": "a"}), 400, "list of objects"),
    "a prompt that is text": (request([PICTURE], ["a"]), 400, "must be an object"),
    "a prompt without text": (request([PICTURE], [{}]), 400, "must be text"),
    "a prompt whose text is a number": (request([PICTURE], [{"text": 1}]), 400, "must be text"),
    "a stratum that is a list": (request([PICTURE], [{"text": "a", "stratum": []}]), 400, "must be text"),
    "metadata that is text": (request([PICTURE], [{"text": "a", "metadata": "m"}]), 400, "an object"),
    "more prompts": (request([PICTURE], [GOOD, GOOD]), 400, "1 images and 2 prompts"),
    "no pictures": (request([], []), 400, "0 images"),
    "too many pictures": (request([PICTURE] * 1025, [GOOD] * 1025), 413, "more than 1024 images"),
    "base64 that is none": (request(["@@@@"], [GOOD]), 400, "image 0 is not readable"),
    "a picture of 40 megapixels": (request([dots(8000, 5000)], [GOOD]), 413, "40,000,000 pixels"),
    "90 megapixels together": (request([dots(6000, 5000)] * 3, [GOOD] * 3), 413, "in one request"),
    "another path": (post(b"{}", path="/elsewhere"), 404, "POST /score"),
    "another verb": (b"PUT /score HTTP/1.1\r\n\r\n", 501, "Unsupported method"),
    "no HTTP": (b"\x16\x03\x01 hello world again\r\n\r\n", 400, ""),
    "a line without end": (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414, ""),
    "a thousand headers": (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 1000 + b"\r\n", 431, ""),
    "a scorer whose details are no JSON": (request([PICTURE], [GOOD | {"metadata": {"break": 1}}]), 500, "TypeError"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_no_request_is_refused_in_json(name: str, port: int) -> None:
    sent, status, reason = CASES[name]
    found, answer = ask(port, sent)
    assert found == status, answer
    assert reason in answer["error"]
    assert ask(port, request([PICTURE], [GOOD])) == (200, {"rewards": [0.0], "metrics": {}, "details": []})


def test_a_body_that_ends_early_is_refused(port: int) -> None:
    status, answer = ask(port, post(b'{"images', LONG + "100"), close=True)
    assert (status, answer["error"]) == (400, "the body ends after 8 of 100 bytes")


def memory_mb() -> float:
    (line,) = (row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def test_two_hundred_clients_that_claim_much_hold_little(port: int) -> None:
    before = memory_mb()
    head = post(b"", LONG + str(serve.LARGEST))
    slow = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(200)]
    for connection in slow:
        connection.sendall(head + b"[" * 1000)
    away = RemoteTask(Bright("photo"), f"http://127.0.0.1:{port}")
    assert away.score(torch.ones(1, 3, 4, 4), [Prompt("a")]).rewards == pytest.approx([1])
    assert memory_mb() - before < 200
    for connection in slow:
        connection.close()


def test_bodies_of_all_clients_share_the_room(port: int, monkeypatch) -> None:
    monkeypatch.setattr(serve, "TOGETHER", 3_000_000)
    waiting = socket.create_connection(("127.0.0.1", port), timeout=20)
    waiting.sendall(post(b"", LONG + "2500001") + b" " * 2_500_000)
    time.sleep(0.5)
    status, answer = ask(port, post(b" " * 1_000_000))
    assert (status, "try again later" in answer["error"]) == (503, True)
    waiting.close()  # what it held is free again
    deadline = time.monotonic() + 20
    while ask(port, post(b" " * 1_000_000))[0] == 503 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ask(port, post(b" " * 1_000_000))[0] == 400


def test_too_many_clients_are_told_to_come_again(monkeypatch) -> None:
    monkeypatch.setattr(serve, "CLIENTS", 2)
    server = serve.server_for(Bright("photo"), "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    idle = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(2)]
    deadline = time.monotonic() + 20
    while len(server.receiving) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as third:
        assert third.makefile("rb").read().startswith(b"HTTP/1.0 503")
    for connection in idle:
        connection.close()
    server.shutdown()
    server.server_close()


def test_a_client_that_takes_too_long_is_hung_up_on(port: int, monkeypatch) -> None:
    monkeypatch.setattr(serve, "RECEIVE_S", 0.2)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as dripping:
        started = time.monotonic()
        dripping.sendall(b"POST /score HTT")
        assert dripping.recv(100) == b""
        assert time.monotonic() - started < 10


def test_a_client_that_hangs_up_leaves_no_trace(port: int, capfd) -> None:
    for sent in (b"", b"POST /sc", request([PICTURE], [GOOD])):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(sent)
    assert ask(port, request(encode(torch.ones(1, 3, 4, 4)), [GOOD]))[1]["rewards"] == [1.0]
    assert capfd.readouterr().err == ""
