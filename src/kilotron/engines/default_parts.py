"""What an engine is made of where its builder does not say: limits, intake and a static context."""

from typing import Any

from kilotron.config import InferenceConfig, default_max_tokens
from kilotron.contexts.dynamic_context import DynamicInferenceContext
from kilotron.contexts.static_context import StaticInferenceContext, check_size
from kilotron.engines.encoder_intake import EncoderLimits
from kilotron.engines.request_intake import RequestIntake, RequestLimits
from kilotron.errors import ConfigError
from kilotron.model_inference_wrappers.abstract_model_inference_wrapper import AbstractModelInferenceWrapper
from kilotron.model_inference_wrappers.inference_wrapper_config import InferenceWrapperConfig
from kilotron.scheduling.step_planner import SchedulerLimits
from kilotron.text_generation_controllers.text_generation_controller import TextGenerationController
from kilotron.tokenization.tokenizer import Tokenizer

_DEFAULT_BATCH_SIZE = 8  # Megatron's
# Share of the free memory that a static context takes at most when its length is not given.
_FREE_MEMORY_SHARE = 0.5
_UNLIMITED_LENGTH = 4096
"""Of a model that sets no limit."""


def make_limits(options: InferenceConfig, context: DynamicInferenceContext, max_tokens: int) -> SchedulerLimits:
    """A scheduler's, for a context of this size."""
    return SchedulerLimits(
        block_size=context.shape.block_size,
        max_requests=context.max_requests,
        max_tokens=max_tokens,
        max_logits_tokens=options.max_logits_tokens,
        max_waiting_requests=options.max_waiting_requests,
        aging_steps=options.aging_steps,
        enable_prefix_caching=options.enable_prefix_caching,
        enable_chunked_prefill=options.enable_chunked_prefill,
    )


def default_limits(context: DynamicInferenceContext) -> SchedulerLimits:
    """The same where nobody says anything."""
    max_tokens, _ = default_max_tokens(context.storage.device_type)
    return make_limits(InferenceConfig(), context, max_tokens)


def make_intake(
    controller: TextGenerationController,
    context: DynamicInferenceContext,
    random_seed: int | None = None,
    *,
    eos_ids: frozenset[int] = frozenset(),
) -> RequestIntake:
    """Knows what the controller's model and tokenizer allow. `eos_ids` go before those that the model names."""
    model, tokenizer = controller.inference_wrapped_model, controller.tokenizer
    eos_ids = eos_ids or model.eos_ids
    if not eos_ids and tokenizer is not None and tokenizer.eos_id is not None:
        eos_ids = frozenset((tokenizer.eos_id,))
    limits = RequestLimits(
        vocab_size=model.vocab_size,
        max_sequence_length=context.max_sequence_length,
        eos_ids=eos_ids,
        encoder=_encoder_limits(model, tokenizer, context.max_encoder_length),
    )
    return RequestIntake(controller, limits, random_seed=random_seed)


def _encoder_limits(
    model: AbstractModelInferenceWrapper, tokenizer: Tokenizer | None, max_encoder_length: int
) -> EncoderLimits | None:
    """What a model allows of its encoder's inputs; None where it has no encoder."""
    own = model.encoder_decoder
    if own is None:
        return None
    start = own.decoder_start_token_id
    if start is None and tokenizer is not None:
        start = tokenizer.bos_id
    return EncoderLimits(
        max_encoder_length=max_encoder_length,
        decoder_start_token_id=start,
        has_fixed_start=own.decoder_start_token_id is not None,
    )


def attached_context(
    model: AbstractModelInferenceWrapper,
    max_batch_size: int | None,
    max_sequence_length: int | None,
    buffer_size_gb: float | None,
) -> StaticInferenceContext:
    """The static context that the wrapper brought, or one made by what the engine, or else the wrapper's config, says.

    Raises:
        ConfigError: it is of another size than the engine asks for, longer than the model, or no memory holds it.
    """
    context = model.inference_context
    if not isinstance(context, StaticInferenceContext):
        config = model.inference_wrapper_config or InferenceWrapperConfig()
        size = _first(max_batch_size, config.inference_max_requests, _DEFAULT_BATCH_SIZE)
        check_size("max_batch_size", size)
        length = _first(max_sequence_length, config.inference_max_seq_length)
        if length is None:
            length = _affordable_length(model, size, buffer_size_gb)
        context = StaticInferenceContext(size, length)
    asked = (_first(max_batch_size, context.max_batch_size), _first(max_sequence_length, context.max_sequence_length))
    if asked != (context.max_batch_size, context.max_sequence_length):
        raise ConfigError(
            f"the engine asks for {asked[0]} rows of {asked[1]} tokens, but the wrapper's context has "
            f"{context.max_batch_size} of {context.max_sequence_length}; say it in one place"
        )
    if model.max_sequence_length is not None and context.max_sequence_length > model.max_sequence_length:
        raise ConfigError(
            f"max_sequence_length={context.max_sequence_length} exceeds the model's {model.max_sequence_length} "
            "positions; use at most that"
        )
    if model.encoder_decoder is not None:
        # An encoder's input is computed in one step, together with a token of the decoder.
        max_tokens, _ = default_max_tokens(model.kernels.device.type)
        context.max_encoder_length = min(context.max_sequence_length, max_tokens - 1)
    context.attach(model.cache_shape(context.num_blocks, context.block_size), model.kernels)
    return context


def _affordable_length(model: AbstractModelInferenceWrapper, max_batch_size: int, buffer_size_gb: float | None) -> int:
    """The model's own length, or as much of it as every row of a batch can have."""
    longest = model.max_sequence_length or _UNLIMITED_LENGTH
    # An encoder's input may be as long as a row.
    per_token = model.cache_shape(1, 1).block_bytes * (1 if model.encoder_decoder is None else 2)
    num_bytes = int(model.kernels.free_memory_bytes() * _FREE_MEMORY_SHARE)
    if buffer_size_gb is not None:
        num_bytes = min(num_bytes, int(buffer_size_gb * 2**30))
    affordable = num_bytes // (per_token * max_batch_size)
    if affordable < 1:
        raise ConfigError(f"{num_bytes} bytes hold no batch of {max_batch_size} rows; ask for a smaller max_batch_size")
    return min(longest, affordable)


def _first(*values: Any) -> Any:
    """The first that is said."""
    return next((value for value in values if value is not None), None)
