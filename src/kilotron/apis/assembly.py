"""The only builder: from a checkpoint or ready parts to an engine. Every mode is chosen here, once."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kilotron.apis.checkpoint_fingerprint import fingerprint
from kilotron.apis.engine_parts import EngineParts, plain_parts, profiled_parts
from kilotron.apis.load_phases import LoadPhase, LoadPhases
from kilotron.apis.tokenizer_choice import choose_tokenizer, count_tokens
from kilotron.apis.weight_cache import WeightCache
from kilotron.checkpoints.checkpoint import Checkpoint
from kilotron.checkpoints.open_checkpoint import open_checkpoint
from kilotron.checkpoints.read_ahead import start_reading_ahead
from kilotron.config import InferenceConfig, MachineFacts, ModelFacts, ResolvedConfig, resolve
from kilotron.engines.default_parts import make_intake, make_limits
from kilotron.engines.dynamic_engine import DynamicInferenceEngine
from kilotron.errors import ConfigError, SamplingParamsError
from kilotron.kernels.interface import KernelBackend
from kilotron.kernels.registry import choose_backend, choose_device
from kilotron.models.config_fields import ConfigFields
from kilotron.models.encoder_decoder_architectures import with_generation_config
from kilotron.models.encoder_decoder_model import EncoderDecoderModel
from kilotron.models.gpt_model import GPTModel
from kilotron.models.quantization.formats import find_format
from kilotron.models.quantization.rounding import Rounding
from kilotron.models.registry import read_transformer_config
from kilotron.models.transformer_config import TransformerConfig
from kilotron.models.weight_loading import OnProgress, load_weights
from kilotron.sampling.sampler import Sampler
from kilotron.sampling.sampling_table import SamplingTable
from kilotron.sampling_params import SamplingParams
from kilotron.tokenization import Tokenizer
from kilotron.trace import Trace

_log = logging.getLogger(__name__)

BUNDLED_MODEL = Path(__file__).parents[1] / "assets" / "tiny"

# What is taken of a generation_config.json: how a token is chosen, not how long a text is, nor a beam search, which
# costs so many times as much and cannot be streamed.
_SAMPLING_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_GREEDY_DEFAULTS = ("repetition_penalty",)

# Bytes read ahead for each byte of weights.
_MOST_READ_AHEAD = 1.5

_QUANTIZATION_BITS = {"int8": 8, "int4": 4}


class _Origin(NamedTuple):
    """Where a model and its tokenizer came from."""

    name: str
    fingerprint: str
    weights_bytes: int
    tokenizer_source: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """A ready engine and what was decided on the way."""

    engine: DynamicInferenceEngine
    name: str
    """The checkpoint as it was asked for; "model" for a ready one."""
    fingerprint: str
    """Of the model's architecture and weights; equal for equal checkpoints."""
    weights_bytes: int
    """As they lie in the checkpoint; 0 for a ready model."""
    tokenizer_source: str | None
    """What `load_tokenizer` made the tokenizer of, if it did."""
    config: ResolvedConfig
    model_config: TransformerConfig
    tokenizer: Tokenizer | None
    default_sampling_params: SamplingParams
    """The checkpoint's own sampling defaults."""
    kernels_name: str
    load_phases: list[LoadPhase]
    """How long each part of loading took."""
    trace: Trace | None
    """The times of steps and operations, with `profile`."""


