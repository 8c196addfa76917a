"""The real megatron-core's T5Model loads what `kilotron convert` wrote, and gives the logits of transformers. By hand.

In the new environment of make_checkpoints.py, for a T5 v1.1 or mT5 with an output layer of its own:

    NEW/bin/python check_converted_t5.py SAVE LOGITS.safetensors

LOGITS holds `encoder_tokens`, `tokens` [n] and what a transformers model computed for them, `logits` [n, vocabulary].
What Megatron has no argument for is put in here: the gate's tanh gelu, unscaled scores, and a bias on them, which
Megatron's local attention refuses and Transformer Engine's takes.
"""

import copy
import functools
import sys
from typing import Any

import torch
import write_one_checkpoint as megatron
from check_converted import check


def let_attention_take_a_bias() -> None:
    """Local attention adds the bias that it is given to its scores."""
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    forward = DotProductAttention.forward

    def forward_with_bias(self: Any, *inputs: Any, attention_bias: Any = None, **options: Any) -> torch.Tensor:
        softmax = self.scale_mask_softmax
        if attention_bias is not None:
            self._modules.pop("scale_mask_softmax")
            self.scale_mask_softmax = lambda scores, *rest: softmax(scores + attention_bias, *rest)
        result: torch.Tensor = forward(self, *inputs, **options)
        self.scale_mask_softmax = softmax
        return result

    DotProductAttention.forward = forward_with_bias


def build(args: Any) -> torch.nn.Module:
    from megatron.core.models.T5.t5_model import T5Model
    from megatron.core.models.T5.t5_spec import (
        get_t5_decoder_with_local_block_spec,
        get_t5_encoder_with_local_block_spec,
    )
    from megatron.core.transformer.torch_norm import WrappedTorchNorm
    from megatron.training.argument_utils import core_transformer_config_from_args

    config = core_transformer_config_from_args(args)
    config.gated_linear_unit, config.bias_activation_fusion, config.softmax_scale = True, False, 1.0
    config.activation_func = functools.partial(torch.nn.functional.gelu, approximate="tanh")
    encoder_config = copy.deepcopy(config)
    encoder_config.num_layers, config.num_layers = args.encoder_num_layers, args.decoder_num_layers
    encoder_spec = get_t5_encoder_with_local_block_spec(args.encoder_num_layers)
    decoder_spec = get_t5_decoder_with_local_block_spec(args.decoder_num_layers)
    encoder_spec.layer_norm = decoder_spec.layer_norm = WrappedTorchNorm
    for layer in (*encoder_spec.layer_specs, *decoder_spec.layer_specs):
        for name in ("input_layernorm", "pre_mlp_layernorm", "pre_cross_attn_layernorm"):
            if "norm" in str(getattr(layer.submodules, name)).lower():
                setattr(layer.submodules, name, WrappedTorchNorm)
    return T5Model(
        config=config,
        encoder_config=encoder_config,
        transformer_encoder_layer_spec=encoder_spec,
        transformer_decoder_layer_spec=decoder_spec,
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        parallel_output=False,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type=args.position_embedding_type,
        relative_attention_num_buckets=args.relative_attention_num_buckets,
        relative_attention_max_distance=args.relative_attention_max_distance,
    )


def compute(model: torch.nn.Module, wanted: dict[str, torch.Tensor]) -> torch.Tensor:
    let_attention_take_a_bias()
    logits: torch.Tensor = megatron.t5_logits(model, wanted["encoder_tokens"].tolist(), wanted["tokens"].tolist())
    return logits


if __name__ == "__main__":
    check(*sys.argv[1:], build=build, compute=compute)
