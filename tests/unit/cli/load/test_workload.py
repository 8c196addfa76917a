"""Tests of the prompts of a load test."""

import json
from pathlib import Path

import pytest

from kilotron.cli.failures import UsageError
from kilotron.cli.load.workload import (
    DEFAULT_OUTPUT_LEN,
    LoadRequest,
    RandomLengths,
    custom_requests,
    random_requests,
    sharegpt_requests,
)

LENGTHS = RandomLengths(input_len=10, output_len=5, range_ratio=0.0)


def test_random_prompts_are_ids_of_the_vocabulary() -> None:
    requests = random_requests(20, LENGTHS, 300, seed=3)
    assert {(len(request.prompt), request.input_len, request.output_len) for request in requests} == {(10, 10, 5)}
    assert all(0 <= token < 300 for request in requests for token in request.prompt)
    assert len({tuple(request.prompt) for request in requests}) == 20
    assert random_requests(20, LENGTHS, 300, seed=3) == requests != random_requests(20, LENGTHS, 300, seed=4)


def test_random_prompts_without_ids_are_words() -> None:
    (request,) = random_requests(1, LENGTHS, None, seed=0)
    assert isinstance(request.prompt, str)
    assert len(request.prompt.split()) == 10


def test_lengths_vary_by_their_share_and_are_never_zero() -> None:
    requests = random_requests(500, RandomLengths(input_len=10, output_len=1, range_ratio=0.5), 9, seed=0)
    assert {request.input_len for request in requests} == set(range(5, 16))
    assert {request.output_len for request in requests} == {1, 2}


def test_a_files_prompts_are_taken_again_when_there_are_too_few(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "one"}\n\n{"prompt": "two", "output_tokens": 7}\n')
    requests = custom_requests(5, file, None, seed=0)
    assert requests[0] == requests[2] == requests[4]
    assert {(request.prompt, request.output_len) for request in requests} == {("one", DEFAULT_OUTPUT_LEN), ("two", 7)}
    assert {request.output_len for request in custom_requests(2, file, 3, seed=0)} == {3}


@pytest.mark.parametrize("line", ["no json", '{"text": "x"}', '{"prompt": ""}', '{"prompt": "x", "output_tokens": 0}'])
def test_a_wrong_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(f'{{"prompt": "x"}}\n{line}\n')
    with pytest.raises(UsageError, match="line 2"):
        custom_requests(1, file, None, seed=0)


def test_conversations_give_their_first_message_and_the_length_of_its_answer(tmp_path: Path) -> None:
    file = tmp_path / "share.json"
    turns = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "x" * 40}]
    file.write_text(json.dumps([{"conversations": turns}, {"conversations": turns[:1]}]))
    assert sharegpt_requests(1, file, None, seed=0) == [LoadRequest("hello", 1, 10)]


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', None])
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "share.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match=r"share\.json"):
        sharegpt_requests(1, file, None, seed=0)
