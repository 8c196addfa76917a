"""Admission: from checked fields to submissions. Everything a client can get wrong about a prompt is found here."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from kilotron.coordinator.submissions import limits_of, to_submission
from kilotron.coordinator.wire import EngineFacts, Submission
from kilotron.engines.encoder_intake import EncoderDecoderPrompt
from kilotron.engines.request_intake import Prompt
from kilotron.errors import EmptyPromptError
from kilotron.sampling_params import SamplingParams
from kilotron.scheduling.capacity import check_capacity, most_generated
from kilotron.text_generation_server.encoder_prompts import begin_decoder, read_encoder_prompt
from kilotron.text_generation_server.http_errors import HttpError
from kilotron.text_generation_server.sampling_fields import SamplingFields
from kilotron.text_generation_server.server_state import ServerState, new_request_id, owner_of
from kilotron.text_generation_server.text_encoding import check_ids, read_ids

_MAX_IDEMPOTENCY_KEY_CHARS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """What an HTTP request says beside its body."""

    owner: str
    timeout_s: float
    idempotency_key: str

    @classmethod
    def of(cls, scope: Mapping[str, Any], state: ServerState, timeout_s: float | None) -> "Caller":
        """Reads the headers.

        Raises:
            HttpError: 400; one of them is malformed.
        """
        headers = dict(scope["headers"])
        limits = [state.config.request_timeout_s]
        if timeout_s is not None:
            limits.append(timeout_s)
        if b"x-request-timeout-ms" in headers:
            limits.append(_milliseconds(headers[b"x-request-timeout-ms"]))
        owner = owner_of(scope)
        key = headers.get(b"idempotency-key", b"").decode("latin-1")
        if len(key) > _MAX_IDEMPOTENCY_KEY_CHARS or not key.isascii() or not key.isprintable():
            message = f"Idempotency-Key must be at most {_MAX_IDEMPOTENCY_KEY_CHARS} printable characters"
            raise HttpError(400, message, code="invalid_value")
        return cls(owner=owner, timeout_s=min(limits), idempotency_key=f"{owner}:{key}" if key else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedPrompt:
    """A prompt on its way."""

    text: str | None
    """None when ids were given."""
    submission: Submission


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """How prompts become requests."""

    params: SamplingParams
    default_max_tokens: int | None
    """Tokens to generate where the client did not say; None: as many as there is room for."""
    add_special_tokens: bool
    truncate_to: int | None = None
    """Keep so many of the last tokens; -1: as many as the context holds."""
    cache_salt: str = ""


async def admit(
    state: ServerState,
    prompts: list[Any],
    options: PromptOptions,
    caller: Caller,
    *,
    path: str = "prompt",
    encoder_prompts: list[Any] | None = None,
) -> list[AdmittedPrompt]:
    """Checks and tokenizes prompts.

    Args:
        state: the server's.
        prompts: texts or lists of ids.
        options: the same for all of them.
        caller: who asks.
        path: the field that they came in.
        encoder_prompts: what an encoder reads, one for each; without it an encoder reads the prompts themselves.

    Raises:
        HttpError: (or a KilotronError) 400; a prompt is empty, too long, or has unknown ids.
    """
    limit = state.config.max_concurrent_per_key
    if caller.owner and len(prompts) > limit:  # waiting would not help, so it is no 429
        message = f"{path} holds {len(prompts)} prompts; a key may have {limit} under way, so send fewer at a time"
        raise HttpError(400, message, param=path, code="invalid_value")
    admitted = []
    for index, prompt in enumerate(prompts):
        place = path if len(prompts) == 1 else f"{path}[{index}]"
        if encoder_prompts is not None or state.facts.max_encoder_length:
            encoder_prompt = None if encoder_prompts is None else encoder_prompts[index]
            admitted.append(await _admit_pair(state, encoder_prompt, prompt, options, caller, index, place))
        else:
            is_cut, special = options.truncate_to is not None, options.add_special_tokens
            ids = await read_ids(state, prompt, place, add_special_tokens=special, is_cut=is_cut)
            admitted.append(
                AdmittedPrompt(
                    text=prompt if isinstance(prompt, str) else None,
                    submission=_submission(state, ids, options, caller, index, place),
                )
            )
        await asyncio.sleep(0)  # others' turn, between the prompts of a large batch
    return admitted


def cache_salt_of(state: ServerState, fields: SamplingFields, owner: str) -> str:
    """Keys do not find each other's prefixes unless the operator allows it."""
    own = "" if state.config.share_prefix_cache_between_keys else owner
    return f"{own}|{fields.cache_salt}" if fields.cache_salt else own


