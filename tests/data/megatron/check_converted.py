"""The real megatron-core loads what `kilotron convert` wrote, and gives the logits of transformers. Run by hand.

In the new environment of make_checkpoints.py, for a folder converted with `--transformer-impl local`:

    NEW/bin/python check_converted.py SAVE LOGITS.safetensors

LOGITS holds `tokens` [n] and what a transformers model computed for them, `logits` [n, vocabulary].
"""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
import write_one_checkpoint as megatron
from safetensors.torch import load_file

TOLERANCE = 1e-5
# Of our own, or chosen here.
NOT_TAKEN = {"save", "tokenizer_type", "tokenizer_model", "transformer_impl", "moe_router_load_balancing_type"}

BuildModel = Callable[[Any], torch.nn.Module]
ComputeLogits = Callable[[torch.nn.Module, dict[str, torch.Tensor]], torch.Tensor]


def minimal_flags(saved: argparse.Namespace) -> list[str]:
    """What Megatron's own validation wants to be consistent; all else is taken from the saved arguments."""
    values = {
        "num-layers": saved.num_layers,
        "hidden-size": saved.hidden_size,
        "num-attention-heads": saved.num_attention_heads,
        "seq-length": saved.seq_length,
        "max-position-embeddings": saved.max_position_embeddings,
        "micro-batch-size": 1,
        "train-iters": 1,
        "lr": 1e-3,
        "distributed-backend": "gloo",
        "transformer-impl": "local",
        "tokenizer-type": "NullTokenizer",
        "vocab-size": saved.vocab_size - 1,
        "make-vocab-size-divisible-by": 1,
    }
    flags = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    flags += ["--use-cpu-initialization", "--no-gradient-accumulation-fusion", "--no-masked-softmax-fusion"]
    flags += ["--no-persist-layer-norm", "--no-rope-fusion"]
    flags += [] if saved.add_bias_linear else ["--disable-bias-linear"]
    flags += ["--swiglu"] if saved.swiglu else []
    flags += ["--untie-embeddings-and-output-weights"] if saved.untie_embeddings_and_output_weights else []
    if saved.num_experts:
        flags += ["--moe-token-dispatcher-type", "allgather", "--num-experts", str(saved.num_experts)]
        flags += ["--moe-router-topk", str(saved.moe_router_topk), "--moe-router-load-balancing-type", "none"]
    return flags


def load_model(folder: str, build: BuildModel) -> torch.nn.Module:
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
    loaded, _, lacking = dist_checkpointing.load(state, folder, strict="return_all")
    assert not lacking, f"the checkpoint lacks {sorted(lacking)}"
    model.load_state_dict(loaded["model"])
    return model


def check(folder: str, logits_file: str, build: BuildModel, compute: ComputeLogits) -> None:
    """Exits with 1 when a model's logits are not those wanted. `compute` gets the model and what LOGITS holds."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "TORCHDYNAMO_DISABLE": "1"}
    os.environ.setdefault("MASTER_PORT", "29650")
    torch.set_num_threads(1)
    megatron.replace_cuda_calls()
    wanted: dict[str, Any] = load_file(logits_file)
    with megatron.CpuInsteadOfCuda(), torch.no_grad():
        found = compute(load_model(f"{folder}/release", build), wanted)
    found = found[:, : wanted["logits"].shape[1]]
    difference = float((found - wanted["logits"]).abs().max() / wanted["logits"].abs().max())
    print(f"{folder}: relative difference {difference:.1e}")
    sys.exit(difference > TOLERANCE)


if __name__ == "__main__":
    check(
        *sys.argv[1:],
        build=megatron.build_gpt,
        compute=lambda model, wanted: megatron.gpt_logits(model, wanted["tokens"].tolist()),
    )
