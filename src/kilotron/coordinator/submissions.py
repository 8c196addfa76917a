"""A request on its way to an engine and its output on the way back: InferenceRequest <-> Submission, Output, Finish.

The only place that knows both the engine's values and those of the wire. Imports no torch.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import msgspec

from kilotron.coordinator.request_errors import from_wire, to_wire
from kilotron.coordinator.wire import Beam, EngineFacts, Finish, Output, Submission
from kilotron.engines.encoder_intake import EncoderLimits
from kilotron.engines.request_intake import RequestLimits
from kilotron.errors import InvalidRequestError, TokenOutOfRangeError
from kilotron.inference_request import BeamResult, InferenceRequest, RequestTimings, Status
from kilotron.sampling.random_uniform import derive_seed
from kilotron.sampling_params import SamplingParams
from kilotron.scheduling.cross_blocks import CrossBlocks
from kilotron.scheduling.prefix_cache import chain_root, chain_value
from kilotron.scheduling.step_planner import SchedulerLimits
from kilotron.text_generation_controllers.stream_item import StreamItem

_FINAL_STATUS = {"error": Status.FAILED, "abort": Status.CANCELLED, "deadline": Status.CANCELLED}

# What a field of SamplingParams holds when it was not given.
_DEFAULTS = {field.name: getattr(SamplingParams(), field.name) for field in fields(SamplingParams)}
_MOST_ROUTING_BLOCKS = 256
# More tokens than any request has: nobody reads before the end.
_WHOLE = 1 << 31


def to_submission(
    request: InferenceRequest,
    request_id: str,
    *,
    block_size: int = 0,
    owner: str = "",
    idempotency_key: str = "",
) -> Submission:
    """A checked request, first of its continuations, as it travels.

    Args:
        request: as `RequestIntake.build` made it.
        request_id: 32 hex digits.
        block_size: of the replicas' caches; 0 leaves the hashes for prefix routing out.
        owner: whose quota it counts against.
        idempotency_key: a second request with the same one is refused while the first is under way.
    """
    now = time.monotonic()
    return Submission(
        request_id=request_id,
        prompt_tokens=request.prompt_tokens,
        encoder_tokens=request.encoder_tokens,
        params=params_to_wire(request.sampling_params),
        max_generated=request.max_generated,
        seed=request.seed,
        end_ids=sorted(request.end_ids),
        bad_word_ids=[list(ids) for ids in request.bad_word_ids],
        cache_salt=request.cache_salt,
        timeout_s=None if request.deadline is None else max(request.deadline - now, 0.0),
        block_hashes=_routing_hashes(request, block_size) if block_size else [],
        owner=owner,
        idempotency_key=idempotency_key,
    )


def to_request(submission: Submission, first_id: int, vocab_size: int) -> InferenceRequest:
    """The request again, for an engine; continuation `i` gets the id `first_id + i`.

    Raises:
        InvalidRequestError: it is not as a front end makes them; a token id could else reach past a table's end.
    """
    params = SamplingParams.from_dict(submission.params)
    if not params.streaming:
        params.streaming_interval = _WHOLE
    if not submission.prompt_tokens:
        raise InvalidRequestError("a submission without prompt tokens")
    inputs = (submission.prompt_tokens, submission.encoder_tokens)
    for token_ids in (*inputs, submission.end_ids, *submission.bad_word_ids):
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
            raise TokenOutOfRangeError(f"a submission with token ids outside the vocabulary of {vocab_size}")
    now = time.monotonic()
    choices: list[InferenceRequest] = []
    for index in range(params.n):
        choices.append(
            InferenceRequest(
                request_id=first_id + index,
                prompt_tokens=submission.prompt_tokens,
                encoder_tokens=submission.encoder_tokens,
                sampling_params=params,
                timings=RequestTimings(now),
                max_generated=submission.max_generated,
                seed=submission.seed if index == 0 else derive_seed(submission.seed, index),
                end_ids=frozenset(submission.end_ids),
                bad_word_ids=tuple(tuple(ids) for ids in submission.bad_word_ids),
                cache_salt=submission.cache_salt,
                deadline=None if submission.timeout_s is None else now + submission.timeout_s,
                choice_index=index,
                choices=choices,
            )
        )
    return choices[0]


def to_output(request_id: str, request: InferenceRequest, item: StreamItem) -> Output:
    """A piece of one continuation's output."""
    num_new = len(item.token_ids)
    return Output(
        request_id=request_id,
        choice=request.choice_index,
        offset=len(request.generated_tokens) - num_new,
        text=item.text,
        token_ids=list(item.token_ids),
        log_probs=None if item.log_probs is None else list(item.log_probs),
        top_n=None if item.top_n_ids is None else list(item.top_n_ids),
        finish=None if item.finish_reason is None else _finish_of(request),
    )


def join_outputs(earlier: Output, later: Output) -> Output:
    """Two neighbouring pieces of one continuation as one."""
    return Output(
        request_id=earlier.request_id,
        choice=earlier.choice,
        offset=earlier.offset,
        text=earlier.text + later.text,
        token_ids=earlier.token_ids + later.token_ids,
        log_probs=None if earlier.log_probs is None else earlier.log_probs + (later.log_probs or []),
        top_n=None if earlier.top_n is None else earlier.top_n + (later.top_n or []),
        finish=later.finish,
    )


