"""EngineFacts of an assembled engine: what its coordinator and the front ends are told once it is loaded."""

from kilotron.apis.assembly import BUNDLED_MODEL, Assembly
from kilotron.coordinator.submissions import params_to_wire
from kilotron.coordinator.wire import EngineFacts


def read_engine_facts(assembly: Assembly) -> EngineFacts:
    """All that a front end needs to check requests, and what people want to know."""
    options, config, limits = assembly.config.options, assembly.config, assembly.engine.intake.limits
    encoder = limits.encoder
    return EngineFacts(
        model="kilotron-tiny" if assembly.name == str(BUNDLED_MODEL) else assembly.name,
        model_hash=assembly.fingerprint,
        tokenizer=assembly.tokenizer_source,
        vocab_size=limits.vocab_size,
        max_sequence_length=limits.max_sequence_length,
        eos_ids=sorted(limits.eos_ids),
        block_size=options.block_size_tokens,
        num_blocks=config.num_blocks,
        max_requests=options.max_requests,
        max_tokens=config.max_tokens,
        max_logits_tokens=options.max_logits_tokens,
        enable_chunked_prefill=options.enable_chunked_prefill,
        enable_prefix_caching=options.enable_prefix_caching,
        default_sampling=params_to_wire(assembly.default_sampling_params),
        max_encoder_length=0 if encoder is None else encoder.max_encoder_length,
        decoder_start_token_id=None if encoder is None else encoder.decoder_start_token_id,
        has_fixed_decoder_start=encoder is None or encoder.has_fixed_start,
    )
