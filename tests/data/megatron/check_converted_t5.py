"""The real megatron-core's T5Model loads what `kilotron convert` wrote, and gives the logits of transformers. By hand.

In the new environment of make_checkpoints.py, for a T5 v1.1 or mT5 with an output layer of its own:

    NEW/bin/python check_converted_t5.py SAVE LOGITS.safetensors

LOGITS holds `encoder_tokens`, `tokens` [n] and what a transformers model computed for them, `logits` [n, vocabulary].
What Megatron has no argument for is put in here: the gate's tanh gelu, unscaled scores, and a bias on them, which
Megatron's local attention refuses and Transformer Engine's takes.
"""

import argparse
import copy
import functools
import os
import sys
from typing import Any

import torch
import write_one_checkpoint as megatron
from check_converted import NOT_TAKEN, TOLERANCE, minimal_flags
from safetensors.torch import load_file


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


def load_model(folder: str) -> torch.nn.Module:
    """Raises AssertionError when the checkpoint lacks what Megatron's own model asks for."""
    from megatron.core import dist_checkpointing, parallel_state
    from megatron.core.dist_checkpointing.serialization import load_common_state_dict

    torch.serialization.add_safe_globals([argparse.Namespace])
    saved = load_common_state_dict(folder)["args"]
    args = megatron.parse_megatron_args(minimal_flags(saved))
    for name, value in vars(saved).items():
        if name not in NOT_TAKEN:
            setattr(args, name, value)
    megatron.initialize_parallel(1, 1, 1, None)
    model = build(args).eval()
    groups = {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
    state = {"model": model.sharded_state_dict(metadata=groups)}
    # Megatron's names for the two are the wrong way round: the second are keys that the checkpoint lacks.
    loaded, spare, lacking = dist_checkpointing.load(state, folder, strict="return_all")
    print(f"lacking: {sorted(lacking)}; not asked for: {sorted(spare)}")
    assert not lacking, f"the checkpoint lacks {sorted(lacking)}"
    model.load_state_dict(loaded["model"])
    return model


def main(folder: str, logits_file: str) -> None:
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "TORCHDYNAMO_DISABLE": "1"}
    os.environ.setdefault("MASTER_PORT", "29651")
    torch.set_num_threads(1)
    megatron.replace_cuda_calls()
    let_attention_take_a_bias()
    wanted: dict[str, Any] = load_file(logits_file)
    with megatron.CpuInsteadOfCuda(), torch.no_grad():
        model = load_model(f"{folder}/release")
        found = megatron.t5_logits(model, wanted["encoder_tokens"].tolist(), wanted["tokens"].tolist())
    found = found[:, : wanted["logits"].shape[1]]
    difference = float((found - wanted["logits"]).abs().max() / wanted["logits"].abs().max())
    print(f"{folder}: relative difference {difference:.1e}")
    sys.exit(difference > TOLERANCE)


if __name__ == "__main__":
    main(*sys.argv[1:])
