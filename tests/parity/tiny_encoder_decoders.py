"""Tiny random encoder-decoder models of transformers, as `tiny_models` has decoder-only ones."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers import PreTrainedModel

VOCAB_SIZE = 128
T5: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 30,
    "layer_norm_epsilon": 1e-3,
    "decoder_start_token_id": 0,
}
BART: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 128,
    "forced_eos_token_id": None,
}


class EncoderDecoderCase(NamedTuple):
    """One tiny model."""

    family: str
    fields: dict[str, Any]
    has_own_output_layer: bool = False
    forced_bos_token_id: int | None = None

    @property
    def has_equal_depths(self) -> bool:
        """transformers can only generate with such models."""
        return self.fields.get("num_decoder_layers") is None


CASES: dict[str, EncoderDecoderCase] = {
    "t5": EncoderDecoderCase("T5", T5),
    "t5-deeper-decoder": EncoderDecoderCase("T5", T5 | {"num_decoder_layers": 3, "d_kv": 16}),
    "t5-v1.1": EncoderDecoderCase("T5", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, True),
    "mt5": EncoderDecoderCase("MT5", T5 | {"feed_forward_proj": "gated-gelu"}),
    "umt5": EncoderDecoderCase("UMT5", T5 | {"feed_forward_proj": "gated-gelu"}),
    "bart": EncoderDecoderCase("Bart", BART),
    "bart-forced": EncoderDecoderCase(
        "Bart", BART | {"scale_embedding": True, "forced_eos_token_id": 2}, forced_bos_token_id=5
    ),
}


def make_tiny_encoder_decoder(name: str, folder: Path) -> PreTrainedModel:
    """Saves the named model to `folder` and gives it back, in evaluation mode; equal for equal names."""
    case = CASES[name]
    generator = torch.Generator().manual_seed(sum(name.encode()))
    config = getattr(transformers, f"{case.family}Config")(**case.fields)
    model: PreTrainedModel = getattr(transformers, f"{case.family}ForConditionalGeneration")(config)
    if case.has_own_output_layer:
        model.lm_head.weight = torch.nn.Parameter(torch.empty(VOCAB_SIZE, 32))
    for parameter_name, parameter in model.named_parameters():
        size = 1.0 if "relative_attention_bias" in parameter_name else 0.2
        values = size * torch.randn(parameter.shape, generator=generator)
        parameter.data = values + 1 if parameter.ndim == 1 and not parameter_name.endswith("bias") else values
    if case.family == "Bart":
        model.final_logits_bias.copy_(torch.randn((1, VOCAB_SIZE), generator=generator))
    if model.generation_config is not None:
        model.generation_config.forced_bos_token_id = case.forced_bos_token_id
    model = model.eval()
    model.save_pretrained(folder)
    return model
