"""Tests of whole sampling calls: against the oracle, as distributions, with faults, after preemption."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kilotron.errors import ConfigError, SamplingParamsError
from kilotron.kernels.interface import KernelBackend
from kilotron.sampling.sampler import Sampler
from kilotron.sampling.sampling_table import SamplingTable
from kilotron.sampling_params import SamplingParams
from unit.sampling.sampling_support import (
    CPU,
    Request,
    admit,
    draw_many,
    log_softmax,
    make_table,
    processed_logits,
    sample,
)

GREEDY = SamplingParams(temperature=0)
DRAWS = 20_000


def random_logits(rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, tokens, generator=torch.Generator().manual_seed(seed)) * 3


def test_greedy_takes_the_greatest_logit_and_of_equals_the_lowest_id(kernels: KernelBackend) -> None:
    logits = random_logits(100, 1000).round()

    result = sample(kernels, logits, [Request(GREEDY)] * 100)

    assert result.token_ids == [row.index(max(row)) for row in logits.tolist()]
    assert result.log_probs == [None] * 100
    assert result.top_n == [None] * 100
    assert result.faults == {}


def test_top_k_of_one_is_greedy_even_among_equals(kernels: KernelBackend) -> None:
    result = sample(kernels, torch.zeros(20, 50), [Request(SamplingParams(top_k=1), seed=seed) for seed in range(20)])

    assert result.token_ids == [0] * 20


def test_no_rows_give_no_tokens(kernels: KernelBackend) -> None:
    result = sample(kernels, torch.empty(0, 50), [])

    assert result == ([], [], [], {})


ORACLE_CASES = {
    "temperature": {"temperature": 0.6},
    "hot": {"temperature": 5.0},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.1},
    "min_p and top_p": {"min_p": 0.03, "top_p": 0.8},
    "all three": {"temperature": 1.5, "top_k": 30, "top_p": 0.9, "min_p": 0.01},
    "allowed": {"allowed_token_ids": [3, 5, 70, 71], "top_p": 0.9},
    "bias": {"logit_bias": {3: 20.0, 4: -100.0}},
    "penalties": {"repetition_penalty": 1.7, "frequency_penalty": 1.5, "presence_penalty": -1.0},
    "negative penalties": {"repetition_penalty": 0.6, "frequency_penalty": -2.0, "top_k": 20},
    "min tokens": {"min_tokens": 10},
    "all": {
        "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.2, "min_tokens": 3,
        "frequency_penalty": 0.3, "presence_penalty": 0.2, "logit_bias": {9: 4.0}, "allowed_token_ids": range(90),
    },
    "greedy with edits": {"temperature": 0, "repetition_penalty": 3.0, "logit_bias": {8: 9.0}},
}  # fmt: skip


@pytest.mark.parametrize("fields", ORACLE_CASES.values(), ids=ORACLE_CASES.keys())
@pytest.mark.parametrize("vocab_size", [100, 3000])
def test_processed_log_probs_are_those_of_the_oracle(
    kernels: KernelBackend, fields: dict[str, object], vocab_size: int
) -> None:
    logits = random_logits(6, vocab_size)
    params = SamplingParams(**fields, return_log_probs=True, top_n_logprobs=1000)
    request = Request(
        params, generated_ids=[5, 6, 5, 8], end_ids=frozenset({0, 9}), bad_word_ids=((11,), (8, 12), (5, 13))
    )

    result = sample(kernels, logits, [request] * 6, mode="processed_logprobs")

    for row in range(6):
        expected = log_softmax(processed_logits(logits[row].numpy(), request))
        listed = result.top_n[row] or {}
        count = min(1000, int(np.isfinite(expected).sum()))
        assert set(listed) - {result.token_ids[row]} <= set(np.argsort(-expected, kind="stable")[: count + 3])
        assert len(listed) in (count, count + 1)
        assert listed == pytest.approx({token: expected[token] for token in listed}, abs=1e-5)
        assert result.log_probs[row] == listed[result.token_ids[row]]


@pytest.mark.parametrize("fields", ORACLE_CASES.values(), ids=ORACLE_CASES.keys())
def test_raw_log_probs_are_those_of_the_model_whatever_the_filters(
    kernels: KernelBackend, fields: dict[str, object]
) -> None:
    logits = random_logits(4, 100)
    request = Request(SamplingParams(**fields, return_log_probs=True, top_n_logprobs=5), generated_ids=[5, 6])

    result = sample(kernels, logits, [request] * 4)

    for row, token in enumerate(result.token_ids):
        expected = log_softmax(logits[row].numpy())
        listed = result.top_n[row] or {}
        assert result.log_probs[row] == pytest.approx(expected[token], abs=1e-5)
        assert list(listed)[:5] == np.argsort(-expected)[:5].tolist()
        assert listed[token] == result.log_probs[row]


def test_log_probs_without_top_n_list_nothing(kernels: KernelBackend) -> None:
    requests = [Request(SamplingParams(return_log_probs=True)), Request(SamplingParams())]

    result = sample(kernels, random_logits(2, 50), requests)

    assert result.log_probs[0] is not None
    assert result.log_probs[1] is None
    assert result.top_n == [None, None]


@pytest.mark.parametrize(
    "fields",
    [{}, {"temperature": 0.5}, {"top_k": 8}, {"top_p": 0.7}, {"min_p": 0.05}, {"top_k": 30, "top_p": 0.8},
     {"temperature": 3.0, "top_p": 0.99}, {"logit_bias": {1: 3.0}, "repetition_penalty": 1.5}],
    ids=str,
)  # fmt: skip
def test_drawn_tokens_have_the_distribution_of_the_oracle(kernels: KernelBackend, fields: dict[str, object]) -> None:
    row = random_logits(1, 200, seed=3)[0] / 1.5
    request = Request(SamplingParams(**fields), seed=17)
    expected = np.exp(log_softmax(processed_logits(row.numpy(), request))) * DRAWS

    counts = np.bincount(draw_many(kernels, row, request, DRAWS), minlength=200)

    assert not counts[expected == 0].any()
    is_common = expected >= 5
    observed = [*counts[is_common], counts[~is_common].sum()]
    wanted = [*expected[is_common], max(expected[~is_common].sum(), 1e-9)]
    statistic = sum((o - w) ** 2 / w for o, w in zip(observed, wanted, strict=True))
    degrees = max(1, int(is_common.sum()) - 1)
    assert statistic < degrees + 4 * (2 * degrees) ** 0.5 + 8  # beyond 99.99 %


def test_seeds_and_positions_decide_the_draw(kernels: KernelBackend) -> None:
    row = random_logits(1, 1000)[0] / 3
    first, again = (draw_many(kernels, row, Request(SamplingParams(), seed=1), 200) for _ in range(2))
    other = draw_many(kernels, row, Request(SamplingParams(), seed=2), 200)

    assert first.tolist() == again.tolist()
    assert (first == other).mean() < 0.1
    assert len(set(first.tolist())) > 50


def test_vanishing_temperature_is_greedy_without_overflow(kernels: KernelBackend) -> None:
    logits = random_logits(30, 500) * 1e4

    result = sample(kernels, logits, [Request(SamplingParams(temperature=1e-300), seed=seed) for seed in range(30)])

    assert result.token_ids == logits.argmax(1).tolist()


FAULTY_ROWS = {"NaN": (5, math.nan), "+Inf": (70, math.inf), "all -Inf": (slice(None), -math.inf)}
FAULTY_PARAMS = [
    GREEDY,
    SamplingParams(),
    SamplingParams(top_k=5, top_p=0.5, min_p=0.1),
    SamplingParams(allowed_token_ids=[1, 2], return_log_probs=True, top_n_logprobs=2),
    SamplingParams(temperature=0, return_log_probs=True),
]


@pytest.mark.parametrize("fault", FAULTY_ROWS.values(), ids=FAULTY_ROWS.keys())
@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs"])
def test_a_faulty_row_fails_alone(kernels: KernelBackend, fault: tuple[object, float], mode: str) -> None:
    requests = [Request(params, seed=seed) for seed, params in enumerate(FAULTY_PARAMS * 2)]
    logits = random_logits(10, 130)
    clean = sample(kernels, logits, requests, mode=mode)
    where, value = fault
    for row in range(5):
        logits[row, where] = value

    result = sample(kernels, logits, requests, mode=mode)

    assert set(result.faults) == set(range(5))
    assert all("not finite" in str(fault) for fault in result.faults.values())
    assert result.log_probs[:5] == [None] * 5
    assert result.top_n[:5] == [None] * 5
    assert [column[5:] for column in result[:3]] == [column[5:] for column in clean[:3]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_may_come_from_inference_mode_or_carry_gradients_and_any_precision(
    kernels: KernelBackend, dtype: torch.dtype
) -> None:
    with torch.inference_mode():
        inferred = random_logits(2, 50).to(dtype)
    trained = random_logits(2, 50).to(dtype).requires_grad_() * 1
    requests = [Request(SamplingParams(temperature=2.0, return_log_probs=True), seed=4)] * 2
    sampler, positions = Sampler(make_table(requests, 40), kernels), [3, 3]

    assert sampler.sample(inferred, [0, 1], positions) == sampler.sample(trained, [0, 1], positions)


def test_some_impossible_tokens_are_no_fault(kernels: KernelBackend) -> None:
    logits = random_logits(2, 50)
    logits[:, 10:] = -torch.inf

    result = sample(kernels, logits, [Request(GREEDY), Request(SamplingParams(temperature=9.0))])

    assert result.faults == {}
    assert max(result.token_ids) < 10


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_row_with_nothing_left_to_choose_fails_alone_and_says_why(kernels: KernelBackend, temperature: float) -> None:
    params = SamplingParams(temperature=temperature, allowed_token_ids=[4], return_log_probs=True)
    requests = [Request(params, bad_word_ids=((4,),)), Request(params)]

    result = sample(kernels, random_logits(2, 50), requests)

    assert list(result.faults) == [0]
    assert isinstance(result.faults[0], SamplingParamsError)
    assert "no token is left" in str(result.faults[0])
    assert result.token_ids[1] == 4
    assert result.log_probs[0] is None


def test_padding_is_never_sampled_however_likely(kernels: KernelBackend) -> None:
    padded = torch.cat([random_logits(8, 100), torch.full((8, 28), 99.0)], dim=1)
    padded[3, 110] = torch.nan
    fields = [{"temperature": 0}, {"temperature": 100}, {"top_k": 101}, {"top_p": 0.999}] * 2
    requests = [Request(SamplingParams(**field, return_log_probs=True), seed=3) for field in fields]

    result = sample(kernels, padded, requests, vocab_size=100)

    assert result == sample(kernels, padded[:, :100], requests)
    assert result.faults == {}


def test_a_slot_admitted_again_forgets_what_it_held(kernels: KernelBackend) -> None:
    table = make_table([Request(SamplingParams(temperature=0, allowed_token_ids=[7], return_log_probs=True))], 50)
    logits = random_logits(1, 50)
    assert Sampler(table, kernels).sample(logits.clone(), [0], [3]).token_ids == [7]

    admit(table, 0, Request(GREEDY))

    assert Sampler(table, kernels).sample(logits.clone(), [0], [3]) == (logits.argmax(1).tolist(), [None], [None], {})


def continue_text(
    kernels: KernelBackend, table: SamplingTable, slot: int, generated: list[int], until: int
) -> list[int]:
    """Tokens up to `until` of a model whose logits depend on the position only."""
    while len(generated) < until:
        position = 3 + len(generated)
        logits = random_logits(1, 60, seed=position) / 3
        (token,) = Sampler(table, kernels).sample(logits, [slot], [position]).token_ids
        table.record([slot], [token])
        generated = [*generated, token]
    return generated


def test_a_preempted_request_continues_as_if_nothing_had_happened(kernels: KernelBackend) -> None:
    params = SamplingParams(
        temperature=1.2, top_k=30, repetition_penalty=1.3, frequency_penalty=0.5, presence_penalty=0.5, min_tokens=20
    )
    request = Request(params, seed=5, end_ids=frozenset({1, 2}), bad_word_ids=((3, 4), (8,), (5, 6, 7)))
    table = SamplingTable(max_requests=4, vocab_size=60, device=CPU)
    admit(table, 1, request)
    whole = continue_text(kernels, table, 1, [], until=40)

    for stop in (1, 15, 33):
        admit(table, 2, Request(**{**vars(request), "generated_ids": whole[:stop]}))
        assert continue_text(kernels, table, 2, whole[:stop], until=40) == whole


def test_penalties_follow_the_recorded_tokens(kernels: KernelBackend) -> None:
    table = make_table([Request(SamplingParams(temperature=0, presence_penalty=2.0)), Request(GREEDY)], 4)
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.5]]).repeat(2, 1)
    texts = []

    for position in range(3, 6):
        tokens = Sampler(table, kernels).sample(logits.clone(), [0, 1], [position] * 2).token_ids
        table.record([0, 1], tokens)
        texts.append(tokens)

    assert texts == [[1, 1], [2, 1], [3, 1]]


def test_unknown_log_prob_mode_is_refused(kernels: KernelBackend) -> None:
    with pytest.raises(ConfigError, match="raw_logprobs"):
        Sampler(make_table([], 10), kernels, logprobs_mode="logits")


@pytest.mark.parametrize("sizes", [(0, None), (100, 90), (2**19, None)])
def test_impossible_vocabulary_is_refused(sizes: tuple[int, int | None]) -> None:
    with pytest.raises(ConfigError, match="vocab_size"):
        SamplingTable(max_requests=1, vocab_size=sizes[0], padded_vocab_size=sizes[1], device=CPU)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), top_k=st.integers(0, 80), top_p=st.floats(0, 1), min_p=st.floats(0, 1))
def test_only_tokens_that_the_oracle_keeps_are_drawn(
    kernels: KernelBackend, seed: int, top_k: int, top_p: float, min_p: float
) -> None:
    logits = random_logits(8, 70, seed=seed)
    params = SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p)
    # The oracle, in float64, may see a token on the border on the other side.
    wider = SamplingParams(top_k=top_k, top_p=min(1.0, top_p * (1 + 1e-5)), min_p=min_p * (1 - 1e-5))

    result = sample(kernels, logits, [Request(params, seed=row) for row in range(8)])

    for row, token in enumerate(result.token_ids):
        assert np.isfinite(processed_logits(logits[row].numpy(), Request(wider))[token])
