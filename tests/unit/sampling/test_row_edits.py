"""Tests of sparse edits against transformers' logits processors."""

import pytest
import torch

from kilotron.sampling.row_edits import RowEdits, apply_edits
from kilotron.sampling_params import SamplingParams

transformers = pytest.importorskip("transformers")

VOCAB = 40
PROMPT = [3, 4, 5, 3]
GENERATED = [7, 8, 7, 3]
HISTORY = torch.tensor([PROMPT + GENERATED])


def edit(logits: torch.Tensor, params: SamplingParams, **changes: object) -> torch.Tensor:
    """[1, VOCAB] logits after the edits for the token that follows GENERATED."""
    facts = {"prompt_ids": PROMPT, "generated_ids": GENERATED, "end_ids": frozenset(), "bad_word_ids": ()} | changes
    edits = RowEdits(params, vocab_size=VOCAB, **facts)
    edited = logits.clone()
    apply_edits(edited, [0], [edits], [len(facts["prompt_ids"]) + len(facts["generated_ids"])])
    return edited


def random_logits() -> torch.Tensor:
    return torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("penalty", [0.5, 1.3, 7.0])
def test_repetition_penalty_does_what_transformers_does(penalty: float) -> None:
    logits = random_logits()

    expected = transformers.RepetitionPenaltyLogitsProcessor(penalty)(HISTORY, logits.clone())

    assert torch.equal(edit(logits, SamplingParams(repetition_penalty=penalty)), expected)


def test_bad_words_do_what_transformers_does() -> None:
    logits = random_logits()
    words = [[9], [3, 11], [7, 3, 12], [8, 3, 13], [3, 7, 8, 7, 3, 14], [1] * 20]

    expected = transformers.NoBadWordsLogitsProcessor(words, eos_token_id=None)(HISTORY, logits.clone())
    edited = edit(logits, SamplingParams(), bad_word_ids=words)

    assert torch.equal(edited, expected)
    assert edited[0, [9, 11, 12, 13, 14]].isfinite().tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("min_tokens", [1, 4, 5, 9])
def test_end_ids_are_forbidden_until_min_tokens_as_in_transformers(min_tokens: int) -> None:
    logits = random_logits()
    processor = transformers.MinNewTokensLengthLogitsProcessor(len(PROMPT), min_tokens, [2, 6])

    edited = edit(logits, SamplingParams(min_tokens=min_tokens), end_ids=frozenset({2, 6}))

    assert torch.equal(edited, processor(HISTORY, logits.clone()))
    assert edited[0, 2].isfinite() == (min_tokens <= len(GENERATED))


def test_frequency_and_presence_penalties_count_the_output_only() -> None:
    edited = edit(torch.zeros(1, VOCAB), SamplingParams(frequency_penalty=0.5, presence_penalty=0.25))

    changed = {token: value for token, value in enumerate(edited[0].tolist()) if value}
    assert changed == {7: -1.25, 8: -0.75, 3: -0.75}


def test_recording_tokens_one_by_one_equals_admitting_them_at_once() -> None:
    params = SamplingParams(repetition_penalty=1.2, frequency_penalty=0.7)
    facts = {"end_ids": frozenset[int](), "bad_word_ids": [[5, 6], [6, 7, 8, 9]], "vocab_size": VOCAB}
    tokens = [token % VOCAB for token in range(0, 700, 7)] + [6, 7, 8]
    grown = RowEdits(params, prompt_ids=PROMPT, generated_ids=[], **facts)
    for token in tokens:
        grown.record(token)
    whole = RowEdits(params, prompt_ids=PROMPT, generated_ids=tokens, **facts)
    logits = random_logits().repeat(2, 1)

    apply_edits(logits, [0, 1], [grown, whole], [107, 107])

    assert torch.equal(logits[0], logits[1])
    assert logits[0, 9] == -torch.inf


def test_penalties_grow_past_their_first_allocation() -> None:
    params = SamplingParams(presence_penalty=1.0)
    edits = RowEdits(
        params, prompt_ids=[], generated_ids=range(300), end_ids=frozenset(), bad_word_ids=(), vocab_size=400
    )
    logits = torch.zeros(1, 400)

    apply_edits(logits, [0], [edits], [300])

    assert logits[0].tolist() == [-1.0] * 300 + [0.0] * 100


def test_ids_outside_the_vocabulary_have_no_effect() -> None:
    logits = random_logits()
    params = SamplingParams(
        allowed_token_ids=[*range(VOCAB), 99], logit_bias={VOCAB: 5.0}, min_tokens=9, repetition_penalty=2.0
    )

    edited = edit(
        logits, params, prompt_ids=[-1, 500], generated_ids=[VOCAB], end_ids=frozenset({-1, VOCAB}), bad_word_ids=[[77]]
    )

    assert torch.equal(edited, logits)


def test_rows_without_edits_stay_as_they_are() -> None:
    logits = random_logits().repeat(3, 1)
    before = logits.clone()
    edits = RowEdits(
        SamplingParams(allowed_token_ids=[4], logit_bias={4: 2.0}),
        prompt_ids=PROMPT, generated_ids=[], end_ids=frozenset(), bad_word_ids=(), vocab_size=VOCAB,
    )  # fmt: skip

    apply_edits(logits, [1], [edits], [4])

    assert torch.equal(logits[[0, 2]], before[[0, 2]])
    assert logits[1].isfinite().nonzero().tolist() == [[4]]
    assert logits[1, 4] == before[1, 4] + 2.0