def assemble(
    model: str | Path | GPTModel | None,
    tokenizer: str | Path | Tokenizer | None,
    config: InferenceConfig,
    *,
    on_progress: OnProgress | None = None,
) -> Assembly:
    """Builds an engine.

    Args:
        model: checkpoint folder, hub id, a ready model, or None for the bundled tiny model.
        tokenizer: its folder (or `null:N`) or a ready one; None takes the one that lies with the checkpoint, if there
            is one (none for a ready model).
        config: the engine's options.
        on_progress: called with (bytes done, bytes in all) while weights load.

    Raises:
        CheckpointError: the checkpoint is missing, broken or of an unknown architecture.
        TokenizerError: the tokenizer's files are missing or broken.
        ConfigError: an option is impossible with this model or machine.
    """
    parts = plain_parts() if config.profile is None else profiled_parts(Trace(config.profile))
    phases = LoadPhases()
    if isinstance(model, GPTModel):
        chosen = choose_tokenizer(tokenizer, None)
        model_hash = blake2b(repr(model.config).encode(), digest_size=16).hexdigest()
        origin = _Origin("model", model_hash, 0, chosen.source)
        return _build(model, chosen.tokenizer, _resolve_ready(model, config), {}, parts, phases, origin)
    source = BUNDLED_MODEL if model is None else model
    if not isinstance(source, str | Path):
        raise ConfigError(f"model must be a folder, a hub id or a GPTModel, not {type(source).__name__}")
    with phases.measure("checkpoint headers"):
        checkpoint = open_checkpoint(source)
    with checkpoint:
        start_reading_ahead(_files_to_read_ahead(checkpoint))
        kernels, machine = _choose_machine(config)
        model_config = read_transformer_config(checkpoint.config, checkpoint.tensors)
        model_config = with_generation_config(model_config, checkpoint.generation_config)
        stored_format = find_format(checkpoint.config)
        description = None if stored_format is None else stored_format.description
        facts = _model_facts(model_config)._replace(quantization=description)
        resolved = resolve(config, facts, machine)
        with phases.measure("tokenizer"):
            chosen = choose_tokenizer(tokenizer, checkpoint)
            num_tokens = count_tokens(checkpoint, chosen.tokenizer, model_config.vocab_size)
            model_config = replace(model_config, unpadded_vocab_size=num_tokens)
        model_class = GPTModel if model_config.encoder_decoder is None else EncoderDecoderModel
        built = model_class(model_config, parts.kernels(kernels), resolved.max_sequence_length)
        _load(built, checkpoint, resolved, phases, on_progress)
        origin = _Origin(str(source), fingerprint(checkpoint), checkpoint.total_bytes, chosen.source)
        return _build(built, chosen.tokenizer, resolved, checkpoint.generation_config, parts, phases, origin)


def _files_to_read_ahead(checkpoint: Checkpoint) -> list[Path]:
    """The files of the weights, but none where they hold much else, such as the state of an optimizer."""
    files = checkpoint.list_files()
    size = sum(file.stat().st_size for file in files)
    return files if size <= _MOST_READ_AHEAD * checkpoint.total_bytes else []


def _load(
    model: GPTModel,
    checkpoint: Checkpoint,
    config: ResolvedConfig,
    phases: LoadPhases,
    on_progress: OnProgress | None,
) -> None:
    """Weights out of the checkpoint, or what was packed of them at an earlier start."""
    dtype, rounding = getattr(torch, config.dtype), _choose_rounding(config.options)
    cache = WeightCache(model.kernels.packed_files, checkpoint, config)
    packed = cache.open()
    name = "weights read and packed" if packed is None else "packed weights mapped"
    with phases.measure(name, checkpoint.total_bytes, is_transfer=packed is None):
        load_weights(model, checkpoint, dtype, rounding=rounding, packed=packed, on_progress=on_progress)
    if packed is None:
        cache.keep(model.packed_weights())


def _resolve_ready(model: GPTModel, config: InferenceConfig) -> ResolvedConfig:
    if config.quantization is not None:
        raise ConfigError(
            f"quantization={config.quantization}, but the model given has its weights packed already; leave the option "
            "out, or give the checkpoint instead of the model"
        )
    dtype = next(model.parameters()).dtype
    facts = _model_facts(model.config)._replace(dtype=_dtype_name(dtype), quantization="as the model was loaded")
    if config.dtype not in ("auto", facts.dtype):
        raise ConfigError(
            f"dtype={config.dtype}, but the model given is in {facts.dtype}; leave dtype=auto or convert it"
        )
    machine = MachineFacts(str(model.kernels.device), "the model's", model.kernels.free_memory_bytes())
    return resolve(config, facts, machine)


