"""One rank of one job of make_checkpoints.py: builds a tiny model with the real megatron-core on a CPU and saves it.

Run by make_checkpoints.py only, in the environment of one megatron-core release: `write_one_checkpoint.py JOB.json`,
with RANK and WORLD_SIZE set. The stand-ins below replace what asks for a GPU or for Transformer Engine.
"""

import copy
import json
import os
import pickle
import random
import sys
import typing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

if not hasattr(typing, "override"):  # Python 3.11; megatron-core 0.19 asks for 3.12 because of this alone
    typing.override = lambda function: function

NUM_GREEDY_TOKENS = 8
PROMPT_LENGTHS = (1, 9, 30)
SAVED_FOLDER = "/data/checkpoints"


class CpuInsteadOfCuda(TorchFunctionMode):
    """Makes on the CPU what is asked of a GPU (masks, score buffers)."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)


def replace_cuda_calls() -> None:
    """Before megatron is imported: the calls of torch.cuda that building, running and saving on a CPU reach."""
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.cuda.get_rng_state = torch.cuda.random.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    torch.cuda.set_rng_state = lambda *args, **kwargs: None
    torch.cuda.synchronize = lambda *args, **kwargs: None
    torch.cuda.get_device_capability = lambda *args, **kwargs: (9, 0)
    torch.cuda.get_device_properties = lambda *args, **kwargs: type("Properties", (), {"major": 9, "minor": 0})
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    import megatron.core.tensor_parallel.random as megatron_random

    megatron_random._lazy_call = lambda function: None
    give_attention_head_sizes()
    give_norms_a_zero_center()


def give_attention_head_sizes() -> None:
    """Latent attention has heads of two sizes, as only Transformer Engine's attention takes; now the local one too."""
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    initialize = DotProductAttention.__init__

    def initialize_with_head_sizes(
        self: Any, *args: Any, k_channels: int | None = None, v_channels: int | None = None, **options: Any
    ) -> None:
        initialize(self, *args, **options)
        if v_channels is not None:
            self.hidden_size_per_partition = self.num_attention_heads_per_partition * v_channels

    DotProductAttention.__init__ = initialize_with_head_sizes


class ZeroCenteredLayerNorm(torch.nn.LayerNorm):
    """LayerNorm whose stored weight is what its weight is more than one."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(hidden, self.normalized_shape, self.weight + 1, self.bias, self.eps)


def give_norms_a_zero_center() -> None:
    """Apex and Transformer Engine have zero-centered norms, the plain one refuses them; now it has them too."""
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    make = WrappedTorchNorm.__new__

    def make_norm(cls: type, config: Any, hidden_size: int, eps: float = 1e-5, **options: Any) -> torch.nn.Module:
        if config.layernorm_zero_centered_gamma and config.normalization == "LayerNorm":
            return ZeroCenteredLayerNorm(hidden_size, eps=eps)
        return make(cls, config, hidden_size, eps, **options)

    WrappedTorchNorm.__new__ = make_norm


def initialize_parallel(tensor: int, pipeline: int, expert: int, expert_tensor: int | None) -> None:
    from megatron.core import parallel_state, tensor_parallel

    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(
        tensor,
        pipeline,
        expert_model_parallel_size=expert,
        expert_tensor_parallel_size=expert_tensor,
        create_gloo_process_groups=True,
    )
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    tensor_parallel.model_parallel_cuda_manual_seed(1)


def parse_megatron_args(flags: list[str]) -> Any:
    """The Namespace of megatron.training's own parser and validation, with the padded vocabulary filled in."""
    from megatron.training.arguments import parse_args, validate_args
    from megatron.training.global_vars import set_global_variables

    sys.argv = ["pretrain_gpt.py", *flags]
    args = parse_args()
    validate_args(args)
    set_global_variables(args)
    return args


def clean_args(args: Any, name: str) -> Any:
    """As saved: no path of this machine in it."""
    args = copy.copy(args)
    args.save = args.load = f"{SAVED_FOLDER}/{name}"
    return args


def build_gpt(args: Any) -> torch.nn.Module:
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.argument_utils import gpt_config_from_args
    from megatron.training.models.gpt import GPTModelBuilder

    groups = ProcessGroupCollection.use_mpu_process_groups()
    config = gpt_config_from_args(args)
    config.rope_scaling_factor = args.rope_scaling_factor
    config.parallel_output = False
    config.finalize()
    return GPTModelBuilder(config).build_model(groups)


