"""The arguments that Megatron saves with a T5 model, to a TransformerConfig; what they share with GPT is read there."""

from dataclasses import replace

from kilotron.models.config_fields import ConfigFields
from kilotron.models.encoder_decoder_config import EncoderDecoderConfig
from kilotron.models.megatron_config import SOURCE, read_megatron_gpt, saved_arguments
from kilotron.models.transformer_config import TransformerConfig

POSITIONS = {"learned_absolute": "learned_in_stack", "relative": "relative"}


def read_megatron_t5(fields: ConfigFields) -> TransformerConfig:
    """T5 as megatron-core builds it: pre-norm with biases, an output layer tied to the embeddings, with a bias."""
    args = saved_arguments(fields.values)
    positions = args.text("position_embedding_type", "learned_absolute")
    if positions not in POSITIONS:
        raise args.wrong("position_embedding_type", f"one of {', '.join(POSITIONS)}")
    num_layers = args.count("num_layers")
    as_gpt = {
        **fields.values,
        "position_embedding_type": "none",
        "num_layers": args.count("decoder_num_layers", num_layers),
    }
    decoder = read_megatron_gpt(ConfigFields(as_gpt, SOURCE))
    own = EncoderDecoderConfig(
        num_encoder_layers=args.count("encoder_num_layers", num_layers),
        num_encoder_attention_heads=decoder.num_attention_heads,
        encoder_ffn_hidden_size=decoder.ffn_hidden_size,
        num_position_buckets=args.integer("relative_attention_num_buckets", 32),
        max_position_distance=args.integer("relative_attention_max_distance", 128),
        shares_position_table=positions == "learned_absolute",
        has_output_bias=not decoder.untie_embeddings_and_output_weights,
    )
    return replace(decoder, position_embedding_type=POSITIONS[positions], encoder_decoder=own)
