"""Tests of where prompts come from."""

import io
from pathlib import Path

import pytest

from kilotron.cli.failures import UsageError
from kilotron.cli.options import PromptOptions
from kilotron.cli.prompt_sources import read_prompts


def read(**options: object) -> list[object]:
    return [source.prompt for source in read_prompts(PromptOptions(**options), command="generate")]


def test_all_sources_add_up_in_a_fixed_order(tmp_path: Path) -> None:
    file = tmp_path / "more.txt"
    file.write_text("third\n\nfourth\r\n")

    assert read(prompt_file=file, prompt_ids=("[1, 2]",), prompt=("first",)) == ["first", [1, 2], "third", "fourth"]


def test_a_whole_file_is_one_prompt(tmp_path: Path) -> None:
    file = tmp_path / "story.txt"
    file.write_text("one\n\ntwo\n")

    assert read(prompt_file=file, whole_file=True) == ["one\n\ntwo\n"]


def test_a_file_through_the_pipe_is_recognised_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"prompt": "a"}\n{"prompt": "b"}'))

    assert read(prompt_file=Path("-")) == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not JSON"),
        ("[1]", "must be a JSON object"),
        ("{}", "one of prompt, prompt_token_ids, messages"),
        ('{"prompt": "a", "messages": []}', "one of"),
        ('{"prompt": [1]}', "prompt_token_ids"),
        ('{"prompt_token_ids": "a"}', "list of whole numbers"),
        ('{"prompt": "a", "max_tokns": 1}', "did you mean 'max_tokens'?"),
        ('{"prompt": "a", "top_p": 2}', "top_p"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(line)

    with pytest.raises(UsageError, match=r"prompts\.jsonl line 1") as caught:
        read(prompt_file=file)

    assert message in str(caught.value)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "empty.txt"
    file.write_text(content)

    with pytest.raises(UsageError, match="no prompt"):
        read(prompt_file=file)


def test_an_empty_pipe_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))

    with pytest.raises(UsageError, match="standard input is empty"):
        read()


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00")

    for file in (tmp_path / "nowhere.txt", binary):
        with pytest.raises(UsageError, match="--prompt-file"):
            read(prompt_file=file)
