"""PUT /api: Megatron's older text generation server, with its fields and messages, and honest status codes."""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from kilotron.coordinator.wire import EngineFacts, Output
from kilotron.errors import SamplingParamsError
from kilotron.sampling_params import MAX_BEAM_WIDTH, SamplingParams
from kilotron.text_generation_server.generation_call import GenerationCall
from kilotron.text_generation_server.http_errors import HttpError
from kilotron.text_generation_server.json_body import decode_object
from kilotron.text_generation_server.json_response import json_response
from kilotron.text_generation_server.request_admission import AdmittedPrompt, Caller, PromptOptions, admit
from kilotron.text_generation_server.sampling_fields import NO_STREAMING_INTERVAL
from kilotron.text_generation_server.server_state import ServerState, owner_of
from kilotron.tokenization.prompt_text import tokenize_prompt

_MAX_PROMPTS = 128
_DEFAULT_LENGTH = 64
_MAX_TOP_K = 1000
_MAX_LENGTH = 2**31 - 1
_MAX_LENGTH_PENALTY = 10
_RENAMED = {
    "max_len": "max_len is no longer used.  Replace with tokens_to_generate",
    "sentences": "sentences is no longer used.  Replace with prompts",
}
_SWITCHES = ("logprobs", "add_BOS", "stop_on_double_eol", "stop_on_eol", "prevent_newline_after_colon", "no_log")


class LegacyRequest(msgspec.Struct, kw_only=True):
    """What the description says of a body; the checks are those below, with Megatron's messages."""

    prompts: Annotated[list[str], Meta(min_length=1, max_length=_MAX_PROMPTS)]
    tokens_to_generate: Annotated[int, Meta(ge=0, le=_MAX_LENGTH)] = _DEFAULT_LENGTH
    temperature: Annotated[float, Meta(gt=0, le=100)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=_MAX_TOP_K)] = 0
    top_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    top_p_decay: Annotated[float, Meta(ge=0, le=1)] = 0.0
    top_p_bound: Annotated[float, Meta(ge=0, le=1)] = 0.0
    random_seed: Annotated[int, Meta(ge=-1, le=2**63 - 1)] = -1
    logprobs: bool = False
    add_BOS: bool = False  # noqa: N815 - Megatron's
    stop_on_double_eol: bool = False
    stop_on_eol: bool = False
    prevent_newline_after_colon: bool = False
    beam_width: (
        Annotated[int, Meta(ge=2, le=MAX_BEAM_WIDTH, description="For one prompt; all beams are returned.")] | UnsetType
    ) = UNSET
    length_penalty: Annotated[float, Meta(ge=-_MAX_LENGTH_PENALTY, le=_MAX_LENGTH_PENALTY)] = 1.0
    stop_token: (
        Annotated[int, Meta(ge=0, description="Ends beams instead of the model's own end of text.")] | UnsetType
    ) = UNSET


class LegacyResponse(msgspec.Struct):
    """Per prompt: its text with the continuation, the texts and ids of all tokens, and log-probabilities of all tokens
    but the first."""

    text: list[str]
    segments: list[list[str]]
    tokens: list[list[int]] | UnsetType = UNSET
    logprobs: list[list[float]] | UnsetType = UNSET
    scores: list[float] | UnsetType = UNSET
    """With `beam_width`, one per beam, best first; `text` and `segments` are the beams' then, and there is no more."""


