"""Streams over HTTP are exact: put together, their events are the answer that is given whole, whatever is asked for."""

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from service.running_service import RunningService, running
from serving import events_of

pytestmark = pytest.mark.slow

NUM_REQUESTS = 200
TEXTS = [
    "Once upon a time",
    "The cat sat on",
    "Grüße, 世界! 🙂",
    "Lily saw a big",
    "“Hello”, said",
    "e\u0301\u200d👩‍👩‍👧",
]
STOPS = ["e", " the", ".", "th", "ing", "\n", "a little", "é", "🙂", "ll", "\ufffd"]
LOG_PROBS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with running("--num-threads", "1") as service:
        yield service


def draw(source: random.Random) -> dict[str, Any]:
    """Anything that changes how text comes in pieces; hot enough that tokens are broken UTF-8 now and then."""
    ids = [source.randrange(2048) for _ in range(source.randint(1, 40))]
    return {
        "prompt": source.choice([source.choice(TEXTS), ids]),
        "temperature": source.choice([0.0, 0.8, 1.5, 2.0]),
        "top_p": source.choice([0.9, 1.0]),
        "seed": source.randrange(2**32),
        "max_tokens": source.randint(1, 40),
        "min_tokens": source.choice([0, 1]),
        "n": source.choice([1, 1, 2, 3]),
        "stop": source.sample(STOPS, source.randint(0, 4)),
        "include_stop_str_in_output": source.random() < 0.3,
        "skip_special_tokens": source.random() < 0.5,
        "ignore_eos": source.random() < 0.5,
        "logprobs": source.choice([0, 1, 3]),
        "echo": source.random() < 0.2,
        "stream_interval": source.choice([1, 1, 2, 5]),
        "return_token_ids": True,
    }


def joined(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices of a stream's events, put together."""
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        for piece in event["choices"]:
            choice = choices.setdefault(piece["index"], {"text": "", "token_ids": [], "logprobs": []})
            assert "finish_reason" not in choice, "a piece after the last one"
            choice["text"] += piece["text"]
            choice["token_ids"] += piece["token_ids"]
            choice["logprobs"].append(piece["logprobs"])
            if piece["finish_reason"] is not None:
                choice["finish_reason"], choice["stop_reason"] = piece["finish_reason"], piece["stop_reason"]
    for choice in choices.values():
        parts = [part for part in choice["logprobs"] if part is not None]
        choice["logprobs"] = {name: [value for part in parts for value in part[name]] for name in LOG_PROBS}
    return [choices[index] for index in sorted(choices)]


def check(service: RunningService, body: dict[str, Any]) -> None:
    whole = service.ask("POST", "/v1/completions", body)
    assert whole.status == 200, (body, whole.text)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    events = events_of(service.ask("POST", "/v1/completions", body | options).text)

    answer = whole.json
    names = ("text", "token_ids", "logprobs", "finish_reason", "stop_reason")
    expected = [{name: choice[name] for name in names} for choice in answer["choices"]]
    assert joined(events) == expected, body
    usage, streamed = answer["usage"], events[-1]["usage"]
    assert (events[-1]["choices"], _counts(streamed)) == ([], _counts(usage))
    num_prompt = usage["prompt_tokens"]
    assert usage["completion_tokens"] == sum(len(choice["token_ids"]) for choice in expected)
    assert usage["total_tokens"] == num_prompt + usage["completion_tokens"]
    for choice in expected:
        num_scored = len(choice["token_ids"]) + (num_prompt if body["echo"] else 0)
        assert {len(choice["logprobs"][name]) for name in LOG_PROBS} == {num_scored}


def _counts(usage: dict[str, Any]) -> dict[str, Any]:
    """Without the number of cached tokens, which is another one the second time."""
    return {name: value for name, value in usage.items() if isinstance(value, int)}


def test_every_stream_is_the_whole_answer(service: RunningService) -> None:
    source = random.Random(17)
    bodies = [draw(source) for _ in range(NUM_REQUESTS)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda body: check(service, body), bodies))
    service.wait_idle()


def test_every_chat_stream_is_the_whole_answer(service: RunningService) -> None:
    def check_chat(seed: int) -> None:
        message = {"role": "user", "content": TEXTS[seed % len(TEXTS)]}
        body = {"messages": [message], "seed": seed, "max_tokens": 24, "temperature": 1.5, "n": 2, "logprobs": True}
        whole = service.ask("POST", "/v1/chat/completions", body).json
        events = events_of(service.ask("POST", "/v1/chat/completions", body | {"stream": True}).text)
        for choice in whole["choices"]:
            pieces = [piece for event in events for piece in event["choices"] if piece["index"] == choice["index"]]
            assert "".join(piece["delta"].get("content") or "" for piece in pieces) == choice["message"]["content"]
            scores = [score for piece in pieces if piece.get("logprobs") for score in piece["logprobs"]["content"]]
            assert json.dumps(scores) == json.dumps(choice["logprobs"]["content"])
            assert pieces[-1]["finish_reason"] == choice["finish_reason"]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check_chat, range(40)))
