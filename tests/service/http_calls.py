"""HTTP calls for tests of running services: whole answers, and generations in threads that tell how they ended."""

import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Answer:
    """A whole response."""

    status: int
    headers: Mapping[str, str]
    text: str
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> dict[str, Any]:
        """Checked for its shape."""
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


def ask(port: int, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None) -> Answer:
    """One request on a connection of its own."""
    started = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        content = None if body is None else json.dumps(body)
        kind = {} if body is None else {"content-type": "application/json"}
        connection.request(method, path, content, {**kind, **(headers or {})})
        response = connection.getresponse()
        text = response.read().decode()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names, text, time.monotonic() - started)
    finally:
        connection.close()


@dataclass
class Call:
    """A generation under way, streaming if its body says so.

    `outcome` is None until it ends, and then "finished", "error" (a response or an event says why) or "cut" (the
    connection ended before the answer did).
    """

    port: int
    path: str
    body: dict[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    outcome: str | None = None
    status: int = 0
    response_headers: dict[str, str] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=dict)
    id: str = ""
    texts: dict[int, str] = field(default_factory=dict)
    finish_reasons: dict[int, str] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    num_chunks: int = 0
    ended_at: float = 0.0
    local_port: int = 0

    def __post_init__(self) -> None:
        self.started_at = time.monotonic()
        self._has_chunks = threading.Condition()
        self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        self._connection.connect()
        self._socket: socket.socket = self._connection.sock
        self.local_port = self._socket.getsockname()[1]
        content = json.dumps(self.body)
        self._connection.request("POST", self.path, content, {"content-type": "application/json", **self.headers})
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def text(self) -> str:
        return self.texts.get(0, "")

    def wait(self, timeout_s: float = PATIENCE_S) -> "Call":
        """Returns at its end."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"a request hung: {self.num_chunks} chunks, {self.body}"
        return self

    def wait_chunks(self, number: int = 1, timeout_s: float = PATIENCE_S) -> "Call":
        """Returns when so many events have come."""
        with self._has_chunks:
            is_so = self._has_chunks.wait_for(lambda: self.num_chunks >= number or self.outcome is not None, timeout_s)
        assert is_so, f"{self.num_chunks} of {number} chunks"
        assert self.num_chunks >= number, f"ended with {self.num_chunks} of {number} chunks: {self.error}"
        return self

    def leave(self, *, abruptly: bool = False) -> None:
        """Closes the connection: FIN, or RST."""
        if abruptly:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # The reading thread holds the descriptor; a shutdown wakes it up.
        self._socket.shutdown(socket.SHUT_RDWR)
        self.wait(5.0)

    def _run(self) -> None:
        outcome = "cut"
        try:
            outcome = self._read()
        except (OSError, http.client.HTTPException):
            pass
        finally:
            self.ended_at = time.monotonic()
            self._connection.close()
            self._socket.close()
            with self._has_chunks:
                self.outcome = outcome
                self._has_chunks.notify_all()

    def _read(self) -> str:
        response = self._connection.getresponse()
        try:
            self.status = response.status
            self.response_headers = {name.lower(): value for name, value in response.getheaders()}
            if self.response_headers.get("content-type", "").startswith("text/event-stream"):
                return self._read_events(response)
            content = json.loads(response.read())
        finally:
            response.close()
        if "error" in content:
            self.error = content["error"]
            return "error"
        self._take(content)
        return "finished"

    def _read_events(self, response: http.client.HTTPResponse) -> str:
        outcome = "cut"
        while line := response.readline():
            if not line.startswith(b"data: "):
                continue
            assert outcome == "cut", f"an event after the last one: {line!r}"
            data = line.removeprefix(b"data: ").strip()
            if data == b"[DONE]":
                outcome = "finished"
                continue
            content = json.loads(data)
            if "error" in content:
                self.error, outcome = content["error"], "error"
                continue
            self._take(content)
            with self._has_chunks:
                self.num_chunks += 1
                self._has_chunks.notify_all()
        return outcome

    def _take(self, content: dict[str, Any]) -> None:
        self.id = content["id"]
        self.usage = content.get("usage") or self.usage
        for choice in content["choices"]:
            index = choice["index"]
            self.texts[index] = self.texts.get(index, "") + choice["text"]
            if choice["finish_reason"] is not None:
                assert index not in self.finish_reasons, "a continuation ended twice"
                self.finish_reasons[index] = choice["finish_reason"]
