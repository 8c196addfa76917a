"""What is asked of every system: the requests of workloads A-F and the figures that describe how each was served.

Lengths are the same in every repetition, tokens are fresh in each, so that no cache of an earlier one helps.
"""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

# Ids that every model and tokenizer of `model_folders` has, its special tokens left out.
FIRST_TOKEN_ID, LAST_TOKEN_ID = 3, 15_999
LENGTHS_SEED = 1234
MAX_CONCURRENT_REQUESTS = 32
# Lengths of a quick run are divided by this.
QUICK_DIVISOR = 4


class Request(NamedTuple):
    """One prompt and how many tokens must follow it."""

    prompt: list[int]
    num_tokens: int


class Timings(NamedTuple):
    """Per request, in seconds since all were submitted; None where a system cannot say."""

    first: list[float | None]
    last: list[float | None]


class Figure(NamedTuple):
    """One number of a run."""

    name: str
    label: str
    unit: str
    is_rate: bool
    """Higher is better; otherwise lower."""


_FIRST = Figure("first_token_s", "first token", "s", is_rate=False)
_PREFILL = Figure("prefill_tokens_per_s", "prefill", "tokens/s", is_rate=True)
_DECODE = Figure("decode_tokens_per_s", "decode", "tokens/s", is_rate=True)
_OUTPUT = Figure("output_tokens_per_s", "output", "tokens/s", is_rate=True)
_WALL = Figure("wall_s", "whole run", "s", is_rate=False)
_RESIDENT = Figure("peak_rss_gb", "peak memory", "GB", is_rate=False)


@dataclass(frozen=True)
class Workload:
    """A letter, what it stands for, and its figures, the one that counts first."""

    letter: str
    title: str
    figures: tuple[Figure, ...]

    @property
    def is_cold(self) -> bool:
        """A process of its own per run, from its start to the first token."""
        return self.letter == "F"


WORKLOADS = {
    workload.letter: workload
    for workload in (
        Workload("A", "one stream, prompt 128, decode 128", (_DECODE, _FIRST)),
        Workload("B", "prefill of 2,048 tokens, decode 32", (_PREFILL, _FIRST, _DECODE)),
        Workload("C", "32 mixed requests at once, prompts 32-256, outputs 32-128", (_OUTPUT, _WALL)),
        Workload("D", "16 streams, prompt 128, decode 128", (_DECODE, _OUTPUT, _FIRST)),
        Workload("E", "32 requests that share 512 of 544 tokens, outputs 32", (_OUTPUT, _WALL)),
        Workload("F", "command to first token, prompt 128", (_FIRST, _RESIDENT)),
    )
}


def make_requests(letter: str, repetition: int, *, divisor: int = 1) -> list[Request]:
    """The requests of one repetition; a divisor above 1 shortens all lengths."""
    tokens = random.Random(f"{letter}-{repetition}")
    lengths = random.Random(LENGTHS_SEED)

    def ids(length: int) -> list[int]:
        return [tokens.randint(FIRST_TOKEN_ID, LAST_TOKEN_ID) for _ in range(max(1, length // divisor))]

    def request(prompt: list[int], num_tokens: int) -> Request:
        return Request(prompt, max(2, num_tokens // divisor))

    match letter:
        case "A":
            return [request(ids(128), 128)]
        case "B":
            return [request(ids(2048), 32)]
        case "C":
            return [request(ids(lengths.randint(32, 256)), lengths.randint(32, 128)) for _ in range(32)]
        case "D":
            return [request(ids(128), 128) for _ in range(16)]
        case "E":
            shared = ids(512)
            return [request(shared + ids(32), 32) for _ in range(32)]
        case "F":
            return [Request(ids(128), 1)]
    raise KeyError(letter)


def make_warm_up() -> list[Request]:
    """What each system serves before anything is timed."""
    tokens = random.Random("warm-up")
    return [Request([tokens.randint(FIRST_TOKEN_ID, LAST_TOKEN_ID) for _ in range(40)], 8) for _ in range(2)]


def make_figures(requests: Sequence[Request], timings: Timings) -> dict[str, float]:
    """Every figure that follows from when tokens came."""
    last = [_known(moment) for moment in timings.last]
    num_outputs = sum(request.num_tokens for request in requests)
    wall_s = max(last)
    figures = {_WALL.name: wall_s, _OUTPUT.name: num_outputs / wall_s}
    if None in timings.first:
        return figures
    first = [_known(moment) for moment in timings.first]
    all_started = max(first)
    figures[_FIRST.name] = statistics.median(first)
    figures[_PREFILL.name] = sum(len(request.prompt) for request in requests) / all_started
    if wall_s > all_started:
        # Tokens that came before the last request had started are not told apart: only equal requests decode in step.
        figures[_DECODE.name] = (num_outputs - len(requests)) / (wall_s - all_started)
    return figures


def figures_of_cold_start(first_token_s: float, peak_rss_gb: float) -> dict[str, float]:
    """The figures of workload F."""
    return {_FIRST.name: first_token_s, _RESIDENT.name: peak_rss_gb}


def as_json(requests: Sequence[Request]) -> list[dict[str, Any]]:
    """Requests as they go over the pipe."""
    return [request._asdict() for request in requests]


def _known(moment: float | None) -> float:
    if moment is None:
        raise ValueError("a system must say when each request's last token came")
    return moment
