"""Layers that the kernels run in one call give the bits of their operations called one by one."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fakes import make_model
from kilotron.kernels.cpu.backend import CpuBackend
from kilotron.kernels.interface import AttentionRows, KVShape
from kilotron.kernels.profiling import ProfiledBackend
from kilotron.kernels.reference.backend import ReferenceBackend
from kilotron.models.gpt_model import GPTModel
from kilotron.models.inference_batch import InferenceBatch
from kilotron.models.layers.transformer_layer import LayersAsOne
from kilotron.models.quantization.rounding import Rounding
from kilotron.trace import Trace
from unit.kernels.cpu_backends import ISAS, draw, each_dtype, each_isa, each_thread_count, has_same_bits, make_cpu

GPT2 = {
    "num_query_groups": 4, "position_embedding_type": "learned", "normalization": "LayerNorm",
    "gated_linear_unit": False, "activation": "gelu_tanh", "add_qkv_bias": True, "add_proj_bias": True,
    "add_mlp_bias": True,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "no rotation": {"position_embedding_type": "none"},
    "part of each head rotated": {"rotary_percent": 0.5},
    "norms of heads": {"qk_layernorm": "head"},
    "norms around zero": {"qk_layernorm": "head", "layernorm_zero_centered_gamma": True},
    "layer norms and biases": GPT2,
    "windows and soft-caps": {"layer_windows": (24, None), "attn_logit_softcapping": 20.0},
    "local rotation": {"layer_windows": (24, None), "local_rotary_base": 100.0},
    "a scale for each layer": {"scale_attn_by_inverse_layer_idx": True},
    "odd sizes": {"hidden_size": 44, "ffn_hidden_size": 37},
    "int8": {"rounding": Rounding(8, None)},
    "int4": {"rounding": Rounding(4, 32), "ffn_hidden_size": 96},
}
EXPERTS = {"num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 24}
OF_ANOTHER_FORM: dict[str, dict[str, Any]] = {
    "sandwich norms": {"norm_placement": "sandwich"},
    "norms after": {"norm_placement": "post"},
    "parallel residual": {"use_parallel_residual": True},
    "norms over all heads": {"qk_layernorm": "projection"},
    "layer norms of heads": {"qk_layernorm": "head", "normalization": "LayerNorm"},
    "experts": EXPERTS,
}
BLOCK_SIZE, NUM_BLOCKS = 16, 80
# Of each row: tokens of the first step and of the second. Chunks and single tokens; rows that come and go; the second
# step has enough tokens for two threads to share a norm.
STEPS = ((20, 1), (33, 70), (1, 1), (0, 200), (7, 0))

each_model = pytest.mark.parametrize("name", MODELS)


def build(kernels: Any, dtype: torch.dtype = torch.float32, **fields: Any) -> GPTModel:
    return make_model(dtype=dtype, kernels=kernels, **{"hidden_size": 64} | fields)


def batch_of(model: GPTModel, kv_layers: list[Any], computed: list[int], new: list[int]) -> InferenceBatch:
    """Row i owns every fifth block from 1 + i on."""
    rows = [row for row, count in enumerate(new) if count]
    table = np.array([[1 + row + 5 * block for block in range(15)] for row in rows], dtype=np.int64).reshape(-1, 15)
    positions = [torch.arange(computed[row], computed[row] + new[row]) for row in rows]
    slots = [torch.tensor(blocks)[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE
             for blocks, p in zip(table, positions, strict=True)]  # fmt: skip
    plan = AttentionRows(*(np.array([sizes[row] for row in rows], dtype=np.int64) for sizes in (computed, new)), table)
    tokens = sum(new)
    return InferenceBatch(
        token_ids=torch.arange(tokens) * 37 % 256,
        positions=torch.cat([torch.empty(0, dtype=torch.int64), *positions]),
        kv_slots=torch.cat([torch.empty(0, dtype=torch.int64), *slots]),
        kv_layers=kv_layers,
        attention=model.kernels.plan_attention(plan, BLOCK_SIZE),
        logits_index=torch.arange(tokens),
        num_samples=tokens,
    )


def run(model: GPTModel, kv_dtype: torch.dtype) -> list[Tensor]:
    """Hidden states of all tokens of both steps; the second step reads what the first one wrote into the cache."""
    config = model.config
    shape = KVShape(
        num_layers=config.num_layers, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, dtype=kv_dtype,
        num_query_groups=config.num_query_groups, kv_channels=config.kv_channels,
    )  # fmt: skip
    kv_layers = model.kernels.allocate_kv(shape)
    first, second = (list(sizes) for sizes in zip(*STEPS, strict=True))
    steps = [([0] * len(first), first), (first, second)]
    return [model.forward(batch_of(model, kv_layers, computed, new)) for computed, new in steps]


def assert_same_bits(model: GPTModel, kv_dtype: torch.dtype) -> None:
    together = run(model, kv_dtype)
    model.decoder.unpack()
    alone = run(model, kv_dtype)
    assert all(torch.isfinite(hidden).all() for hidden in together)
    assert all(has_same_bits(*pair) for pair in zip(together, alone, strict=True))


def num_calls(model: GPTModel) -> int:
    return sum(isinstance(part, LayersAsOne) for part in model.decoder.parts)


@each_model
@each_isa
@each_dtype
@each_thread_count
def test_the_bits_are_those_of_single_operations(name: str, isa: str, dtype: torch.dtype, threads: int) -> None:
    model = build(make_cpu(isa, threads), dtype, **MODELS[name])
    assert (num_calls(model), len(model.decoder.parts)) == (1, 1)
    assert_same_bits(model, dtype)


@each_isa
@each_dtype
@pytest.mark.parametrize("name", ["grouped queries", "layer norms and biases", "int4"])
def test_the_bits_are_the_same_over_an_int8_cache(name: str, isa: str, dtype: torch.dtype) -> None:
    assert_same_bits(build(make_cpu(isa), dtype, **MODELS[name]), torch.int8)


@each_isa
@each_dtype
@pytest.mark.parametrize("kv_dtype", [None, torch.int8])
def test_the_bits_are_the_same_with_sinks_and_a_position_bias(
    isa: str, dtype: torch.dtype, kv_dtype: torch.dtype | None
) -> None:
    model = build(make_cpu(isa), dtype, softmax_type="learnable")
    last: Any = model.decoder.layers[-1]
    last.self_attention.core_attention.use_position_bias(draw(model.config.num_attention_heads, 23))
    model.decoder.pack()
    assert num_calls(model) == 1
    assert_same_bits(model, kv_dtype or dtype)


@each_isa
def test_layers_around_one_of_another_form_run_in_calls_of_their_own(isa: str) -> None:
    layers = {"num_layers": 6, "moe_layer_freq": (False, False, True, False, True, True)}
    model = build(make_cpu(isa), torch.bfloat16, **EXPERTS | layers)
    assert [isinstance(part, LayersAsOne) for part in model.decoder.parts] == [True, False, True, False, False]
    assert_same_bits(model, torch.bfloat16)


@pytest.mark.parametrize("isa", ISAS[:1])
@pytest.mark.parametrize("name", OF_ANOTHER_FORM)
def test_layers_of_another_form_run_by_themselves(name: str, isa: str) -> None:
    model = build(make_cpu(isa), **OF_ANOTHER_FORM[name])
    assert model.decoder.parts == list(model.decoder.layers)
    assert_same_bits(model, torch.float32)


@pytest.mark.parametrize("isa", ISAS[:1])
def test_a_step_without_tokens_gives_none(isa: str) -> None:
    model = build(make_cpu(isa))
    kv_layers = model.kernels.allocate_kv(
        KVShape(num_layers=2, num_blocks=2, block_size=BLOCK_SIZE, num_query_groups=2, kv_channels=8,
                dtype=torch.float32)
    )  # fmt: skip
    assert num_calls(model) == 1
    assert model.forward(batch_of(model, kv_layers, [0], [0])).shape == (0, 64)


def test_the_reference_runs_each_operation_by_itself() -> None:
    assert num_calls(build(ReferenceBackend())) == 0


@pytest.mark.parametrize("isa", ISAS[:1])
def test_a_profile_shows_each_operation(isa: str, tmp_path: Any) -> None:
    trace = Trace(tmp_path / "trace.json")
    model = build(ProfiledBackend(make_cpu(isa), trace))
    assert num_calls(model) == 0
    run(model, torch.float32)
    assert {"rms_norm", "rotate_and_append", "paged_attention"} <= {t.name.split()[0] for t in trace.totals()}


@pytest.mark.parametrize("isa", ISAS[:1])
def test_packed_layers_keep_their_matrices_and_unpacking_lets_them_go(isa: str) -> None:
    kernels = make_cpu(isa)
    assert isinstance(kernels, CpuBackend)
    model = build(kernels)
    expected = run(model, torch.float32)
    packed = model.decoder.parts
    for layer in model.decoder.layers:
        layer.mlp.linear_fc1.packed = layer.mlp.linear_fc2.packed = None  # type: ignore[union-attr]
        layer.input_layernorm.weight.data.zero_()  # type: ignore[union-attr]
    assert model.decoder.parts is packed
    assert all(has_same_bits(*pair) for pair in zip(run(model, torch.float32), expected, strict=True))
    model.decoder.unpack()
    assert num_calls(model) == 0
