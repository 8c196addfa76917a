"""Weights are checked before any is read, and what is wrong is named."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from kilotron.checkpoints import weight_names
from kilotron.errors import BrokenCheckpointError
from kilotron.kernels.reference.backend import ReferenceBackend
from kilotron.models.gpt_model import GPTModel
from kilotron.models.registry import read_transformer_config
from kilotron.models.weight_loading import load_weights
from unit.kernels.cpu_backends import make_cpu, needs_native

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 24,
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 4,
    "n_positions": 64,
}


class Info(NamedTuple):
    """As TensorInfo."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class MemoryCheckpoint:
    """A checkpoint of tensors in memory, in a file that does not exist."""

    def __init__(self, config: dict[str, Any], data: dict[str, Tensor]) -> None:
        self.config, self.data = config, data
        self.reads: list[str] = []
        dtypes = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int32: "I32"}
        file = Path("/models/tiny/model.safetensors")
        self.tensors = {name: Info(file, dtypes[value.dtype], tuple(value.shape)) for name, value in data.items()}

    def read(self, name: str) -> Tensor:
        self.reads.append(name)
        return self.data[name]

    def drop_pages(self) -> None: ...


def model_of(config: dict[str, Any]) -> GPTModel:
    return GPTModel(read_transformer_config(config), ReferenceBackend())


