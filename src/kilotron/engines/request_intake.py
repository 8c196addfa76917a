"""RequestIntake: turns a prompt and its parameters into an InferenceRequest. All checks of a request are here, once.

Knows the model's limits as numbers and never imports torch; admission to the queue is the scheduler's.
"""

import copy
import itertools
import operator
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kilotron.engines.encoder_intake import EncoderDecoderPrompt, EncoderLimits, split_prompt
from kilotron.errors import (
    EmptyPromptError,
    InvalidRequestError,
    PromptTooLongError,
    SamplingParamsError,
    TokenOutOfRangeError,
)
from kilotron.inference_request import InferenceRequest, RequestTimings
from kilotron.sampling.random_uniform import derive_seed
from kilotron.sampling_params import SamplingParams
from kilotron.tokenization.line_breaks import newline_after_colon_ids
from kilotron.tokenization.tokenizer import Tokenizer

Prompt = str | Sequence[int] | EncoderDecoderPrompt


class PromptTokenizer(Protocol):
    """What makes ids of prompts: a controller beside a model, a `PlainPromptTokenizer` where there is none."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None where only ids go in."""

    def tokenize_prompt(self, prompt: str, *, add_BOS: bool = False) -> list[int]:  # noqa: N803 - Megatron's spelling
        """Text to ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What a model and its engine allow."""

    vocab_size: int
    max_sequence_length: int
    eos_ids: frozenset[int]
    """The model's own end-of-sequence ids."""
    encoder: EncoderLimits | None = None
    """None for decoder-only models."""


