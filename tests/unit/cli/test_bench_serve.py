"""Tests of `kilotron bench serve` against a scripted server whose delays and token counts are known."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from unit.cli.conftest import Command
from unit.cli.fake_openai import (
    DONE,
    FakeOpenAI,
    Reply,
    Request,
    chat_chunk,
    completion_chunk,
    error_body,
    event,
    usage_chunk,
)

FIRST_S, NEXT_S = 0.06, 0.02


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KILOTRON_API_KEY", "OPENAI_API_KEY", "KILOTRON_URL"):
        monkeypatch.delenv(name, raising=False)


def complete(request: Request) -> Reply:
    """As many tokens as were asked for; the first after FIRST_S, each other one NEXT_S later."""
    num_tokens = request.body["max_tokens"]
    chunks = [(FIRST_S, completion_chunk("t"))] + [(NEXT_S, completion_chunk("t"))] * (num_tokens - 1)
    return Reply(chunks=[*chunks, (0, usage_chunk(len(request.body["prompt"]), num_tokens)), (0, DONE)])


def answer(request: Request) -> Reply:
    num_tokens = request.body["max_completion_tokens"]
    return Reply(chunks=[*[(0, chat_chunk("t"))] * num_tokens, (0, usage_chunk(4, num_tokens)), (0, DONE)])


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(completions=complete, chat__completions=answer) as running:
        yield running


SMALL = ("--num-prompts", "6", "--random-input-len", "8", "--random-output-len", "5", "--num-warmups", "0")


def test_the_figures_are_those_of_the_script(command: Command, server: FakeOpenAI) -> None:
    outcome = command("bench", "serve", "--url", server.url, *SMALL, "--goodput", "ttft:5000", "tpot:0.1", "--json")

    assert (outcome.code, outcome.err) == (0, "")
    (result,) = outcome.objects
    exact = {
        "backend": "openai", "model_id": "fake-1", "num_prompts": 6, "request_rate": "inf", "burstiness": 1.0,
        "max_concurrency": None, "completed": 6, "failed": 0, "failures": {}, "total_input_tokens": 48,
        "total_output_tokens": 30, "request_goodput": 0.0, "max_concurrent_requests": 6,
    }  # fmt: skip
    assert {name: result[name] for name in exact} == exact
    # A busy machine makes everything later, never earlier.
    assert FIRST_S * 1000 <= result["median_ttft_ms"] < FIRST_S * 1000 * 8
    assert NEXT_S * 1000 * 0.9 <= result["mean_itl_ms"] < NEXT_S * 1000 * 8
    assert result["mean_e2el_ms"] == pytest.approx(result["mean_ttft_ms"] + 4 * result["mean_itl_ms"])
    assert result["mean_tpot_ms"] == pytest.approx(result["mean_itl_ms"])
    assert result["output_throughput"] == pytest.approx(30 / result["duration"])
    assert "input_lens" not in result


def test_requests_ask_for_ids_of_the_vocabulary_and_full_length(command: Command, server: FakeOpenAI) -> None:
    server.handlers["/tokenizer_info"] = lambda _: Reply(body={"vocab_size": 9})
    assert command("bench", "serve", "--url", server.url, *SMALL, "--ignore-eos").code == 0

    probe, *bodies = server.bodies
    assert probe["prompt"] == [8]
    assert len(bodies) == 6
    for body in bodies:
        assert (body["model"], body["max_tokens"], body["ignore_eos"], body["temperature"]) == ("fake-1", 5, True, 0.0)
        assert len(body["prompt"]) == 8
        assert max(body["prompt"]) <= 8


def test_a_server_that_wants_texts_gets_words(command: Command, server: FakeOpenAI) -> None:
    def texts_only(request: Request) -> Reply:
        return complete(request) if isinstance(request.body["prompt"], str) else Reply(400, error_body("text, please"))

    server.handlers["/v1/completions"] = texts_only
    outcome = command("bench", "serve", "--url", server.url, *SMALL)
    assert outcome.code == 0
    assert "no token ids (text, please)" in outcome.err


def test_chat_is_measured_at_its_own_endpoint(command: Command, server: FakeOpenAI, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "Hello!", "output_tokens": 3}')
    arguments = ("--endpoint", "/v1/chat/completions", "--dataset-name", "custom", "--dataset-path")
    outcome = command(
        "bench", "serve", "--url", server.url, *arguments, tmp_path / "in.jsonl", "--num-prompts", "2", "--json"
    )

    assert outcome.code == 0
    assert (outcome.objects[0]["completed"], outcome.objects[0]["total_output_tokens"]) == (2, 6)
    assert len(server.bodies) == 3  # the warm-up too
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "Hello!"}]


def test_no_more_requests_are_under_way_than_allowed(command: Command, server: FakeOpenAI) -> None:
    outcome = command("bench", "serve", "--url", server.url, *SMALL, "--max-concurrency", "2", "--json")
    assert outcome.objects[0]["max_concurrent_requests"] == 2
    assert server.most_at_once <= 3  # one may not have been closed yet


def test_the_rate_spreads_the_requests(command: Command, server: FakeOpenAI) -> None:
    outcome = command("bench", "serve", "--url", server.url, *SMALL, "--request-rate", "20", "--json")
    assert outcome.objects[0]["duration"] >= 6 / 20
    assert outcome.objects[0]["request_rate"] == 20.0


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(503, error_body("full"), {"Retry-After": "9"}), "http_503"),
        (Reply(429, error_body("quota")), "http_429"),
        (
            Reply(chunks=[(0, completion_chunk("a")), (0, event(error_body("engine died")))]),
            "stream failed: engine died",
        ),
        (Reply(chunks=[(0, completion_chunk("a"))]), "without [DONE]"),
        (Reply(chunks=[(0, completion_chunk("a"))], is_cut=True), "in the middle"),
        (Reply(chunks=[(0, DONE)]), "no choice"),
        (Reply(chunks=[(0, b"data: {no\n\n")]), "no chunk"),
        (Reply(chunks=[(9, DONE)]), "after 0.5 s"),
    ],
)
def test_failures_are_counted_by_reason_and_not_tried_again(command: Command, reply: Reply, reason: str) -> None:
    def fail_every_third(request: Request) -> Reply:
        num_seen = len(running.bodies)
        return reply if num_seen in (3, 6) else complete(request)

    with FakeOpenAI(completions=fail_every_third) as running:
        outcome = command("bench", "serve", "--url", running.url, *SMALL, "--timeout", "0.5", "--json")

    (result,) = outcome.objects
    assert (outcome.code, result["completed"], result["failed"]) == (0, 4, 2)
    assert list(result["failures"].values()) == [2]
    assert reason in next(iter(result["failures"]))
    assert "2 of 6 requests failed" in outcome.err
    assert len(running.bodies) == 7


def test_when_nothing_succeeds_the_command_fails(command: Command, server: FakeOpenAI) -> None:
    server.handlers["/v1/completions"] = lambda request: (
        complete(request) if len(request.body["prompt"]) == 1 else Reply(503, error_body("full"))
    )
    outcome = command("bench", "serve", "--url", server.url, *SMALL)
    assert outcome.code == 1
    assert "Failed requests:                         6" in outcome.out


def test_a_first_request_that_fails_ends_the_test(command: Command, server: FakeOpenAI) -> None:
    server.handlers["/v1/chat/completions"] = lambda _: Reply(400, error_body("no such field"))
    outcome = command("bench", "serve", "--url", server.url, "--backend", "openai-chat")
    assert outcome.code == 1
    assert "no such field" in outcome.err
    assert len(server.bodies) == 1


def test_without_usage_chunks_are_counted_and_that_is_said(command: Command) -> None:
    def silent(request: Request) -> Reply:
        return Reply(chunks=[*[(0, completion_chunk("t"))] * request.body["max_tokens"], (0, DONE)])

    with FakeOpenAI(completions=silent) as running:
        outcome = command("bench", "serve", "--url", running.url, *SMALL, "--json")
    assert outcome.objects[0]["total_output_tokens"] == 30
    assert "did not say how many tokens" in outcome.err


def test_the_saved_result_holds_the_details_of_each_request(
    command: Command, server: FakeOpenAI, tmp_path: Path
) -> None:
    file = tmp_path / "out.json"
    outcome = command("bench", "serve", "--url", server.url, *SMALL, "--save-result", file, "--save-detailed")

    assert "Serving Benchmark Result" in outcome.out
    result = json.loads(file.read_text())
    assert (result["input_lens"], result["output_lens"]) == ([8] * 6, [5] * 6)
    assert (result["generated_texts"], result["errors"]) == (["ttttt"] * 6, [""] * 6)
    assert [len(gaps) for gaps in result["itls"]] == [4] * 6
    assert len(result["ttfts"]) == 6


def test_the_key_travels_in_its_header(command: Command, server: FakeOpenAI, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sesame\n")
    outcome = command("bench", "serve", "--url", server.url, *SMALL, "--api-key-file", tmp_path / "key")
    assert outcome.code == 0
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer sesame"}
    assert "sesame" not in outcome.out + outcome.err


def test_flags_may_come_from_the_environment_and_a_file(
    command: Command, server: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KILOTRON_URL", server.url)
    monkeypatch.setenv("KILOTRON_GOODPUT", "ttft:5000 e2el:9000")
    monkeypatch.setenv("KILOTRON_METRIC_PERCENTILES", "50,99.9")
    (tmp_path / "k.toml").write_text("[bench.serve]\nnum-prompts = 2\nnum-warmups = 0\nrandom-output-len = 2\n")
    outcome = command("bench", "serve", "--config", tmp_path / "k.toml")

    assert outcome.code == 0
    for expected in ("Successful requests:                     2", "Request goodput (req/s):", "P99.9 TTFT (ms):"):
        assert expected in outcome.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("--num-prompts", "0"),
        ("--request-rate", "0"),
        ("--burstiness", "-1"),
        ("--max-concurrency", "0"),
        ("--random-range-ratio", "1"),
        ("--goodput", "itl:5"),
        ("--goodput", "ttft"),
        ("--percentile-metrics", "ttft,latency"),
        ("--metric-percentiles", "101"),
        ("--dataset-name", "custom"),
        ("--dataset-path", "x.jsonl"),
        ("--backend", "openai", "--endpoint", "/v1/chat/completions"),
        ("--save-result", "/nowhere/at/all.json"),
        ("--timeout", "nan"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_sent(
    command: Command, server: FakeOpenAI, arguments: tuple[str, ...]
) -> None:
    outcome = command("bench", "serve", "--url", server.url, *arguments)
    assert outcome.code == 2
    assert arguments[-2] in outcome.err
    assert server.requests == []


def test_neither_command_imports_torch_or_an_http_library() -> None:
    code = (
        "import sys; from kilotron.cli.app import run; run(['bench', 'serve', '--help']); run(['chat', '--help']);"
        "run(['bench', 'serve', '--port', '1']); run(['chat', '--url', 'http://127.0.0.1:1']);"
        "print('LOADED', [name for name in ('torch', 'httpx2', 'http.client', 'starlette') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"
    assert done.stderr.count("start one with: kilotron serve") == 2
