"""Tests of workload F: which command is timed, and until when."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pytest

from workloads.cold_start import make_command, measure_cold_start
from workloads.definitions import Request
from workloads.systems import System, SystemFailure

FAKE = """
import time
from workloads.peers.protocol import serve

class Fake:
    def __init__(self, model, num_threads, options):
        self.memory = bytearray(64 << 20)
    def run(self, requests):
        if requests[0]["prompt"] == [13]:
            raise RuntimeError("no thirteens")
        time.sleep(0.2)
    def close(self):
        time.sleep(1.0)

serve(Fake)
"""


@dataclass(frozen=True)
class FakeSystem(System):
    """A runner without a model."""

    script: str = ""

    def runner(self) -> list[str]:
        return [sys.executable, self.script]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[TextIO]:
    with (tmp_path / "log").open("w+") as file:
        yield file


@pytest.fixture
def fake(tmp_path: Path) -> FakeSystem:
    (tmp_path / "fake.py").write_text(FAKE)
    return FakeSystem("openvino", script=str(tmp_path / "fake.py"))


def test_a_start_is_timed_until_the_first_token_and_its_memory_until_the_end(fake: System, log: TextIO) -> None:
    start, load = measure_cold_start(fake, Request([1], 1), 1, log)

    assert start.first_token_s > 0.2
    assert load.wall_s >= start.first_token_s
    assert start.peak_rss_gb > 0.06


def test_a_start_that_fails_is_told(fake: System, log: TextIO) -> None:
    with pytest.raises(SystemFailure, match="gave no first token"):
        measure_cold_start(fake, Request([13], 1), 1, log)


def test_of_kilotron_the_command_that_users_type_is_timed() -> None:
    system = System("kilotron", "small", options={"buffer_size_gb": "1"}, model=Path("folder"))

    words = make_command(system, Request([5, 6], 1), 2)

    assert words[1:5] == ["-m", "kilotron", "generate", "folder"]
    assert words[words.index("--prompt-ids") + 1] == "5,6"
    assert words[-1] == "--buffer-size-gb=1"


def test_of_a_peer_its_runner_is_timed_with_room_for_one_request() -> None:
    words = make_command(System("llama.cpp", command=("/server",), model=Path("model.gguf")), Request([5], 1), 2)

    assert words[1:4] == ["-m", "workloads.peers.llama_cpp", "--first-token"]
    assert '"num_requests": "1"' in words[4]
    assert '"server": "/server"' in words[4]
