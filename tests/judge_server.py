"""A chat endpoint on loopback that judges, keeps a record of what it gave out, and misbehaves where it is told to."""

from __future__ import annotations

import contextlib
import json
import math
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import attrs

KEY = "sk-loopback-4d2f9c"
MODEL = "judge-1"
PATIENCE = 60.0
"""Seconds after which something that has not happened is taken for one that does not."""
Asked = tuple[str, str, str]
Plan = Callable[[int, Asked], str | bytes]


def well(number: int, asked: Asked) -> str:
    return "ok"


def truth(first: str | float, second: str | float) -> float:
    """Q of the judge behind the server: the larger number is better, and the first place is liked a little."""
    return 1 / (1 + math.exp(-(float(first) - float(second)) / 4 - 0.5))


def preference(first: str, second: str) -> float:
    return (truth(first, second) + 1 - truth(second, first)) / 2


@attrs.define
class JudgeServer:
    """What it is told, and what it has seen.

    Attributes:
        plan: what to do with the n-th request about a pair, n from 1: "ok", a way to misbehave, or a body as it is.
        quality: of a response, which this judge goes by.
        soft: whether log-probabilities are given to who asks for them.
        delivered: ordered pairs whose verdict was written out whole, in order.
        requests: how often each ordered pair was asked for.
        most_at_once: requests in flight at the same time, at the most.
        open: connections that have been accepted and not yet been left.
        lock: of what it has seen; told whenever a connection ends.
    """

    plan: Plan = well
    soft: bool = False
    tokens: tuple[int, int] = (100, 1)
    quality: Callable[[str], float] = float
    url: str = ""
    elsewhere: str = ""
    delivered: list[Asked] = attrs.field(factory=list)
    requests: Counter[Asked] = attrs.field(factory=Counter)
    bodies: list[dict[str, Any]] = attrs.field(factory=list)
    times: list[float] = attrs.field(factory=list)
    in_flight: int = 0
    most_at_once: int = 0
    open: int = 0
    lock: threading.Condition = attrs.field(factory=threading.Condition, repr=False)

    @property
    def given(self) -> Counter[Asked]:
        return Counter(self.delivered)

    def settle(self) -> None:
        """Wait until replies to clients that have died are written, or found to have nobody to go to."""
        host, _, port = self.url.removeprefix("http://").partition("/")[0].partition(":")
        # Connections are accepted in the order in which they were made: once this one is, so are all before it.
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as last:
            last.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert last.recv(1)
        with self.lock:
            assert self.lock.wait_for(lambda: not self.open, PATIENCE), f"{self.open} connections are open"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    judge: JudgeServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        read = self.rfile.read(length)
        if len(read) < length:  # its sender was killed in the middle
            self.close_connection = True
            return
        body, judge = json.loads(read), self.judge
        asked = _question(body)
        with judge.lock:
            judge.requests[asked] += 1
            number = judge.requests[asked]
            judge.bodies.append(body)
            judge.times.append(time.monotonic())
            judge.in_flight += 1
            judge.most_at_once = max(judge.most_at_once, judge.in_flight)
        try:
            self._answer(body, asked, judge.plan(number, asked))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with judge.lock:
                judge.in_flight -= 1

    def _answer(self, body: dict[str, Any], asked: Asked, what: str | bytes) -> None:
        given = self.headers.get("authorization", "")
        if self.path != "/v1/chat/completions":
            return self._send(404, {"error": {"message": f"no such path {self.path}"}})
        if given != f"Bearer {KEY}":
            # As careless as servers are: it says the key back.
            return self._send(401, {"error": {"message": f"Incorrect API key provided: {given[7:]}"}})
        if body["model"] != MODEL:
            return self._send(404, {"error": {"message": f"the model {body['model']} does not exist"}})
        match what:
            case bytes():
                return self._write(200, what, headers={"content-encoding": "gzip"} if what[:2] == b"\x1f\x8b" else None)
            case "elsewhere":
                return self._write(307, b"", headers={"location": f"{self.judge.elsewhere}/chat/completions"})
            case "echo":
                return self._send(500, {"error": {"message": f"{'.' * 265}{given}"}})
            case "429":
                return self._send(429, {"error": {"message": "slow down"}})
            case "429 after":
                return self._send(429, {"error": {"message": "slow down"}}, {"retry-after": "0.2"})
            case "429 quota":
                return self._send(429, {"error": {"message": "no credit left", "code": "insufficient_quota"}})
            case "500" | "503":
                return self._send(int(what), {"error": {"message": "sorry"}})
            case "no logprobs":
                if "logprobs" in body:
                    return self._send(400, {"error": {"message": "logprobs are not supported"}})
            case "hang":
                self.connection.settimeout(30)
                with contextlib.suppress(OSError):
                    self.connection.recv(1)  # returns when the client has gone
                self.close_connection = True
                return None
            case "drop":
                return self._drop()
            case "half":
                return self._write(200, json.dumps(self._completion(body, asked, "A"))[:40].encode())
            case "text":
                return self._write(200, b"<html>busy</html>", "text/html")
            case "empty":
                return self._send(200, {"id": "x", "object": "chat.completion", "choices": []})
            case "wrong":
                return self._send(200, self._completion(body, asked, "Both are fine."))
            case "slow":
                time.sleep(0.1)
        first = self._truth(asked) > 0.5
        # Noted ahead of the last byte, so that whoever has read it finds the note.
        with self.judge.lock:
            self.judge.delivered.append(asked)
        try:
            self._send(200, self._completion(body, asked, "A" if first else "B"))
        except OSError:
            with self.judge.lock:
                self.judge.delivered.remove(asked)
            raise
        return None

    def _truth(self, asked: Asked) -> float:
        return truth(*map(self.judge.quality, asked[1:]))

    def _completion(self, body: dict[str, Any], asked: Asked, content: str) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        choice["message"] = {"role": "assistant", "content": content}
        if body.get("logprobs") and self.judge.soft:
            q = self._truth(asked)
            # The rest of the mass is elsewhere, and one spelling of A has a space.
            likely = [("A", 0.6 * q), (" A", 0.2 * q), ("B", 0.8 * (1 - q)), ("The", 0.2)]
            entries = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in likely]
            top = next((e for e in entries if e["token"] == content[:1]), entries[-1])
            choice["logprobs"] = {"content": [{**top, "top_logprobs": entries}]}
        spent_in, spent_out = self.judge.tokens
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": {"prompt_tokens": spent_in, "completion_tokens": spent_out, "total_tokens": spent_in + spent_out},
        }

    def _send(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._write(status, json.dumps(content).encode(), "application/json", headers)

    def _write(
        self, status: int, content: bytes, kind: str = "application/json", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def _drop(self) -> None:
        # Closed with a reset, in the middle of the head.
        self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-le")
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True


def _question(body: dict[str, Any]) -> Asked:
    text = next(message["content"] for message in body["messages"] if message["role"] == "user")
    found = re.search(r"\[Request\]\n(.*)\n\n\[Response A\]\n(.*)\n\n\[Response B\]\n(.*)\n\nWhich", text, re.DOTALL)
    assert found is not None, text
    return found[1], found[2], found[3]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # with the 5 that are usual, the kernel itself turns connections away
    judge: JudgeServer

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.judge.lock:
            self.judge.open += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self.judge.lock:
            self.judge.open -= 1
            self.judge.lock.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that was killed
            super().handle_error(request, client_address)


@contextlib.contextmanager
def judge_server(**told: Any) -> Iterator[JudgeServer]:
    judge = JudgeServer(**told)
    handler = type("Handler", (_Handler,), {"judge": judge})
    server = _Server(("127.0.0.1", 0), handler)
    server.judge = judge
    judge.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
