"""Log-probabilities as OpenAI's clients read them: by the tokens' texts, with their place in the text.

Exact: the floats are the engine's own, and a chosen token stands among the likeliest with the identical float.
"""

from collections.abc import Mapping, Sequence

from kilotron.text_generation_server.response_types import (
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionLogprobs,
    PromptLogprob,
    TopLogprob,
)
from kilotron.tokenization.incremental_detokenizer import IncrementalDetokenizer
from kilotron.tokenization.tokenizer import Tokenizer

TopTokens = Mapping[int, float]


# What OpenAI writes where a token is impossible: JSON has no infinity.
_IMPOSSIBLE = -9999.0


def finite(log_prob: float) -> float:
    """The value, as JSON can hold it."""
    return max(log_prob, _IMPOSSIBLE)


class TokenSpeller:
    """The text of a token in an answer.

    Args:
        tokenizer: None where only ids are known.
        as_ids: write `token_id:5` instead, which is exact where two ids share a text.
    """

    def __init__(self, tokenizer: Tokenizer | None, *, as_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids or tokenizer is None

    def spell(self, token_id: int) -> str:
        """Its text, or its number."""
        if self._as_ids or self._tokenizer is None:
            return f"token_id:{token_id}"
        return self._tokenizer.token_text(token_id)

    def spell_bytes(self, token_id: int) -> list[int] | None:
        """The bytes it stands for; None where only ids are known."""
        return None if self._tokenizer is None else list(self._tokenizer.token_bytes(token_id))

    def by_text(self, top: TopTokens, chosen: int, log_prob: float, num_wanted: int) -> dict[str, float]:
        """The likeliest tokens' texts, likeliest first, and the chosen one; of equal texts the likelier counts."""
        result: dict[str, float] = {}
        for token_id, value in self.likeliest(top, chosen, log_prob, num_wanted):
            text = self.spell(token_id)
            result[text] = max(value, result.get(text, value))
        return result

    def likeliest(self, top: TopTokens, chosen: int, log_prob: float, num_wanted: int) -> list[tuple[int, float]]:
        """The first `num_wanted` of the engine's list and, if it is not among them, the chosen token."""
        entries = list(top.items())[:num_wanted]
        if all(token_id != chosen for token_id, _ in entries):
            entries.append((chosen, log_prob))
        return [(token_id, finite(value)) for token_id, value in entries]


class CompletionScores:
    """Builds the four lists of /v1/completions for one continuation, piece by piece."""

    def __init__(self, speller: TokenSpeller, places: IncrementalDetokenizer | None, num_wanted: int) -> None:
        self._speller = speller
        self._places = places
        self._num_wanted = num_wanted
        self._end = 0

    def take(
        self,
        token_ids: Sequence[int],
        log_probs: Sequence[float | None],
        top_n: Sequence[TopTokens | None] | None,
    ) -> CompletionLogprobs:
        """The lists for the next tokens; None as log-probability is the first token of a prompt, before which nothing
        stands."""
        result = CompletionLogprobs([], [], [], [])
        for index, (token_id, log_prob) in enumerate(zip(token_ids, log_probs, strict=True)):
            result.tokens.append(self._speller.spell(token_id))
            result.token_logprobs.append(None if log_prob is None else finite(log_prob))
            if log_prob is None:
                result.top_logprobs.append(None)
            else:
                top = (top_n[index] if top_n is not None else None) or {}
                result.top_logprobs.append(self._speller.by_text(top, token_id, log_prob, self._num_wanted))
            result.text_offset.append(self._end)
            if self._places is not None:
                self._end += len(self._places.put(token_id))
        return result


def chat_logprobs(
    speller: TokenSpeller,
    token_ids: Sequence[int],
    log_probs: Sequence[float],
    top_n: Sequence[TopTokens] | None,
    num_wanted: int,
) -> ChatLogprobs:
    """The entries of /v1/chat/completions for some tokens."""
    entries = []
    for index, (token_id, log_prob) in enumerate(zip(token_ids, log_probs, strict=True)):
        likely = []
        if num_wanted and top_n is not None:
            likely = [
                TopLogprob(speller.spell(top_id), value, speller.spell_bytes(top_id))
                for top_id, value in speller.likeliest(top_n[index], token_id, log_prob, num_wanted)
            ]
        entries.append(
            ChatTokenLogprob(speller.spell(token_id), finite(log_prob), speller.spell_bytes(token_id), likely)
        )
    return ChatLogprobs(entries)


def prompt_logprobs(
    speller: TokenSpeller,
    prompt_ids: Sequence[int],
    log_probs: Sequence[float],
    top_n: Sequence[TopTokens] | None,
    num_wanted: int,
) -> list[dict[int, PromptLogprob] | None]:
    """vLLM's `prompt_logprobs`: per place of the prompt, id -> entry; null for the first."""
    result: list[dict[int, PromptLogprob] | None] = [None]
    for index, (token_id, log_prob) in enumerate(zip(prompt_ids[1:], log_probs, strict=True)):
        top = top_n[index] if top_n is not None else {}
        ranks = {top_id: rank for rank, top_id in enumerate(list(top)[:num_wanted], 1)}
        result.append(
            {
                top_id: PromptLogprob(value, ranks.get(top_id), speller.spell(top_id))
                for top_id, value in speller.likeliest(top, token_id, log_prob, num_wanted)
            }
        )
    return result
