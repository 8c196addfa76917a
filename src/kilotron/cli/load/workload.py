"""The prompts of a load test, by a seed: random ones, or those of a file. Knows no server."""

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kilotron.cli.failures import UsageError

DEFAULT_OUTPUT_LEN = 256

_LETTERS_PER_TOKEN = 4  # of English text, about
_WORDS = """
the of and to in is that it was for on are with as at be this have from or one had by word but not what all were we
when your can said there use an each which she do how their if will up other about out many then them these so some her
would make like him into time has look two more write go see number no way could people my than first water been call
who oil its now find long down day did get come made may part
""".split()  # each one token in most vocabularies


@dataclass(frozen=True)
class LoadRequest:
    """One prompt, and how much is to follow it."""

    prompt: str | list[int]
    input_len: int
    """Tokens of the prompt, as far as they are known without a tokenizer."""
    output_len: int


@dataclass(frozen=True, kw_only=True)
class RandomLengths:
    """Lengths of random prompts and answers, each uniform within a share of its middle."""

    input_len: int
    output_len: int
    range_ratio: float

    def draw(self, source: random.Random) -> tuple[int, int]:
        """Lengths of one prompt and its answer."""
        return self._draw(source, self.input_len), self._draw(source, self.output_len)

    def _draw(self, source: random.Random, middle: int) -> int:
        low, high = math.floor(middle * (1 - self.range_ratio)), math.ceil(middle * (1 + self.range_ratio))
        return source.randint(max(low, 1), high)


def random_requests(count: int, lengths: RandomLengths, vocab_size: int | None, seed: int) -> list[LoadRequest]:
    """Prompts of random token ids; of random words, about one token each, when `vocab_size` is None."""
    source = random.Random(seed)
    requests = []
    for _ in range(count):
        input_len, output_len = lengths.draw(source)
        prompt = (
            " ".join(source.choices(_WORDS, k=input_len))
            if vocab_size is None
            else [source.randrange(vocab_size) for _ in range(input_len)]
        )
        requests.append(LoadRequest(prompt, input_len, output_len))
    return requests


def custom_requests(count: int, path: Path, output_len: int | None, seed: int) -> list[LoadRequest]:
    """Prompts of a .jsonl file, shuffled, taken again from the start when there are too few.

    Args:
        count: how many.
        path: a JSON object per line, with "prompt", and perhaps "output_tokens".
        output_len: tokens to generate for each; None takes the line's.
        seed: of the shuffling.

    Raises:
        UsageError: the file cannot be used.
    """

    def read(text: str) -> Iterator[LoadRequest]:
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield _custom_request(f"{path} line {number}", _parse(f"{path} line {number}", line), output_len)

    return _from_file(count, path, read, seed)


def sharegpt_requests(count: int, path: Path, output_len: int | None, seed: int) -> list[LoadRequest]:
    """First messages of conversations in ShareGPT's format, as `custom_requests` takes prompts.

    Without `output_len` an answer has as many tokens as that of the file has, at 4 letters per token.

    Raises:
        UsageError: the file cannot be used.
    """

    def read(text: str) -> Iterator[LoadRequest]:
        conversations = _parse(str(path), text)
        for conversation in conversations if isinstance(conversations, list) else ():
            turns = conversation.get("conversations") if isinstance(conversation, Mapping) else None
            if isinstance(turns, list) and len(turns) >= 2:
                prompt, answer = (str(turn.get("value", "")) if isinstance(turn, Mapping) else "" for turn in turns[:2])
                if prompt:
                    yield LoadRequest(prompt, _estimate(prompt), output_len or _estimate(answer))

    return _from_file(count, path, read, seed)


def _from_file(count: int, path: Path, read: Callable[[str], Iterator[LoadRequest]], seed: int) -> list[LoadRequest]:
    try:
        requests = list(read(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--dataset-path {path}: {error}") from error
    if not requests:
        raise UsageError(f"--dataset-path {path} has no prompt in it")
    random.Random(seed).shuffle(requests)
    return [requests[index % len(requests)] for index in range(count)]


def _custom_request(where: str, fields: Any, output_len: int | None) -> LoadRequest:
    prompt = fields.get("prompt") if isinstance(fields, Mapping) else None
    if not isinstance(prompt, str) or not prompt:
        raise UsageError(f'{where} must be a JSON object with a text "prompt"')
    length = output_len or fields.get("output_tokens", DEFAULT_OUTPUT_LEN)
    if not isinstance(length, int) or length < 1:
        raise UsageError(f"{where}: output_tokens must be a whole number of at least 1, not {length!r}")
    return LoadRequest(prompt, _estimate(prompt), length)


def _parse(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where} is not JSON: {error}") from error


def _estimate(text: str) -> int:
    return max(1, len(text) // _LETTERS_PER_TOKEN)