def beams_as_choices(output: Output) -> list[Output]:
    """The whole output of a beam search as if each beam were a continuation of its own; any other is left as it is."""
    finish = output.finish
    if finish is None or not finish.beams:
        return [output]
    return [
        Output(
            request_id=output.request_id,
            choice=index,
            offset=0,
            text=beam.text,
            token_ids=beam.token_ids,
            log_probs=None if output.log_probs is None else beam.log_probs,
            finish=msgspec.structs.replace(
                finish,
                reason=beam.finish_reason,
                stop_reason=finish.stop_reason if index == 0 else None,
                num_generated_tokens=len(beam.token_ids),
                beams=[beam],
            ),
        )
        for index, beam in enumerate(finish.beams)
    ]


def take_in(request: InferenceRequest, output: Output) -> None:
    """Adds a piece of output to the caller's side of the request it belongs to; `request` is that continuation."""
    now = time.monotonic()
    if output.token_ids and request.timings.first_token is None:
        request.timings.first_token = now
    request.generated_tokens += output.token_ids
    request.generated_text += output.text
    if output.log_probs is not None:
        request.generated_log_probs = (request.generated_log_probs or []) + output.log_probs
    if output.top_n is not None:
        request.generated_top_n_ids = (request.generated_top_n_ids or []) + output.top_n
    finish = output.finish
    if finish is None:
        request.status = Status.ACTIVE_AND_GENERATING_TOKENS
        return
    request.finish_reason, request.stop_reason = finish.reason, finish.stop_reason
    request.error = None if finish.error is None else from_wire(finish.error)
    request.num_cached_tokens, request.num_preemptions = finish.num_cached_tokens, finish.num_preemptions
    request.prompt_log_probs, request.prompt_top_n_ids = finish.prompt_log_probs, finish.prompt_top_n
    request.beams = [BeamResult(*msgspec.structs.astuple(beam)) for beam in finish.beams]
    request.timings.admitted = None if finish.queue_s is None else request.timings.arrival + finish.queue_s
    request.timings.finished = now
    request.status = _FINAL_STATUS.get(finish.reason, Status.COMPLETED)


def params_to_wire(params: SamplingParams) -> dict[str, Any]:
    """The fields that are not at their default."""
    values = {name: getattr(params, name) for name in _DEFAULTS}
    return {name: _plain(value) for name, value in values.items() if value != _DEFAULTS[name]}


def _routing_hashes(request: InferenceRequest, block_size: int) -> list[bytes]:
    """What a replica should have cached for the request: its prompt's beginning, or its encoder's output."""
    if request.encoder_tokens:
        chains = CrossBlocks(request.cache_salt, request.encoder_tokens, block_size).chains[1:]
        return chains[:_MOST_ROUTING_BLOCKS]
    return block_hashes(request.prompt_tokens, request.cache_salt, block_size)


def block_hashes(token_ids: Sequence[int], cache_salt: str, block_size: int) -> list[bytes]:
    """Chain values of the full blocks at the start of a prompt, as an engine's prefix cache names them; the first
    few hundred are enough to route by."""
    chain = chain_root(cache_salt)
    hashes = []
    for start in range(0, min(len(token_ids) // block_size, _MOST_ROUTING_BLOCKS) * block_size, block_size):
        chain = chain_value(chain, token_ids[start : start + block_size])
        hashes.append(chain)
    return hashes


def request_limits_of(facts: EngineFacts) -> RequestLimits:
    """What the replica's model allows, for `RequestIntake` in a front end."""
    encoder = None
    if facts.max_encoder_length:
        encoder = EncoderLimits(
            max_encoder_length=facts.max_encoder_length,
            decoder_start_token_id=facts.decoder_start_token_id,
            has_fixed_start=facts.has_fixed_decoder_start,
        )
    return RequestLimits(
        vocab_size=facts.vocab_size,
        max_sequence_length=facts.max_sequence_length,
        eos_ids=frozenset(facts.eos_ids),
        encoder=encoder,
    )


def limits_of(facts: EngineFacts) -> SchedulerLimits:
    """The replica's limits, for `check_capacity` in a front end."""
    return SchedulerLimits(
        block_size=facts.block_size,
        max_requests=facts.max_requests,
        max_tokens=facts.max_tokens,
        max_logits_tokens=facts.max_logits_tokens,
        max_waiting_requests=1,
        aging_steps=1,
        enable_prefix_caching=facts.enable_prefix_caching,
        enable_chunked_prefill=facts.enable_chunked_prefill,
    )


def _finish_of(request: InferenceRequest) -> Finish:
    timings = request.timings
    return Finish(
        reason=request.finish_reason or "error",
        stop_reason=request.stop_reason,
        error=None if request.error is None else to_wire(request.error),
        num_prompt_tokens=len(request.prompt_tokens) + len(request.encoder_tokens),
        num_generated_tokens=len(request.generated_tokens),
        num_cached_tokens=request.num_cached_tokens,
        num_preemptions=request.num_preemptions,
        prompt_log_probs=request.prompt_log_probs,
        prompt_top_n=request.prompt_top_n_ids,
        queue_s=timings.queue_s,
        ttft_s=timings.ttft_s,
        latency_s=timings.latency_s,
        beams=[
            Beam(
                token_ids=beam.token_ids,
                text=beam.text,
                score=beam.score,
                log_probs=beam.log_probs,
                cumulative_log_prob=beam.cumulative_log_prob,
                finish_reason=beam.finish_reason,
            )
            for beam in request.beams
        ],
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value