class LegacyEndpoint:
    """The one route."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def generate(self, request: Request) -> Response:
        """Continues prompts."""
        content = await request.body()
        self._state.gate.check()
        body = decode_object(content)
        prompts = _checked_prompts(body)
        params = _checked_params(body, self._state.facts)
        if params.is_beam_search and len(prompts) > 1:
            raise _wrong("prompts", "When doing beam_search, batch size must be 1")
        caller = Caller.of(request.scope, self._state, None)
        options = PromptOptions(
            params=params,
            default_max_tokens=None,
            add_special_tokens=True,
            cache_salt="" if self._state.config.share_prefix_cache_between_keys else owner_of(request.scope),
        )
        if params.add_BOS:
            tokenizer = self._state.tokenizer
            texts = [asyncio.to_thread(tokenize_prompt, tokenizer, prompt, add_BOS=True) for prompt in prompts]
            admitted = await admit(self._state, list(await asyncio.gather(*texts)), options, caller, path="prompts")
        else:
            admitted = await admit(self._state, list(prompts), options, caller, path="prompts")
        async with GenerationCall(self._state.client, [prompt.submission for prompt in admitted]) as call:
            outputs = await call.collect()
        if params.is_beam_search:
            return json_response(self._beam_answer(prompts[0], admitted[0], outputs[0]))
        return json_response(self._answer(prompts, admitted, [choices[0] for choices in outputs], params))

    def _answer(
        self, prompts: list[str], admitted: list[AdmittedPrompt], outputs: list[Output], params: SamplingParams
    ) -> LegacyResponse:
        tokens = [
            prompt.submission.prompt_tokens + output.token_ids for prompt, output in zip(admitted, outputs, strict=True)
        ]
        response = LegacyResponse(
            text=[_whole_text(*one) for one in zip(prompts, admitted, outputs, strict=True)],
            segments=[self._spell(ids) for ids in tokens],
            tokens=tokens,
        )
        if params.return_log_probs:
            response.logprobs = [_all_log_probs(output) for output in outputs]
        return response

    def _beam_answer(self, prompt: str, admitted: AdmittedPrompt, beams: list[Output]) -> LegacyResponse:
        return LegacyResponse(
            text=[_whole_text(prompt, admitted, beam) for beam in beams],
            segments=[self._spell(admitted.submission.prompt_tokens + beam.token_ids) for beam in beams],
            scores=[beam.finish.beams[0].score for beam in beams if beam.finish is not None],
        )

    def _spell(self, token_ids: list[int]) -> list[str]:
        tokenizer = self._state.tokenizer
        return [str(token_id) if tokenizer is None else tokenizer.token_text(token_id) for token_id in token_ids]


def _whole_text(prompt: str, admitted: AdmittedPrompt, output: Output) -> str:
    """The prompt and its continuation; an encoder's text is not continued."""
    return output.text if admitted.submission.encoder_tokens else prompt + output.text


def _all_log_probs(output: Output) -> list[float]:
    finish = output.finish
    of_prompt = finish.prompt_log_probs if finish is not None else None
    return [*(of_prompt or []), *(output.log_probs or [])]


def _checked_prompts(body: Mapping[str, Any]) -> list[str]:
    for name, message in _RENAMED.items():
        if name in body:
            raise _wrong(name, message, code="unsupported_parameter")
    if "prompts" not in body:
        raise _wrong("prompts", "prompts argument required", code="missing_parameter")
    prompts = body["prompts"]
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise _wrong("prompts", "prompts is not a list of strings", code="invalid_type")
    if not prompts:
        raise _wrong("prompts", "prompts is empty")
    if len(prompts) > _MAX_PROMPTS:
        raise _wrong("prompts", f"Maximum number of prompts is {_MAX_PROMPTS}")
    if not all(prompts) and body.get("add_BOS") is not True:
        raise _wrong("prompts", "Empty prompts require add_BOS=true")
    return prompts


def _checked_params(body: Mapping[str, Any], facts: EngineFacts) -> SamplingParams:
    for name in _SWITCHES:
        if not isinstance(body.get(name, False), bool):
            raise _wrong(name, f"{name} must be a boolean value", code="invalid_type")
    num_tokens = _checked_length(body)
    top_k, top_p = _checked_filters(body)
    stop_words = [text for name, text in (("stop_on_double_eol", "\n\n"), ("stop_on_eol", "\n")) if body.get(name)]
    try:
        return SamplingParams(
            temperature=_checked_temperature(body),
            top_k=top_k,
            top_p=top_p,
            top_p_decay=_checked_decay(body, top_p),
            top_p_bound=_checked_bound(body, top_p),
            prevent_newline_after_colon=body.get("prevent_newline_after_colon", False),
            num_tokens_to_generate=num_tokens,
            return_log_probs=body.get("logprobs", False),
            add_BOS=body.get("add_BOS", False),
            seed=_checked_seed(body),
            stop_words=stop_words,
            streaming_interval=NO_STREAMING_INTERVAL,
            **_checked_beams(body, facts),
        )
    except SamplingParamsError as error:
        raise _wrong(None, str(error)) from None


def _checked_length(body: Mapping[str, Any]) -> int:
    num_tokens = body.get("tokens_to_generate", _DEFAULT_LENGTH)
    if type(num_tokens) is not int:
        raise _wrong("tokens_to_generate", "tokens_to_generate must be an integer greater than 0", code="invalid_type")
    if num_tokens < 0:
        raise _wrong("tokens_to_generate", "tokens_to_generate must be an integer greater than or equal to 0")
    if num_tokens > _MAX_LENGTH:
        raise _wrong("tokens_to_generate", f"tokens_to_generate must be an integer of at most {_MAX_LENGTH}")
    if num_tokens == 0 and not body.get("logprobs"):
        raise _wrong("tokens_to_generate", "tokens_to_generate=0 implies logprobs should be True")
    return num_tokens


