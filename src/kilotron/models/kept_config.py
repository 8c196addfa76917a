"""The config.json that a Megatron checkpoint's arguments keep when it was converted from Hugging Face.

It can say what Megatron's arguments cannot, and is believed only as long as these still agree with it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kilotron.checkpoints.megatron_args import KEPT_CONFIG, kept_object
from kilotron.errors import CheckpointError
from kilotron.models.architectures import ARCHITECTURES
from kilotron.models.config_fields import ConfigFields
from kilotron.models.encoder_decoder_architectures import find_encoder_decoder
from kilotron.models.megatron_args import megatron_args
from kilotron.models.transformer_config import TransformerConfig

# A checkpoint may go on to be trained, with other lengths and types, and be the same model.
CHANGEABLE = {
    "vocab_size", "padded_vocab_size", "params_dtype", "bf16", "fp16", "seq_length", "attention_dropout",
    "hidden_dropout", "moe_grouped_gemm", "moe_router_load_balancing_type", "make_vocab_size_divisible_by",
}  # fmt: skip
OUTPUT_LAYER = "untie_embeddings_and_output_weights"


def read_kept_config(args: Mapping[str, Any], read: TransformerConfig) -> TransformerConfig | None:
    """The structure that the kept config.json describes, with the sizes and dtype of the arguments as they were `read`.

    None when there is none, or it contradicts the arguments.
    """
    values = kept_object(args, KEPT_CONFIG)
    if values is None:
        return None
    try:
        fields = ConfigFields(values, KEPT_CONFIG)
        name = fields.texts("architectures")[0]
        architecture = find_encoder_decoder(name, fields) or ARCHITECTURES[name]
        config = architecture.read_config(fields)
    except (CheckpointError, KeyError, IndexError):
        return None
    if (config.encoder_decoder is None) != (read.encoder_decoder is None):
        return None
    # Whether T5 has an output layer of its own is told by the tensors, not by config.json.
    changeable = CHANGEABLE if config.encoder_decoder is None else {*CHANGEABLE, OUTPUT_LAYER}
    # Another version may have written fewer arguments.
    said = {name: value for name, value in megatron_args(config).items() if name in args and name not in changeable}
    if any(_plain(args[name]) != _plain(value) for name, value in said.items()):
        return None
    return replace(config, vocab_size=read.vocab_size, params_dtype=read.params_dtype)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