def llama_data() -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (24, 16),
        "model.norm.weight": (16,),
        "lm_head.weight": (24, 16),
    }
    for layer in ("model.layers.0.", "model.layers.1."):
        shapes |= {layer + "self_attn.q_proj.weight": (16, 16), layer + "self_attn.k_proj.weight": (8, 16)}
        shapes |= {layer + "self_attn.v_proj.weight": (8, 16), layer + "self_attn.o_proj.weight": (16, 16)}
        shapes |= {layer + "mlp.gate_proj.weight": (20, 16), layer + "mlp.up_proj.weight": (20, 16)}
        shapes |= {layer + "mlp.down_proj.weight": (16, 20)}
        shapes |= {layer + "input_layernorm.weight": (16,), layer + "post_attention_layernorm.weight": (16,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def gpt2_data(prefix: str) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (24, 16), "wpe.weight": (64, 16), "ln_f.weight": (16,)}
    shapes |= {"ln_f.bias": (16,), "h.0.attn.c_attn.weight": (16, 48), "h.0.attn.c_attn.bias": (48,)}
    shapes |= {"h.0.attn.c_proj.weight": (16, 16), "h.0.attn.c_proj.bias": (16,), "h.0.attn.bias": (1, 1, 64, 64)}
    shapes |= {"h.0.mlp.c_fc.weight": (16, 64), "h.0.mlp.c_fc.bias": (64,), "h.0.mlp.c_proj.weight": (64, 16)}
    shapes |= {"h.0.mlp.c_proj.bias": (16,), "h.0.ln_1.weight": (16,), "h.0.ln_1.bias": (16,)}
    shapes |= {"h.0.ln_2.weight": (16,), "h.0.ln_2.bias": (16,)}
    return {prefix + name: torch.randn(shape) for name, shape in shapes.items()}


def test_parameters_have_the_names_of_megatron_and_take_no_memory_before_loading() -> None:
    parameters = dict(model_of(LLAMA).named_parameters())
    assert parameters["decoder.layers.1.self_attention.linear_qkv.weight"].shape == (32, 16)
    assert parameters["decoder.layers.1.mlp.linear_fc1.weight"].shape == (40, 16)
    assert {"embedding.word_embeddings.weight", "decoder.final_layernorm.weight", "output_layer.weight"} < set(
        parameters
    )
    assert all(parameter.is_meta for parameter in parameters.values())


def test_query_key_and_value_are_stacked_in_that_order() -> None:
    model, data = model_of(LLAMA), llama_data()
    load_weights(model, MemoryCheckpoint(LLAMA, data), torch.float32)
    parts = [data[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"]
    packed = model.decoder.layers[1].self_attention.linear_qkv.packed
    assert torch.equal(packed.weight, torch.cat(parts))


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_gpt2_loads_with_and_without_the_prefix_and_ignores_its_mask(prefix: str) -> None:
    model, data = model_of(GPT2), gpt2_data(prefix)
    assert load_weights(model, MemoryCheckpoint(GPT2, data), torch.float32) == []
    packed = model.decoder.layers[0].mlp.linear_fc2.packed
    assert torch.equal(packed.weight, data[prefix + "h.0.mlp.c_proj.weight"].t())


def test_all_missing_and_misshaped_tensors_are_named_before_anything_is_read() -> None:
    data = llama_data()
    del data["model.layers.1.self_attn.v_proj.weight"]
    data["model.norm.weight"] = torch.randn(17)
    checkpoint = MemoryCheckpoint(LLAMA, data)
    with pytest.raises(BrokenCheckpointError) as error:
        load_weights(model_of(LLAMA), checkpoint, torch.float32)
    assert "tensor 'model.layers.1.self_attn.v_proj.weight' of shape (8, 16) is missing" in str(error.value)
    assert "/models/tiny/model.safetensors: tensor 'model.norm.weight' has shape (17,), expected (16,)" in str(
        error.value
    )
    assert checkpoint.reads == []


def test_a_dtype_that_is_no_float_is_refused() -> None:
    data = llama_data() | {"model.norm.weight": torch.zeros(16, dtype=torch.int32)}
    with pytest.raises(BrokenCheckpointError, match="has dtype I32, expected one of F32, BF16, F16"):
        load_weights(model_of(LLAMA), MemoryCheckpoint(LLAMA, data), torch.float32)


def test_many_problems_are_counted_rather_than_listed() -> None:
    with pytest.raises(BrokenCheckpointError, match=r"and 13 more$"):
        load_weights(model_of(LLAMA), MemoryCheckpoint(LLAMA, {}), torch.float32)


def test_tensors_without_a_place_are_returned_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    extra = {"model.extra.weight": torch.zeros(1), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)}
    leftovers = load_weights(model_of(LLAMA), MemoryCheckpoint(LLAMA, llama_data() | extra), torch.float32)
    assert leftovers == ["model.extra.weight"]
    assert "model.extra.weight" in caplog.text


def test_a_tied_model_accepts_a_copy_of_its_embedding_and_nothing_else() -> None:
    tied, data = LLAMA | {"tie_word_embeddings": True}, llama_data()
    with pytest.raises(BrokenCheckpointError, match=r"'lm_head\.weight' differs from 'model\.embed_tokens\.weight'"):
        load_weights(model_of(tied), MemoryCheckpoint(tied, data), torch.float32)
    data["lm_head.weight"] = data["model.embed_tokens.weight"].clone()
    model = model_of(tied)
    assert load_weights(model, MemoryCheckpoint(tied, data), torch.float32) == []
    assert model.output_layer.packed.weight is model.embedding.word_embeddings.weight


def test_progress_ends_at_the_total() -> None:
    calls: list[tuple[int, int]] = []
    checkpoint = MemoryCheckpoint(LLAMA, llama_data())
    load_weights(
        model_of(LLAMA), checkpoint, torch.bfloat16, on_progress=lambda done, total: calls.append((done, total))
    )
    assert calls[-1][0] == calls[-1][1] == 2 * sum(tensor.numel() for tensor in checkpoint.data.values())
    assert calls == sorted(calls)


def test_weights_can_be_replaced_by_loading_again() -> None:
    model, second = model_of(LLAMA), llama_data()
    load_weights(model, MemoryCheckpoint(LLAMA, llama_data()), torch.float32)
    load_weights(model, MemoryCheckpoint(LLAMA, second), torch.float32)
    assert torch.equal(model.output_layer.packed.weight, second["lm_head.weight"])


@needs_native
def test_layers_are_one_call_after_loading_and_never_hold_weights_of_an_earlier_load() -> None:
    model = GPTModel(read_transformer_config(LLAMA), make_cpu())
    alone = list(model.decoder.layers)
    assert model.decoder.parts == alone
    load_weights(model, MemoryCheckpoint(LLAMA, llama_data()), torch.float32)
    (first,) = model.decoder.parts
    load_weights(model, MemoryCheckpoint(LLAMA, llama_data()), torch.float32)
    (second,) = model.decoder.parts
    assert first is not second
    broken = MemoryCheckpoint(LLAMA, llama_data())
    del broken.data["model.norm.weight"]
    with pytest.raises(KeyError):
        load_weights(model, broken, torch.float32)
    assert model.decoder.parts == alone


def test_grouped_rows_are_regrouped_to_queries_keys_values() -> None:
    stored = torch.arange(2 * 4 * 3).reshape(24, 1)  # 2 groups of 2 queries, a key and a value, 3 channels each
    heads = weight_names.rearrange(stored, "grouped_qkv", 2, 3)[::3, 0] // 3
    assert heads.tolist() == [0, 1, 4, 5, 2, 6, 3, 7]
