"""Tests of what the benchmark's command line says of systems, and of their processes."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pytest

from workloads.definitions import Request
from workloads.systems import System, SystemFailure, SystemProcess, parse_options, parse_peer

FAKE = """
from workloads.peers.protocol import Stopwatch, serve

class Fake:
    def __init__(self, model, num_threads, options):
        print("loading", model)
    def run(self, requests):
        watch = Stopwatch(requests)
        for index, request in enumerate(requests):
            if request["prompt"] == [13]:
                raise RuntimeError("no thirteens")
            watch.mark(index, 1)
            watch.mark(index, request["num_tokens"] - 1 - (request["prompt"] == [12]))
        return watch.timings()
    def facts(self):
        return {"version": "7"}
    def close(self):
        print("closed")

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
def process(tmp_path: Path, log: TextIO) -> Iterator[SystemProcess]:
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    with SystemProcess(FakeSystem("kilotron", script=str(script)), 1, log) as started:
        yield started


def test_a_system_is_loaded_once_and_serves_again_and_again(process: SystemProcess) -> None:
    served = [process.run([Request([1, 2], 4)] * count) for count in (1, 3)]

    assert process.facts == {"version": "7"}
    assert [len(timings.last) for timings in served] == [1, 3]


def test_what_a_system_prints_goes_to_its_log(process: SystemProcess, log: TextIO) -> None:
    process.close()

    assert Path(log.name).read_text() == "loading .\nclosed\n"


def test_an_error_inside_of_a_system_is_told(process: SystemProcess) -> None:
    with pytest.raises(SystemFailure, match="no thirteens"):
        process.run([Request([13], 4)])


def test_a_missing_token_is_an_error(process: SystemProcess) -> None:
    with pytest.raises(SystemFailure, match=r"generated \[3\] tokens instead of \[4\]"):
        process.run([Request([12], 4)])


def test_a_process_that_has_ended_is_told(process: SystemProcess) -> None:
    process.close()

    with pytest.raises((SystemFailure, ValueError)):
        process.run([Request([1], 4)])


def test_a_peer_is_a_name_and_a_command() -> None:
    peer = parse_peer("vllm=env 'A=b c' /venv/bin/python")

    assert (peer.name, peer.command, peer.precision) == ("vllm", ("env", "A=b c", "/venv/bin/python"), "bf16")


def test_a_variant_of_a_peer_has_its_own_precision() -> None:
    peer = parse_peer("llama:q4_0=/build/llama-server")

    assert (peer.name, peer.precision, peer.weight_bits) == ("llama.cpp q4_0", "int4", 4.5)
    assert peer.runner()[0] == sys.executable
    assert peer.load_command(2)["options"] == {"server": "/build/llama-server"}


@pytest.mark.parametrize(
    ("text", "message"),
    [("triton=x", "unknown peer 'triton'"), ("openvino:q8_0=x", "no variant 'q8_0'"), ("openvino", "names no command")],
)
def test_a_mistaken_peer_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_peer(text)


def test_options_of_one_name_belong_together() -> None:
    options = parse_options(["small:quantization=int8", "small:max_tokens=64", "llama.cpp q8_0:arguments=--a=1 -b"])

    assert options == {
        "small": {"quantization": "int8", "max_tokens": "64"},
        "llama.cpp q8_0": {"arguments": "--a=1 -b"},
    }


def test_a_variant_of_kilotron_has_the_precision_of_its_quantization() -> None:
    small = System("kilotron", "small", options={"quantization": "int8"})
    plain = System("kilotron", "ref", options={"kernels": "reference"})

    assert (small.name, small.precision, small.weight_bits) == ("kilotron small", "int8", 8.0)
    assert (plain.name, plain.precision, plain.weight_bits) == ("kilotron ref", "bf16", 16.0)


def test_a_mistaken_option_is_refused() -> None:
    with pytest.raises(ValueError, match="name:key=value"):
        parse_options(["quantization=int8"])