class RequestIntake:
    """Builds requests, numbering them and drawing seeds for those that bring none. Safe from any thread.

    Runs without torch, so that a server's front end can check a request before it goes to an engine elsewhere.
    """

    def __init__(self, prompts: PromptTokenizer, limits: RequestLimits, *, random_seed: int | None = None) -> None:
        self.limits = limits
        self._prompts = prompts
        self._seeds = random.SystemRandom() if random_seed is None else random.Random(random_seed)
        self._ids = itertools.count(1)

    def build(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        timeout_s: float | None = None,
        cache_salt: str = "",
    ) -> InferenceRequest:
        """One request; its `choices` are the n continuations, itself first.

        Args:
            prompt: text or token ids. An encoder-decoder model's encoder reads it; an `EncoderDecoderPrompt` says what
                its decoder begins with besides.
            sampling_params: None takes the defaults. Later changes to the object do not reach the request.
            timeout_s: seconds from now after which it is cancelled.
            cache_salt: requests share cached prefixes only with those of the same salt.

        Raises:
            InvalidRequestError: (or one of its kinds) something is wrong with it; names value and remedy.
        """
        params = _checked_params(sampling_params)
        _check_delivery(timeout_s, cache_salt)
        encoder = self.limits.encoder
        decoder_prompt, encoder_prompt = split_prompt(prompt, encoder, scores_prompt=params.wants_prompt_log_probs)
        encoder_tokens: list[int] = []
        if encoder is None:
            tokens = self._tokens(decoder_prompt, params)
        else:
            encoder_tokens = self._encoder_tokens(encoder_prompt, params, encoder)
            tokens = encoder.decoder_tokens([] if decoder_prompt is None else self._decoder_tokens(decoder_prompt))
        self._check_ids(params)
        now = time.monotonic()
        first = InferenceRequest(
            request_id=self.get_new_request_id(),
            prompt_tokens=tokens,
            sampling_params=params,
            timings=RequestTimings(now),
            prompt=decoder_prompt if isinstance(decoder_prompt, str) else None,
            encoder_prompt=encoder_prompt if isinstance(encoder_prompt, str) else None,
            encoder_tokens=encoder_tokens,
            max_generated=self._max_generated(len(tokens), params),
            seed=params.seed if params.seed is not None else self._seeds.getrandbits(63),
            end_ids=self._end_ids(params),
            bad_word_ids=self._bad_word_ids(params),
            cache_salt=cache_salt,
            deadline=None if timeout_s is None else now + timeout_s,
        )
        first.choices.append(first)
        first.choices += [self._sibling(first, index) for index in range(1, params.n)]
        return first

    def get_new_request_id(self) -> int:
        """An id that no request of this intake has."""
        return next(self._ids)

    def _sibling(self, first: InferenceRequest, index: int) -> InferenceRequest:
        return InferenceRequest(
            request_id=self.get_new_request_id(),
            prompt_tokens=first.prompt_tokens,
            sampling_params=first.sampling_params,
            timings=RequestTimings(first.timings.arrival),
            prompt=first.prompt,
            encoder_prompt=first.encoder_prompt,
            encoder_tokens=first.encoder_tokens,
            max_generated=first.max_generated,
            seed=derive_seed(first.seed, index),
            end_ids=first.end_ids,
            bad_word_ids=first.bad_word_ids,
            cache_salt=first.cache_salt,
            deadline=first.deadline,
            choice_index=index,
            choices=first.choices,
        )

    def _tokens(self, prompt: str | Sequence[int], params: SamplingParams) -> list[int]:
        if isinstance(prompt, str):
            # A controller's own `tokenize_prompt` need not know of add_BOS, and may give a tensor.
            options = {"add_BOS": True} if params.add_BOS else {}
            tokens = self._prompts.tokenize_prompt(prompt, **options)
            if not isinstance(tokens, list):
                tokens = _as_ids(tokens)
        else:
            tokens = _as_ids(prompt)
        if not tokens:
            raise EmptyPromptError("the prompt is empty; give at least one token (add_BOS=True adds one to a text)")
        return self._in_range("prompt token id", tokens)

    def _encoder_tokens(self, prompt: str | Sequence[int], params: SamplingParams, limits: EncoderLimits) -> list[int]:
        """As a prompt is made of a text for other models, its special tokens included."""
        if isinstance(prompt, str):
            tokens = self._prompts.tokenize_prompt(prompt, add_BOS=params.add_BOS)
        else:
            tokens = _as_ids(prompt)
        limits.check_length(tokens)
        return self._in_range("encoder token id", tokens)

    def _decoder_tokens(self, prompt: str | Sequence[int]) -> list[int]:
        """A decoder's beginning: no special token must end it."""
        if not isinstance(prompt, str):
            return self._in_range("prompt token id", _as_ids(prompt))
        tokenizer = self._prompts.tokenizer
        if tokenizer is None:
            raise InvalidRequestError("this engine has no tokenizer, so prompts must be token ids")
        return tokenizer.tokenize(prompt, add_special_tokens=False)

    def _in_range(self, what: str, tokens: list[int]) -> list[int]:
        if tokens:
            self._check_range(what, min(tokens))
            self._check_range(what, max(tokens))
        return tokens

    def _max_generated(self, num_prompt: int, params: SamplingParams) -> int:
        longest = self.limits.max_sequence_length
        if num_prompt > longest:
            raise PromptTooLongError(
                f"the prompt has {num_prompt} tokens, but the context length is {longest}; shorten the prompt"
            )
        if params.num_tokens_to_generate is not None:
            wanted = params.num_tokens_to_generate
        elif params.num_tokens_total is not None:
            wanted = params.num_tokens_total - num_prompt
            if wanted < 0:
                raise PromptTooLongError(
                    f"the prompt has {num_prompt} tokens, more than num_tokens_total={params.num_tokens_total}"
                )
        else:
            wanted = longest - num_prompt
            if wanted == 0 and not params.wants_prompt_log_probs:
                raise PromptTooLongError(
                    f"the prompt fills the context length of {longest} tokens, so nothing can be generated"
                )
        if num_prompt + wanted > longest:
            raise PromptTooLongError(
                f"the prompt has {num_prompt} tokens and {wanted} more are asked for, but the context length is "
                f"{longest}; ask for at most {longest - num_prompt} tokens or shorten the prompt"
            )
        return wanted

    def _end_ids(self, params: SamplingParams) -> frozenset[int]:
        own = self.limits.eos_ids
        if params.ignore_eos:
            own = frozenset()
        elif params.termination_id is not None:
            own = frozenset(() if params.termination_id == -1 else (params.termination_id,))
        return own | frozenset(params.stop_token_ids)

    def _bad_word_ids(self, params: SamplingParams) -> tuple[tuple[int, ...], ...]:
        """Each bad word as it is spelled at the start of a text and after a blank."""
        tokenizer = self._prompts.tokenizer
        if not params.bad_words and not params.prevent_newline_after_colon:
            return ()
        if tokenizer is None:
            name = "bad_words" if params.bad_words else "prevent_newline_after_colon"
            raise InvalidRequestError(f"{name} needs a tokenizer, and this engine has none")
        spellings = [text for word in params.bad_words for text in (word.lstrip(" "), " " + word.lstrip(" "))]
        ids = {tuple(tokenizer.tokenize(text, add_special_tokens=False)) for text in spellings}
        if params.prevent_newline_after_colon:
            ids |= newline_after_colon_ids(tokenizer)
        return tuple(sorted(ids - {()}))

    def _check_ids(self, params: SamplingParams) -> None:
        if params.stop_words and self._prompts.tokenizer is None:
            raise InvalidRequestError("stop_words need a tokenizer, and this engine has none; use stop_token_ids")
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            ids = getattr(params, name)
            if ids:
                self._check_range(f"{name} entry", max(ids))
        if params.termination_id is not None and params.termination_id >= 0:
            self._check_range("termination_id", params.termination_id)

    def _check_range(self, what: str, token_id: int) -> None:
        if not 0 <= token_id < self.limits.vocab_size:
            raise TokenOutOfRangeError(
                f"{what} {token_id} is outside the vocabulary (0 to {self.limits.vocab_size - 1})"
            )


