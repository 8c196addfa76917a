"""Every architecture gives the logits that transformers gives, however its tokens are fed to it."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from parity.model_runner import ModelRunner
from parity.tiny_models import CASES, VOCAB_SIZE, ModelCase, make_tiny_model, models_and_kernels

TOLERANCE = 1e-4  # of the largest logit, in float32


class Pair(NamedTuple):
    """A model in transformers and the folder kilotron loads it from."""

    case: ModelCase
    original: PreTrainedModel
    folder: Path
    kernels: str

    def runner(self, dtype: torch.dtype = torch.float32) -> ModelRunner:
        return ModelRunner.load(self.folder, dtype, self.case.max_sequence_length, self.kernels)

    def tokens(self, length: int, seed: int = 0) -> list[int]:
        length = max(min(length, self.case.longest_prompt), self.case.shortest_prompt)
        return torch.randint(3, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed)).tolist()

    def expected(self, tokens: list[int]) -> Tensor:
        """[tokens, vocabulary]"""
        with torch.no_grad():
            return self.original(torch.tensor([tokens])).logits[0]


@pytest.fixture(scope="module", params=models_and_kernels())
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    name, kernels = request.param
    yield Pair(CASES[name], make_tiny_model(name, folder), folder, kernels)
    torch.set_num_threads(threads)


def assert_close(logits: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    error = (logits - expected).abs().max() / expected.abs().max()
    assert error < tolerance, f"relative error {error:.2e}"


def test_a_prompt_in_one_step_gives_the_logits_of_transformers(pair: Pair) -> None:
    tokens = pair.tokens(40)
    assert_close(pair.runner().step({0: tokens})[0], pair.expected(tokens))


def test_a_prompt_in_uneven_chunks_gives_the_logits_of_transformers(pair: Pair) -> None:
    tokens = pair.tokens(40)
    assert_close(pair.runner().run_in_chunks(0, tokens, [7, 1, 16, 3]), pair.expected(tokens))


def test_decoding_token_by_token_gives_the_logits_of_transformers(pair: Pair) -> None:
    tokens = pair.tokens(36)
    assert_close(pair.runner().run_in_chunks(0, tokens, [1]), pair.expected(tokens))


def test_rows_of_one_batch_give_the_logits_of_transformers(pair: Pair) -> None:
    runner, rows = pair.runner(), {number: pair.tokens(9 * number + 5, seed=number) for number in range(4)}
    runner.step({number: tokens[: number + 1] for number, tokens in rows.items()})
    rest = runner.step({number: tokens[number + 1 :] for number, tokens in rows.items()})
    for logits, (number, tokens) in zip(rest, rows.items(), strict=True):
        assert_close(logits, pair.expected(tokens)[number + 1 :])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.06), (torch.float16, 0.01)])
def test_half_precision_stays_near_float32(pair: Pair, dtype: torch.dtype, tolerance: float) -> None:
    tokens = pair.tokens(24)
    logits, expected = pair.runner(dtype).step({0: tokens})[0], pair.expected(tokens)
    assert logits.dtype == torch.float32
    # The median, because a rounded router may send a token to another expert, which changes that token's logits a lot.
    assert (logits - expected).abs().median() < tolerance * expected.std()


def test_dynamic_rope_beyond_the_original_length_equals_cached_decoding_in_transformers(tmp_path: Path) -> None:
    original = make_tiny_model("llama-dynamic-rope", tmp_path)
    tokens = torch.randint(3, VOCAB_SIZE, (70,), generator=torch.Generator().manual_seed(5)).tolist()
    expected, cache = [], None
    with torch.no_grad():
        for start, stop in [(0, 30), *((i, i + 1) for i in range(30, 70))]:
            output = original(torch.tensor([tokens[start:stop]]), past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            expected.append(output.logits[0])
    logits = ModelRunner.load(tmp_path, kernels="auto").run_in_chunks(0, tokens, [30, 1, 13])
    assert_close(logits, torch.cat(expected))