def build_old_gpt(args: Any) -> torch.nn.Module:
    """For a megatron-core that comes without megatron.training."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

    activation = {"gated_linear_unit": True, "activation_func": torch.nn.functional.silu} if args.swiglu else {}
    config = TransformerConfig(
        num_layers=args.num_layers,
        hidden_size=args.hidden_size,
        ffn_hidden_size=args.ffn_hidden_size,
        num_attention_heads=args.num_attention_heads,
        kv_channels=args.kv_channels,
        num_query_groups=args.num_query_groups if args.group_query_attention else None,
        normalization=args.normalization,
        layernorm_epsilon=args.norm_epsilon if hasattr(args, "norm_epsilon") else args.layernorm_epsilon,
        add_bias_linear=args.add_bias_linear,
        use_cpu_initialization=True,
        bias_activation_fusion=True,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        **activation,
    )
    return GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_layer_local_spec(normalization=args.normalization),
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        parallel_output=False,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type=args.position_embedding_type,
        rotary_percent=args.rotary_percent,
        rotary_base=args.rotary_base,
    )


def build_t5(args: Any) -> torch.nn.Module:
    from megatron.core.models.T5.t5_model import T5Model
    from megatron.core.models.T5.t5_spec import (
        get_t5_decoder_with_local_block_spec,
        get_t5_encoder_with_local_block_spec,
    )
    from megatron.core.transformer.torch_norm import WrappedTorchNorm
    from megatron.training.argument_utils import core_transformer_config_from_args

    config = core_transformer_config_from_args(args)
    encoder_config = copy.deepcopy(config)
    encoder_config.num_layers = args.encoder_num_layers
    config.num_layers = args.decoder_num_layers  # else that of the encoder
    encoder_spec = get_t5_encoder_with_local_block_spec(args.encoder_num_layers)
    decoder_spec = get_t5_decoder_with_local_block_spec(args.decoder_num_layers)
    encoder_spec.layer_norm = decoder_spec.layer_norm = WrappedTorchNorm  # the specs name Transformer Engine's
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
    )


def fill_weights(model: torch.nn.Module, args: Any) -> None:
    """Every parameter random from its name, norms and biases too, so that one not loaded or not used shows."""
    tensors = dict(model.named_parameters())
    tensors |= {name: buffer for name, buffer in model.named_buffers() if name.endswith("expert_bias")}
    for name, tensor in tensors.items():
        generator = torch.Generator().manual_seed(sum(byte * 31**i for i, byte in enumerate(name.encode())) % 2**63)
        values = torch.randn(tensor.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            center = 0.0 if args.layernorm_zero_centered_gamma else 1.0
            values = center + 0.2 * values
        elif tensor.dim() == 1:
            values = 0.3 * values
        elif "embedding" in name:
            values *= (
                1.0 if args.untie_embeddings_and_output_weights else 0.4
            )  # a tied model must not only repeat itself
        else:
            values = values * 1.5 / tensor.shape[-1] ** 0.5
        tensor.data.copy_(values)


def load_weights(model: torch.nn.Module, folder: str) -> None:
    """The weights saved at another parallel layout, through Megatron's own resharding."""
    from megatron.core import dist_checkpointing, parallel_state

    groups = {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
    state = {"model": model.sharded_state_dict(metadata=groups)}
    loaded = dist_checkpointing.load(state, f"{folder}/iter_0000001")
    model.load_state_dict(loaded["model"])


def gpt_logits(model: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    """[len(tokens), padded vocabulary]"""
    ids = torch.tensor([tokens])
    positions = torch.arange(len(tokens))[None]
    return model(ids, positions, None)[0].float()


def make_prompts(num_tokens: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(1, num_tokens, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]


@torch.no_grad()
def expected_of_gpt(model: torch.nn.Module, num_tokens: int) -> dict[str, torch.Tensor]:
    """For each prompt: ids, logits at each of its positions, the greedy continuation (of the real vocabulary)."""
    expected = {}
    for number, prompt in enumerate(make_prompts(num_tokens)):
        tokens = list(prompt)
        expected[f"{number}.logits"] = gpt_logits(model, prompt)
        for _ in range(NUM_GREEDY_TOKENS):
            tokens.append(int(gpt_logits(model, tokens)[-1, :num_tokens].argmax()))
        expected[f"{number}.prompt"] = torch.tensor(prompt)
        expected[f"{number}.greedy"] = torch.tensor(tokens[len(prompt) :])
    return expected


def t5_logits(model: torch.nn.Module, encoder_tokens: list[int], decoder_tokens: list[int]) -> torch.Tensor:
    """[len(decoder_tokens), padded vocabulary]; a mask of Megatron is true where a token is not to be seen."""
    num_encoder, num_decoder = len(encoder_tokens), len(decoder_tokens)
    return model(
        torch.tensor([encoder_tokens]),
        torch.tensor([decoder_tokens]),
        torch.zeros(1, 1, num_encoder, num_encoder, dtype=torch.bool),
        torch.ones(1, 1, num_decoder, num_decoder, dtype=torch.bool).triu(1),
        torch.zeros(1, 1, num_decoder, num_encoder, dtype=torch.bool),
    )[0].float()


@torch.no_grad()
def expected_of_t5(model: torch.nn.Module, num_tokens: int) -> dict[str, torch.Tensor]:
    """For each encoder prompt: ids, a decoder prompt of five tokens, its greedy continuation, the logits of both."""
    expected = {}
    start = make_prompts(num_tokens)[1][:5]
    for number, prompt in enumerate(make_prompts(num_tokens)):
        tokens = list(start)
        for _ in range(NUM_GREEDY_TOKENS):
            tokens.append(int(t5_logits(model, prompt, tokens)[-1, :num_tokens].argmax()))
        expected[f"{number}.logits"] = t5_logits(model, prompt, tokens[:-1])
        expected[f"{number}.encoder_prompt"] = torch.tensor(prompt)
        expected[f"{number}.prompt"] = torch.tensor(start)
        expected[f"{number}.greedy"] = torch.tensor(tokens[len(start) :])
    return expected


def make_optimizer(model: torch.nn.Module, args: Any) -> tuple[Any, Any]:
    """Megatron's Adam after one step of made-up gradients, and its learning rate schedule."""
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    config = OptimizerConfig(
        optimizer="adam", lr=0.0, min_lr=0.0, clip_grad=0.0, bf16=False, fp16=False, use_distributed_optimizer=False
    )
    model.ddp_config = DistributedDataParallelConfig()
    optimizer = get_megatron_optimizer(config, [model], use_gloo_process_groups=True)
    for parameter in model.parameters():
        parameter.main_grad = torch.full_like(parameter, 0.01)
    optimizer.step()
    scheduler = OptimizerParamScheduler(optimizer, 0.0, 0.0, 0.0, 0, 10, "linear", 0.0, 0.0, 10, "constant")
    return optimizer, scheduler


def save(model: torch.nn.Module, args: Any, job: dict[str, Any]) -> None:
    """Through megatron.training's own save_checkpoint; only the Namespace is replaced by its cleaned copy."""
    from megatron.training import checkpointing

    generate_state_dict = checkpointing.generate_state_dict

    def generate_with_clean_args(args: Any, *rest: Any, **options: Any) -> dict[str, Any]:
        state = generate_state_dict(args, *rest, **options)
        return state | {"args": clean_args(args, job["name"])}

    checkpointing.generate_state_dict = generate_with_clean_args
    optimizer, scheduler = make_optimizer(model, args) if job["optimizer"] else (None, None)
    checkpointing.save_checkpoint(1, [model], optimizer, scheduler, 0, release=job["release"])


def save_old(model: torch.nn.Module, args: Any, job: dict[str, Any]) -> None:
    """What megatron.training of that time passes to dist_checkpointing.save, and its tracker file."""
    from megatron.core import dist_checkpointing

    folder = Path(job["folder"], "iter_0000001")
    folder.mkdir(parents=True)
    metadata = {"distrib_optim_sharding_type": "dp_reshardable", "singleton_local_shards": False}
    state = {
        "args": clean_args(args, job["name"]),
        "checkpoint_version": 3.0,
        "iteration": 1,
        "model": model.sharded_state_dict(metadata=dict(metadata)),
        "num_floating_point_operations_so_far": 0,
    }
    dist_checkpointing.save(state, str(folder), content_metadata=metadata)
    Path(job["folder"], "latest_checkpointed_iteration.txt").write_text("1")


class OldArgsUnpickler(pickle.Unpickler):
    """Reads a Namespace that a newer megatron made; a class that this one does not know becomes UnknownClass."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            return UnknownClass


class UnknownClass:
    """Stands for a value whose class is not there."""

    def __init__(self, *args: Any) -> None:
        pass


def holds_unknown(value: Any) -> bool:
    return isinstance(value, UnknownClass) or (isinstance(value, list) and any(map(holds_unknown, value)))


def run_old(job: dict[str, Any]) -> None:
    with open(job["args_file"], "rb") as file:
        args = OldArgsUnpickler(file).load()
    for name in [name for name, value in vars(args).items() if holds_unknown(value)]:
        delattr(args, name)
    initialize_parallel(1, 1, 1, None)
    model = build_old_gpt(args).eval()
    fill_weights(model, args)
    save_old(model, args, job)
    save_file(expected_of_gpt(model, job["num_tokens"]), job["expected"])


def run_new(job: dict[str, Any]) -> None:
    args = parse_megatron_args([*job["flags"], "--save", job["folder"]])
    args.ckpt_format = job["format"]
    if args.rank == 0:
        with open(job["args_file"], "wb") as file:
            pickle.dump(args, file)
    initialize_parallel(
        args.tensor_model_parallel_size,
        args.pipeline_model_parallel_size,
        args.expert_model_parallel_size,
        args.expert_tensor_parallel_size,
    )
    is_t5 = job["model"] == "t5"
    model = (build_t5(args) if is_t5 else build_gpt(args)).eval()
    fill_weights(model, args)
    if job["source"]:
        load_weights(model, job["source"])
    elif job["expected"]:
        save_file((expected_of_t5 if is_t5 else expected_of_gpt)(model, job["num_tokens"]), job["expected"])
    save(model, args, job)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(job["port"]))
    torch.set_num_threads(1)
    replace_cuda_calls()
    with CpuInsteadOfCuda():
        if job["release_of_megatron"] == "0.16.1":
            run_old(job)
        else:
            run_new(job)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
