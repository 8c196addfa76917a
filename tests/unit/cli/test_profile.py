"""Tests of `--profile`: the same results, a trace of all hops and operations, a summary, and early refusal."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kilotron.apis.llm import MegatronLLM
from kilotron.sampling_params import SamplingParams
from unit.cli.conftest import Command

HOPS = {"step", "plan", "prepare", "generate", "run", "sample", "end", "resolve", "publish"}
OPERATIONS = {"linear", "embedding", "rms_norm", "rotate_and_append", "plan_attention", "paged_attention"}
GENERATE = ("--max-tokens", "4", "--seed", "1", "-p", "hello")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trace.json"


def spans_of(file: Path) -> list[dict[str, Any]]:
    events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    return [event for event in events if event["ph"] == "X"]


def crossings(spans: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Pairs of spans that overlap without one lying in the other."""
    open_spans: list[tuple[float, str]] = []
    for span in sorted(spans, key=lambda span: (span["ts"], -span["dur"])):
        end = span["ts"] + span["dur"]
        while open_spans and open_spans[-1][0] <= span["ts"]:
            open_spans.pop()
        if open_spans and end > open_spans[-1][0] + 0.002:
            yield open_spans[-1][1], span["name"]
        open_spans.append((end, span["name"]))


def test_results_are_the_same_with_and_without(command: Command, checkpoint: str, file: Path) -> None:
    scores = ("--json", "--logprobs", "3")
    plain = command("generate", checkpoint, *GENERATE, *scores).objects[0]
    profiled = command("generate", checkpoint, *GENERATE, *scores, "--profile", file).objects[0]

    del plain["timings"], profiled["timings"]
    assert profiled == plain


def test_the_trace_holds_all_hops_and_operations_and_its_spans_nest(
    command: Command, checkpoint: str, file: Path
) -> None:
    command("generate", checkpoint, *GENERATE, "--profile", file)

    spans = spans_of(file)
    names = {span["name"].split()[0] for span in spans}
    assert names >= HOPS | OPERATIONS
    assert list(crossings(spans)) == []


def test_each_step_says_its_rows_and_tokens(command: Command, checkpoint: str, file: Path) -> None:
    command("generate", checkpoint, *GENERATE, "-p", "hello you", "--profile", file)

    steps = [span["args"] for span in spans_of(file) if span["name"] == "step"]
    assert steps[0] == {"step": 1, "rows": 2, "tokens": len("hello" + "hello you")}
    assert steps[1] == {"step": 2, "rows": 2, "tokens": 2}


def test_the_summary_has_shares_that_make_up_the_whole(command: Command, checkpoint: str, file: Path) -> None:
    outcome = command("generate", checkpoint, *GENERATE, "--profile", file)

    shares = [float(share) for share in re.findall(r"([\d.]+) %$", outcome.err, re.MULTILINE)]
    assert sum(shares) == pytest.approx(100, abs=2)
    assert "4 steps took" in outcome.err
    assert f"the trace is in {file}" in outcome.err


@pytest.mark.parametrize("arguments", [("score",), ("bench", "latency", "--num-repeats", "1", "--output-len", "2")])
def test_other_commands_write_traces_too(
    command: Command, checkpoint: str, file: Path, arguments: tuple[str, ...]
) -> None:
    prompt = ("-p", "hello") if arguments == ("score",) else ("--input-len", "4")

    outcome = command(*arguments, checkpoint, *prompt, "--profile", file)

    assert outcome.code == 0, outcome.err
    assert "step" in {span["name"] for span in spans_of(file)}


def test_a_file_that_cannot_be_written_is_refused_before_the_model_is_looked_for(
    command: Command, tmp_path: Path
) -> None:
    outcome = command("generate", "nowhere", *GENERATE, "--profile", tmp_path / "no" / "trace.json")

    assert outcome.code == 2
    assert "cannot be written: there is no folder" in outcome.err


def test_an_interrupted_run_leaves_its_trace(checkpoint: str, file: Path) -> None:
    def interrupt(llm: MegatronLLM) -> None:
        with llm:
            for _ in llm.generate_stream("hello", SamplingParams(num_tokens_to_generate=50)):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt(MegatronLLM(checkpoint, profile=str(file), buffer_size_gb=0.01))

    assert [span["name"] for span in spans_of(file)].count("step") == 1
