"""Tests of `kilotron chat --url` against a scripted server."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kilotron.cli.remote.server_address import server_address
from kilotron.cli.remote.server_error import ServerError
from kilotron.cli.remote.server_session import ServerSession
from kilotron.cli.remote_answers import RemoteAnswers
from unit.cli.conftest import Command
from unit.cli.fake_openai import DONE, FakeOpenAI, Reply, Request, chat_chunk, error_body, event, usage_chunk

USER = [{"role": "user", "content": "hi"}]


def never() -> bool:
    return False


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KILOTRON_API_KEY", "OPENAI_API_KEY", "KILOTRON_URL"):
        monkeypatch.delenv(name, raising=False)


def say(*texts: str, delay_s: float = 0.0) -> Reply:
    chunks = [(delay_s, b": keep-alive\n\n"), *((delay_s, chat_chunk(text)) for text in texts)]
    return Reply(chunks=[*chunks, (0, chat_chunk("", "stop")), (0, usage_chunk(5, len(texts))), (0, DONE)])


def repeat_last(request: Request) -> Reply:
    return say("You said: ", request.body["messages"][-1]["content"])


@pytest.fixture
def server() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(chat__completions=repeat_last) as running:
        yield running


def test_each_line_is_answered_by_the_server(command: Command, server: FakeOpenAI) -> None:
    outcome = command("chat", "--url", server.url, "--max-tokens", "7", "--stop", "X", stdin="hello\nagain\n")

    assert (outcome.code, outcome.out, outcome.err) == (0, "You said: hello\nYou said: again\n", "")
    assert server.bodies[0] == {
        "model": "fake-1",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 7,
        "stop": ["X"],
    }
    assert [message["role"] for message in server.bodies[1]["messages"]] == ["user", "assistant", "user"]


def test_a_model_that_is_named_is_not_asked_for(command: Command, server: FakeOpenAI) -> None:
    assert command("chat", "other", "--url", f"{server.url}/v1", stdin="hi\n").code == 0
    assert [request.path for request in server.requests] == ["/v1/chat/completions"]
    assert server.bodies[0]["model"] == "other"


def test_the_commands_work_and_say_what_only_the_server_knows(
    command: Command, server: FakeOpenAI, tmp_path: Path
) -> None:
    file = tmp_path / "talk.json"
    lines = f"/help\n/set top-p 0.5\nhello\n/stats\n/save {file}\n/set add_BOS true\n"
    outcome = command("chat", "--url", server.url, "--system", "Be brief.", stdin=lines)

    for expected in ("/save FILE", "top_p=0.5, the rest as the server says", "5 tokens, 1 of them cached", "/metrics"):
        assert expected in outcome.err
    assert "add_BOS" in outcome.err.splitlines()[-1]
    assert server.bodies[0]["top_p"] == 0.5
    assert json.loads(file.read_text())["messages"][0]["content"] == "Be brief."


def test_options_of_an_engine_are_said_to_have_no_effect(command: Command, server: FakeOpenAI) -> None:
    outcome = command("chat", "--url", server.url, "--dtype", "float32", stdin="hi\n")
    assert outcome.code == 0
    assert "--dtype" in outcome.err


def test_the_key_travels_in_its_header_and_is_never_shown(
    command: Command, server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    outcome = command("chat", "--url", server.url, "--verbose", stdin="hi\n/stats\n")
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer sesame"}
    assert "sesame" not in outcome.out + outcome.err


def test_without_a_server_the_error_says_how_to_start_one(command: Command) -> None:
    with socket.socket() as taken:  # bound and not listening, so nobody else can take it
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        outcome = command("chat", "--url", url, stdin="hi\n")

    assert outcome.code == 1
    assert f"no server at {url}; start one with: kilotron serve" in outcome.err


def test_a_refused_key_is_told_with_the_remedy(command: Command) -> None:
    refusal = Reply(401, error_body("Incorrect API key", "invalid_api_key"))
    with FakeOpenAI(models=lambda _: refusal) as server:
        outcome = command("chat", "--url", server.url, stdin="hi\n")

    assert outcome.code == 1
    assert "Incorrect API key; set KILOTRON_API_KEY, or give --api-key-file" in outcome.err


def test_a_server_that_loads_is_waited_for_with_one_note(command: Command) -> None:
    loading = Reply(503, error_body("The model is loading: 40 %", "model_loading"), {"Retry-After": "0"})
    replies = [loading, loading]
    with FakeOpenAI(chat__completions=lambda request: replies.pop() if replies else repeat_last(request)) as server:
        outcome = command("chat", "--url", server.url, stdin="hi\n")

    assert (outcome.code, outcome.out) == (0, "You said: hi\n")
    assert outcome.err.count("loading: 40 %; waiting") == 1
    assert len(server.bodies) == 3


def test_a_server_that_never_gets_ready_is_given_up() -> None:
    loading = Reply(503, error_body("loading"), {"Retry-After": "0"})
    with FakeOpenAI(models=lambda _: loading) as server:
        address = server_address(server.url, None)
        with ServerSession(address, loading_s=0.2) as session, pytest.raises(ServerError, match="loading"):
            session.first_model()


def test_an_error_in_the_middle_keeps_what_was_said(command: Command, tmp_path: Path) -> None:
    broken = Reply(chunks=[(0, chat_chunk("Well")), (0, event(error_body("engine died\x1b[31m")))])
    file = tmp_path / "talk.json"
    with FakeOpenAI(chat__completions=lambda _: broken) as server:
        outcome = command("chat", "--url", server.url, stdin=f"hi\n/save {file}\n")

    assert outcome.code == 1
    assert outcome.out == "Well"
    assert "engine died [31m" in outcome.err
    assert [message["content"] for message in json.loads(file.read_text())["messages"]] == ["hi", "Well"]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(chunks=[(0, chat_chunk("We"))]),
        Reply(chunks=[(0, chat_chunk("We"))], is_cut=True),
        Reply(chunks=[(0, b"data: {no json\n\n")]),
        Reply(chunks=[(0, b"data: 7\n\n")]),
    ],
)
def test_a_stream_that_breaks_off_is_an_error(command: Command, reply: Reply) -> None:
    with FakeOpenAI(chat__completions=lambda _: reply) as server:
        outcome = command("chat", "--url", server.url, stdin="hi\n")
    assert outcome.code == 1
    assert "kilotron: error: the server" in outcome.err


def test_the_oldest_turns_are_dropped_when_the_servers_context_is_full(command: Command) -> None:
    def limited(request: Request) -> Reply:
        if len(request.body["messages"]) > 3:
            return Reply(400, error_body("too long", "context_length_exceeded"))
        return repeat_last(request)

    with FakeOpenAI(chat__completions=limited) as server:
        outcome = command("chat", "--url", server.url, stdin="1\n2\n3\n")

    assert outcome.out.endswith("You said: 3\n")
    assert "the oldest 2 messages were dropped" in outcome.err
    assert [message["content"] for message in server.bodies[-1]["messages"]] == ["2", "You said: 2", "3"]


def test_a_message_too_long_for_the_server_is_refused(command: Command) -> None:
    refusal = Reply(400, error_body("This model's maximum context length is 8 tokens"))
    with FakeOpenAI(chat__completions=lambda _: refusal) as server:
        outcome = command("chat", "--url", server.url, stdin="hi\n")
    assert outcome.code == 1
    assert "maximum context length is 8 tokens" in outcome.err


def test_a_stop_before_the_first_word_ends_the_request_at_the_server() -> None:
    endless = Reply(chunks=[(0.05, b": keep-alive\n\n")] * 400)
    with (
        FakeOpenAI(chat__completions=lambda _: endless) as server,
        ServerSession(server_address(server.url, None)) as session,
    ):
        source = RemoteAnswers(session, "fake-1")
        answer = source.open(USER, {}, is_stopped=lambda: bool(server.bodies), keeps_room=False)
        assert list(answer.pieces) == []
        assert server.left_early.wait(10)


def test_leaving_an_answer_early_ends_the_request_at_the_server() -> None:
    endless = Reply(chunks=[(0.02, chat_chunk("x"))] * 1000)
    with (
        FakeOpenAI(chat__completions=lambda _: endless) as server,
        ServerSession(server_address(server.url, None)) as session,
    ):
        answer = RemoteAnswers(session, "fake-1").open(USER, {}, is_stopped=never, keeps_room=False)
        assert next(answer.pieces) == "x"
        answer.pieces.close()
        assert server.left_early.wait(10)


def test_figures_come_from_the_usage_and_the_clock() -> None:
    with (
        FakeOpenAI(chat__completions=lambda _: say("a", "b", "c", delay_s=0.05)) as server,
        ServerSession(server_address(server.url, None)) as session,
    ):
        answer = RemoteAnswers(session, "fake-1").open(USER, {}, is_stopped=never, keeps_room=False)
        assert list(answer.pieces) == ["a", "b", "c"]
    figures = answer.figures()
    assert (figures.prompt_tokens, figures.cached_tokens, figures.generated_tokens) == (5, 1, 3)
    assert figures.first_token_s is not None
    assert figures.first_token_s >= 0.1
    assert figures.tokens_per_s is not None
    assert figures.tokens_per_s <= 20.5
