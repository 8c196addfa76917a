"""Hostile peers against the whole process tree: readers that stall, bodies and prompts without measure."""

import json
import selectors
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from service.running_service import RunningService, report, running

USUAL = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0.0}
NUM_STALLED = 500
STALL_S = 30.0
MIB = 1 << 20


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with running("--num-threads", "1", "--max-requests", "512", heartbeat_s=5) as service:
        yield service


class Lag:
    """Asks for /livez all the time, and keeps the longest answer: how long the event loop was busy otherwise."""

    def __init__(self, service: RunningService) -> None:
        self._service = service
        self._should_stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.longest_s = 0.0

    def _run(self) -> None:
        while not self._should_stop.is_set():
            answer = self._service.ask("GET", "/livez")
            assert answer.status == 200
            self.longest_s = max(self.longest_s, answer.seconds)

    def __enter__(self) -> "Lag":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._should_stop.set()
        self._thread.join()


def memory_bytes(service: RunningService, role: str = "") -> int:
    return sum(int(child.memory_info().rss) for child in service.children(role))


def head(length: str) -> bytes:
    lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json", length]
    return "\r\n".join([*lines, "", ""]).encode()


def send_until_answered(service: RunningService, start: bytes, block: bytes, num_blocks: int) -> tuple[bytes, int]:
    """-> the first bytes of the answer, and how many blocks were sent before it."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as peer:
        peer.sendall(start)
        for number in range(num_blocks):
            with selectors.DefaultSelector() as selector:
                selector.register(peer, selectors.EVENT_READ)
                if selector.select(0):
                    return peer.recv(1024), number
            try:
                peer.sendall(block)
            except (BrokenPipeError, ConnectionResetError):
                return peer.recv(1024), number
        return peer.recv(1024), num_blocks


def test_a_body_of_64_mib_is_refused_before_it_is_sent(service: RunningService) -> None:
    before = memory_bytes(service, "frontend")
    answer, num_sent = send_until_answered(service, head(f"Content-Length: {64 * MIB}"), bytes(MIB), 64)
    assert answer.startswith(b"HTTP/1.1 413")
    assert num_sent < 8
    assert memory_bytes(service, "frontend") - before < 8 * MIB


def test_64_mib_in_chunks_are_refused_at_the_limit(service: RunningService) -> None:
    before = memory_bytes(service, "frontend")
    chunk = b"%x\r\n" % MIB + bytes(MIB) + b"\r\n"
    answer, num_sent = send_until_answered(service, head("Transfer-Encoding: chunked"), chunk, 64)
    assert answer.startswith(b"HTTP/1.1 413")
    assert num_sent < 16
    assert memory_bytes(service, "frontend") - before < 24 * MIB


@pytest.mark.parametrize("text", ["word " * 800_000, "é" * 600_000], ids=["words", "one long word"])
def test_a_prompt_of_megabytes_is_a_quick_400_and_holds_nobody_up(service: RunningService, text: str) -> None:
    with Lag(service) as lag:
        answer = service.ask("POST", "/v1/completions", {"prompt": text})
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    report("V39 a prompt of 4 MB", answer.seconds, 0.15)
    report("V39 event-loop lag meanwhile", lag.longest_s, 0.05)
    assert answer.seconds < 1.0
    assert lag.longest_s < 0.5
    assert service.complete(USUAL).outcome == "finished"


def test_a_prompt_of_16_mib_is_refused_as_too_large(service: RunningService) -> None:
    answer, _ = send_until_answered(service, head(f"Content-Length: {16 * MIB}"), b"a" * MIB, 16)
    assert answer.startswith(b"HTTP/1.1 413")
    assert service.complete(USUAL).outcome == "finished"


@pytest.mark.slow
def test_500_readers_that_stall_cost_little_and_are_left_after_a_while(service: RunningService) -> None:
    expected = service.complete(USUAL).text
    before = buffer_bytes(service)
    # Large events, so that what the kernel holds for a reader is soon full.
    body = {"prompt": "a", "max_tokens": 1000, "ignore_eos": True, "stream": True, "logprobs": 20}
    data = json.dumps(body).encode()
    peers = [_stalled_reader(service) for _ in range(NUM_STALLED)]
    started, most = time.monotonic(), 0
    try:
        for peer in peers:
            peer.sendall(head(f"Content-Length: {len(data)}") + data)
        while not service.is_idle():
            most = max(most, buffer_bytes(service) - before)
            assert time.monotonic() - started < 3 * STALL_S, "stalled readers are not left"
            time.sleep(0.5)
        report(f"P20 memory for {NUM_STALLED} stalled readers", most / MIB, 256, "MiB")
        report("P20 until the last of them was left and its KV freed", time.monotonic() - started, 1.5 * STALL_S)
        assert most <= 256 * MIB
        assert service.complete(USUAL).text == expected
    finally:
        for peer in peers:
            peer.close()


def buffer_bytes(service: RunningService) -> int:
    """Of the processes that hold output for readers; the engine's KV cache grows by being used."""
    return memory_bytes(service, "frontend") + memory_bytes(service, "coordinator")


def _stalled_reader(service: RunningService) -> socket.socket:
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.connect(("127.0.0.1", service.port))
    return peer