def _checked_temperature(body: Mapping[str, Any]) -> float:
    temperature = body.get("temperature", 1.0)
    if not _is_number(temperature) or not 0 < temperature <= 100:
        raise _wrong("temperature", "temperature must be a positive number less than or equal to 100.0")
    return float(temperature)


def _checked_filters(body: Mapping[str, Any]) -> tuple[int, float]:
    top_k, top_p = body.get("top_k", 0), body.get("top_p", 0.0)
    if type(top_k) is not int or not 0 <= top_k <= _MAX_TOP_K:
        raise _wrong("top_k", "top_k must be an integer equal to or greater than 0 and less than or equal to 1000")
    if not _is_number(top_p) or not 0 <= top_p <= 1:
        raise _wrong("top_p", "top_p must be a positive float less than or equal to 1.0")
    if top_k and top_p:
        raise _wrong("top_p", "cannot set both top-k and top-p samplings.")
    return top_k, float(top_p)


def _checked_decay(body: Mapping[str, Any], top_p: float) -> float:
    decay = body.get("top_p_decay", 0.0)
    if not _is_number(decay):
        message = "top_p_decay must be a positive float less than or equal to 1.0"
        raise _wrong("top_p_decay", message, code="invalid_type")
    if decay and not top_p:
        raise _wrong("top_p_decay", "top_p_decay cannot be set without top_p")
    if not 0 <= decay <= 1:
        raise _wrong("top_p_decay", "top_p_decay must be less than or equal to 1.0")
    return float(decay)


def _checked_bound(body: Mapping[str, Any], top_p: float) -> float:
    bound = body.get("top_p_bound", 0.0)
    if not _is_number(bound):
        message = "top_p_bound must be a positive float less than or equal to top_p"
        raise _wrong("top_p_bound", message, code="invalid_type")
    if bound and not top_p:
        raise _wrong("top_p_bound", "top_p_bound cannot be set without top_p")
    if not 0 <= bound <= top_p:
        raise _wrong("top_p_bound", "top_p_bound must be greater than 0 and less than top_p")
    return float(bound)


def _checked_seed(body: Mapping[str, Any]) -> int | None:
    seed = body.get("random_seed", -1)
    if type(seed) is not int or not -1 <= seed < 2**63:
        raise _wrong("random_seed", "random_seed must be a positive integer")
    return None if seed == -1 else seed


def _checked_beams(body: Mapping[str, Any], facts: EngineFacts) -> dict[str, Any]:
    """Fields of SamplingParams. As in Megatron, `length_penalty` and `stop_token` are for beams only."""
    stop_token, length_penalty = body.get("stop_token", 0), body.get("length_penalty", 1.0)
    if type(stop_token) is not int or stop_token < 0:
        raise _wrong("stop_token", "stop_token must be an integer", code="invalid_type")
    if not _is_number(length_penalty):
        raise _wrong("length_penalty", "length_penalty must be a float", code="invalid_type")
    if "beam_width" not in body:
        return {}
    width = _checked_width(body, min(MAX_BEAM_WIDTH, facts.max_requests))
    if stop_token >= facts.vocab_size:
        raise _wrong("stop_token", f"stop_token is outside the vocabulary (0 to {facts.vocab_size - 1})")
    if abs(length_penalty) > _MAX_LENGTH_PENALTY:
        limit = _MAX_LENGTH_PENALTY
        raise _wrong("length_penalty", f"length_penalty must be a float from {-limit} to {limit}")
    beams = {"beam_width": width, "num_return_gen": width, "length_penalty": float(length_penalty)}
    return beams | ({"termination_id": stop_token} if "stop_token" in body else {})


def _checked_width(body: Mapping[str, Any], widest: int) -> int:
    width = body["beam_width"]
    if type(width) is not int:
        raise _wrong("beam_width", "beam_width must be integer", code="invalid_type")
    if width < 2:
        raise _wrong("beam_width", "beam_width must be an integer > 1")
    if width > widest:
        raise _wrong("beam_width", f"beam_width must be an integer of at most {widest}")
    for name in ("stop_on_double_eol", "stop_on_eol"):
        if body.get(name):
            raise _wrong(name, f"{name} does not end beams; stop_token does", code="unsupported_parameter")
    if body.get("tokens_to_generate") == 0:
        raise _wrong("tokens_to_generate", "beam_width needs tokens_to_generate above 0")
    return width


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong(param: str | None, message: str, code: str = "invalid_value") -> HttpError:
    return HttpError(400, message, param=param, code=code)