async def _admit_pair(
    state: ServerState,
    encoder_prompt: Any,
    prompt: Any,
    options: PromptOptions,
    caller: Caller,
    index: int,
    place: str,
) -> AdmittedPrompt:
    """For an encoder-decoder model. A prompt alone is what its encoder reads."""
    read = partial(read_encoder_prompt, state, add_special_tokens=options.add_special_tokens)
    if encoder_prompt is None:
        encoder_ids, prompt = await read(prompt, place, truncate_to=options.truncate_to), []
        options = replace(options, truncate_to=None)
    else:
        encoder_ids = await read(encoder_prompt, place.replace("prompt", "encoder_prompt"))
    ids = await begin_decoder(state, prompt, place)
    return AdmittedPrompt(
        text=prompt if isinstance(prompt, str) else None,
        submission=_submission(state, ids, options, caller, index, place, encoder_ids),
    )


def _submission(
    state: ServerState,
    ids: list[int],
    options: PromptOptions,
    caller: Caller,
    index: int,
    place: str,
    encoder_ids: list[int] | None = None,
) -> Submission:
    facts = state.facts
    params = options.params
    if options.truncate_to is not None:
        ids = _truncate(ids, options.truncate_to, facts, params)
    if encoder_ids is None:
        check_ids(state, ids, place)
        prompt: Prompt = ids
    else:
        prompt, ids = EncoderDecoderPrompt(encoder_ids, ids), _with_start(state, ids, place)
    room = facts.max_sequence_length - len(ids)
    if room < (1 if params.num_tokens_to_generate is None else params.num_tokens_to_generate):
        raise _context_error(facts, len(ids), params.num_tokens_to_generate, place)
    request = state.intake.build(prompt, params, timeout_s=caller.timeout_s, cache_salt=options.cache_salt)
    if params.num_tokens_to_generate is None:
        # The end of an encoder's last block stays empty.
        num_blocks = facts.num_blocks - -(-len(request.encoder_tokens) // facts.block_size)
        capacity = most_generated(len(ids), params.beam_width, facts.block_size, num_blocks)
        wanted = room if options.default_max_tokens is None else max(options.default_max_tokens, params.min_tokens)
        request.max_generated = min(room, wanted, max(capacity, 1))
    check_capacity(request, limits_of(facts), facts.num_blocks)
    key = caller.idempotency_key
    return to_submission(
        request,
        new_request_id(),
        block_size=facts.block_size if facts.enable_prefix_caching else 0,
        owner=caller.owner,
        idempotency_key=f"{key}/{index}" if key and index else key,
    )


def _with_start(state: ServerState, ids: list[int], place: str) -> list[int]:
    """All that the decoder of an encoder-decoder model begins with."""
    encoder = state.intake.limits.encoder
    try:
        return ids if encoder is None else encoder.decoder_tokens(ids)
    except EmptyPromptError as error:
        raise HttpError(400, str(error), param=place, code="invalid_value") from None


def _truncate(ids: list[int], wanted: int, facts: EngineFacts, params: SamplingParams) -> list[int]:
    if wanted == -1:
        num_start = int(facts.max_encoder_length > 0 and facts.has_fixed_decoder_start)
        wanted = max(facts.max_sequence_length - num_start - (params.num_tokens_to_generate or 1), 1)
    return ids[-wanted:] if wanted else []


def _context_error(facts: EngineFacts, num_prompt: int, num_wanted: int | None, place: str) -> HttpError:
    longest = facts.max_sequence_length
    if num_wanted is None or num_prompt > longest:
        asked = f"your prompt has {num_prompt} tokens, which leaves no room for an answer"
    else:
        asked = f"you asked for {num_prompt + num_wanted} tokens ({num_prompt} in the prompt, {num_wanted} to generate)"
    message = f"This model's maximum context length is {longest} tokens, but {asked}. Shorten the prompt or the output."
    return HttpError(400, message, param=place, code="context_length_exceeded")


def _milliseconds(value: bytes) -> float:
    text = value.decode("latin-1").strip()
    if not (text.isascii() and text.isdigit() and 0 < len(text) <= 12 and int(text) > 0):
        raise HttpError(400, "X-Request-Timeout-Ms must be a whole number above 0", code="invalid_value")
    return int(text) / 1000