def spread_params(
    sampling_params: SamplingParams | Sequence[SamplingParams] | None, prompts: Sequence[Prompt]
) -> list[SamplingParams | None]:
    """One entry per prompt.

    Raises:
        InvalidRequestError: the prompts are a text, whose letters nobody means.
        SamplingParamsError: they are neither one for all nor one for each.
    """
    if isinstance(prompts, str):
        raise InvalidRequestError(f"prompts must be a list, not the text {prompts[:40]!r}; put it in a list")
    num_prompts = len(prompts)
    if sampling_params is None or isinstance(sampling_params, SamplingParams):
        return [sampling_params] * num_prompts
    if not isinstance(sampling_params, Sequence) or isinstance(sampling_params, str | bytes):
        raise SamplingParamsError(
            f"sampling_params must be SamplingParams or a list of them, not {type(sampling_params).__name__}"
        )
    params: list[SamplingParams | None] = list(sampling_params)
    if len(params) != num_prompts:
        raise SamplingParamsError(
            f"{len(params)} sampling params for {num_prompts} prompts; give one for all or one each"
        )
    return params


def _checked_params(params: Any) -> SamplingParams:
    if params is None:
        return SamplingParams()
    if not isinstance(params, SamplingParams):
        raise InvalidRequestError(f"sampling_params must be SamplingParams, not {type(params).__name__}")
    # Fields may have been assigned since construction; the copy is what is checked and kept.
    copied = copy.copy(params)
    copied.add_attributes({})
    return copied


def _check_delivery(timeout_s: Any, cache_salt: Any) -> None:
    """What is no sampling parameter: how long it may take and whose cache it shares."""
    is_number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if timeout_s is not None and not (is_number and timeout_s > 0):
        raise InvalidRequestError(f"timeout_s must be a number above 0, not {timeout_s!r}")
    if not isinstance(cache_salt, str):
        raise InvalidRequestError(f"cache_salt must be a text, not {cache_salt!r}")


def _as_ids(prompt: Any) -> list[int]:
    """Plain ints; anything that counts as an integer (numpy's, torch's) is accepted."""
    if isinstance(prompt, bytes | bytearray | memoryview | dict | set) or not hasattr(prompt, "__iter__"):
        raise InvalidRequestError(f"a prompt must be a text or a list of token ids, not {type(prompt).__name__}")
    ids = []
    for token_id in prompt:
        if isinstance(token_id, bool):
            raise InvalidRequestError(f"token ids must be whole numbers, not {token_id!r}")
        try:
            ids.append(operator.index(token_id))
        except TypeError:
            raise InvalidRequestError(f"token ids must be whole numbers, not {token_id!r}") from None
    return ids