def _choose_rounding(options: InferenceConfig) -> Rounding | None:
    """How plain weights are to be quantized while they are loaded."""
    if options.quantization is None:
        return None
    return Rounding(bits=_QUANTIZATION_BITS[options.quantization], group_size=options.quantization_group_size)


def _choose_machine(config: InferenceConfig) -> tuple[KernelBackend, MachineFacts]:
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    device, reason = choose_device(config.device)
    kernels = choose_backend(config.kernels, device).backend
    return kernels, MachineFacts(device, reason, kernels.free_memory_bytes())


def _build(
    model: GPTModel,
    tokenizer: Tokenizer | None,
    config: ResolvedConfig,
    generation_config: Mapping[str, Any],
    parts: EngineParts,
    phases: LoadPhases,
    origin: "_Origin",
) -> Assembly:
    options = config.options
    wrapper = parts.wrapper(model)
    # An encoder's input is computed in one step, together with a token of the decoder.
    max_encoder_length = min(config.max_sequence_length, config.max_tokens - 1) if wrapper.encoder_decoder else 0
    shape = replace(
        wrapper.cache_shape(config.num_blocks, options.block_size_tokens),
        dtype=getattr(torch, config.dtype if options.kv_cache_dtype == "auto" else options.kv_cache_dtype),
    )
    with phases.measure("KV cache set aside", config.kv_cache_bytes):
        context = parts.context(
            shape,
            model.kernels,
            max_requests=options.max_requests,
            max_sequence_length=config.max_sequence_length,
            max_encoder_length=max_encoder_length,
        )
    table = SamplingTable(
        max_requests=options.max_requests,
        vocab_size=model.config.num_tokens,
        padded_vocab_size=model.config.vocab_size,
        device=model.kernels.device,
    )
    sampler = Sampler(table, model.kernels, logprobs_mode=options.logprobs_mode)
    controller = parts.controller(wrapper, tokenizer, table=table, sampler=sampler)
    named_eos_ids = ConfigFields(generation_config, "generation_config.json").integers("eos_token_id")
    intake = make_intake(controller, context, options.random_seed, eos_ids=frozenset(named_eos_ids))
    scheduler = parts.scheduler(make_limits(options, context, config.max_tokens), config.num_blocks)
    return Assembly(
        engine=parts.engine(controller, context, scheduler=scheduler, intake=intake),
        name=origin.name,
        fingerprint=origin.fingerprint,
        weights_bytes=origin.weights_bytes,
        tokenizer_source=origin.tokenizer_source,
        config=config,
        model_config=model.config,
        tokenizer=tokenizer,
        default_sampling_params=_sampling_defaults(generation_config),
        kernels_name=model.kernels.name,
        load_phases=phases.done,
        trace=parts.trace,
    )


def _model_facts(config: TransformerConfig) -> ModelFacts:
    kv_heads = 2 * config.num_layers * config.num_query_groups
    return ModelFacts(
        dtype=_dtype_name(config.params_dtype),
        max_position_embeddings=config.context_length,
        kv_numbers_per_token=kv_heads * config.kv_channels,
        kv_heads_per_token=kv_heads,
    )


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _sampling_defaults(generation_config: Mapping[str, Any]) -> SamplingParams:
    """What the checkpoint recommends: greedy if it says so or would have beams, plain sampling if it says nothing."""
    does_sample, num_beams = generation_config.get("do_sample"), generation_config.get("num_beams")
    is_greedy = does_sample is False or (does_sample is None and isinstance(num_beams, int) and num_beams > 1)
    names = _GREEDY_DEFAULTS if is_greedy else _SAMPLING_DEFAULTS
    values = {name: generation_config[name] for name in names if generation_config.get(name) is not None}
    if is_greedy:
        values["temperature"] = 0.0
    try:
        return SamplingParams(**values)
    except SamplingParamsError as error:
        raise ConfigError(f"generation_config.json: {error}") from error
