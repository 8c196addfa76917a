"""The request fields that /v1/completions and /v1/chat/completions share, and how they become SamplingParams."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from kilotron.coordinator.wire import EngineFacts
from kilotron.sampling_params import SamplingParams
from kilotron.text_generation_server.beam_fields import BeamFields
from kilotron.text_generation_server.http_errors import HttpError

MAX_LOGPROBS = 20
NO_STREAMING_INTERVAL = 2**31
"""Tokens between two pieces of output when all of it shall come in one."""

TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
StopText = Annotated[str, Meta(min_length=1, max_length=256)]
NumLogprobs = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What else a stream carries."""

    include_usage: bool | None = None
    """A last chunk with empty `choices` and the usage."""
    continuous_usage_stats: bool | None = None
    """The usage so far in every chunk."""
    include_obfuscation: bool | None = None
    """Accepted without effect."""


class SamplingFields(BeamFields, kw_only=True, forbid_unknown_fields=True):
    """Null always means "not given"; what is not given takes the checkpoint's recommendation, if it has one."""

    model: Annotated[str, Meta(max_length=256)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1_000_000)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=4)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=128)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.001, le=100)] | None = None
    logit_bias: Annotated[dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)] | None = None
    max_tokens: Count | None = None
    min_tokens: Count | None = None
    prompt_logprobs: NumLogprobs | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stream_interval: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    allowed_token_ids: Annotated[list[TokenId], Meta(min_length=1, max_length=100_000)] | None = None
    bad_words: Annotated[list[StopText], Meta(max_length=64)] | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    cache_salt: Annotated[str, Meta(max_length=256)] | None = None
    timeout: Annotated[float, Meta(ge=0.001, le=86400)] | None = None
    request_id: Annotated[str, Meta(max_length=128)] | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether the stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def wants_running_usage(self) -> bool:
        """Whether every chunk has the usage so far."""
        return self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)

    def check_together(self) -> None:
        """Checks what concerns several fields.

        Raises:
            HttpError: 400, naming one of them.
        """
        self.check_beams()
        if self.stream_options is not None and not self.stream:
            raise HttpError(400, "stream_options needs stream=true", param="stream_options", code="invalid_value")
        if self.max_tokens is not None and (self.min_tokens or 0) > self.max_tokens:
            raise HttpError(
                400,
                f"min_tokens={self.min_tokens} exceeds max_tokens={self.max_tokens}",
                param="min_tokens",
                code="invalid_value",
            )

    def check_ids(self, vocab_size: int) -> None:
        """Checks token ids against the vocabulary.

        Raises:
            HttpError: 400 naming field and id.
        """
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            ids = getattr(self, name)
            if ids and max(ids) >= vocab_size:
                raise HttpError(
                    400,
                    f"{name}: token id {max(ids)} is outside the vocabulary (0 to {vocab_size - 1})",
                    param=name,
                    code="invalid_value",
                )


# Field of a request -> field of SamplingParams.
_SAMPLING_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "n": "n",
    "stop": "stop_words",
    "stop_token_ids": "stop_token_ids",
    "seed": "seed",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repetition_penalty": "repetition_penalty",
    "logit_bias": "logit_bias",
    "max_tokens": "num_tokens_to_generate",
    "min_tokens": "min_tokens",
    "ignore_eos": "ignore_eos",
    "skip_special_tokens": "skip_special_tokens",
    "include_stop_str_in_output": "detokenize_stop_sequence",
    "allowed_token_ids": "allowed_token_ids",
    "bad_words": "bad_words",
    "priority": "priority",
}


def sampling_params(
    fields: SamplingFields, facts: EngineFacts, *, num_logprobs: int | None, has_prompt_scores: bool, is_piecewise: bool
) -> SamplingParams:
    """What the engine is asked for.

    Args:
        fields: checked.
        facts: for the checkpoint's defaults.
        num_logprobs: likeliest tokens wanted at each place, None without log-probabilities.
        has_prompt_scores: those of the prompt's tokens too.
        is_piecewise: the output is wanted as it grows.
    """
    given = {ours: getattr(fields, theirs) for theirs, ours in _SAMPLING_NAMES.items()}
    values: dict[str, Any] = _defaults(facts.default_sampling)
    values |= {name: value for name, value in given.items() if value is not None}
    if num_logprobs is not None or has_prompt_scores:
        values["return_log_probs"] = True
        values["skip_prompt_log_probs"] = not has_prompt_scores
        values["top_n_logprobs"] = max(num_logprobs or 0, fields.prompt_logprobs or 0)
    values |= fields.beam_values
    values["streaming"] = is_piecewise
    values["streaming_interval"] = (fields.stream_interval or 1) if is_piecewise else NO_STREAMING_INTERVAL
    return SamplingParams.from_dict(values)


def _defaults(recommended: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint's. A length it recommends is left out: clients rely on OpenAI's."""
    return {name: value for name, value in recommended.items() if name not in ("num_tokens_to_generate", "streaming")}
