"""A chat completions server of the tests: it follows the API, and misbehaves as it is told."""

import json
import math
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "judge-1"
Token = tuple[str, float | None, Mapping[str, float | None]]


@dataclass(frozen=True)
class Answer:
    """What the server sends. `cut`: half of the body, then a reset. `until`: nothing before this event."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    cut: bool = False
    until: threading.Event | None = None


Plan = Callable[[int, dict[str, Any]], Answer]
"""Called with the request's number (from 0) and its body."""


class ChatServer:
    """`requests`: bodies in the order of arrival; `keys`: their Authorization headers."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.released = threading.Event()
        self.lock = threading.Lock()
        self.now = self.most = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    number = len(outer.requests)
                    outer.requests.append({"path": self.path, **body})
                    outer.keys.append(self.headers["Authorization"])
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                try:
                    outer.send(self, outer.plan(number, body))
                except OSError:
                    self.close_connection = True  # the client has gone
                finally:
                    with outer.lock:
                        outer.now -= 1

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (its name in http.server)
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    @staticmethod
    def send(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        if answer.until is not None:
            answer.until.wait(60)
        text = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
        data = text.encode()
        handler.send_response(answer.status)
        for name, value in {"Content-Type": answer.content_type, **answer.headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if answer.cut:
            handler.wfile.write(data[: len(data) // 2])
            handler.wfile.flush()
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
            handler.close_connection = True
        else:
            handler.wfile.write(data)


@contextmanager
def chat_server(plan: Plan) -> Iterator[ChatServer]:
    server = ChatServer(plan)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.http.shutdown()
        thread.join()
        server.http.server_close()


def completion(
    text: str,
    tokens: Sequence[Token] | None = None,
    model: str | None = MODEL,
    usage: tuple[int, int] | None = (10, 2),
) -> dict[str, Any]:
    """The body of a chat completion. A token is its text, its log-probability and those of its alternatives."""
    content = [
        {"token": text, "logprob": logprob, "bytes": None, "top_logprobs": _alternatives(others)}
        for text, logprob, others in tokens or ()
    ]
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": text},
                "logprobs": {"content": content, "refusal": None} if tokens is not None else None,
            }
        ],
        "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
        if usage
        else None,
    }


def _alternatives(others: Mapping[str, float | None]) -> list[dict[str, Any]]:
    return [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in others.items()]


def letters(p_a: float, mass: float = 0.9) -> Answer:
    """ "(A)" or "(B)" with P(A) = `p_a` of the letters' `mass`."""
    values = {"A": math.log(mass * p_a), "B": math.log(mass * (1 - p_a)), " the": math.log((1 - mass) * 0.9)}
    letter = "A" if p_a >= 0.5 else "B"
    tokens: list[Token] = [("(", -0.01, {"(": -0.01, "A": -5.0}), (letter, values[letter], values), (")", 0.0, {})]
    return Answer(completion(f"({letter})", tokens))


def text_of(body: Mapping[str, Any]) -> str:
    """The last message of a request."""
    return body["messages"][-1]["content"]
