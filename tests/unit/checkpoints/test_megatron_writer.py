"""Tests of written torch_dist checkpoints: what lies where, and that torch and our own reader find it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from kilotron.checkpoints.megatron import MegatronCheckpoint
from kilotron.checkpoints.megatron_keys import extra_state_keys, place_tensors
from kilotron.checkpoints.megatron_writer import write_chunks, write_common_state, write_metadata
from kilotron.checkpoints.output_tensor import DigestingStream, OutputTensor
from kilotron.errors import BrokenCheckpointError, CheckpointError

ATTENTION = "self_attention.linear_qkv.weight"
EXPERT = "mlp.experts.local_experts"


def tensor(name: str, *shape: int, value: float = 0.0) -> OutputTensor:
    return OutputTensor(name, "F32", shape, lambda: torch.full(shape, value))


def layers(*names: str, count: int = 2) -> list[OutputTensor]:
    return [
        tensor(f"decoder.layers.{layer}.{name}", 4, 2, value=float(layer)) for layer in range(count) for name in names
    ]


def keys_of(tensors: Sequence[OutputTensor], *, has_fused_moe_norms: bool = False) -> set[str]:
    return {place.key for place in place_tensors(tensors, has_fused_moe_norms=has_fused_moe_norms).values()}


def write(folder: Path, tensors: Sequence[OutputTensor], **arguments: Any) -> None:
    places = place_tensors(tensors, has_fused_moe_norms=False)
    with (folder / "__0_0.distcp").open("wb") as file:
        weights = write_chunks(DigestingStream(file), tensors, places)
    with (folder / "__0_common.distcp").open("wb") as file:
        common = write_common_state(DigestingStream(file), arguments, places)
    write_metadata(folder, {"__0_0.distcp": weights, "__0_common.distcp": common}, tensors, places)


def test_equal_layers_are_one_tensor() -> None:
    places = place_tensors(layers(ATTENTION), has_fused_moe_norms=False)

    place = places[f"decoder.layers.1.{ATTENTION}"]
    assert place.key == f"decoder.layers.{ATTENTION}"
    assert (place.offsets, place.sizes, place.global_shape) == ((1, 0, 0), (1, 4, 2), (2, 4, 2))


def test_layers_that_differ_have_keys_of_their_own() -> None:
    tensors = [*layers(ATTENTION), tensor("decoder.layers.1.mlp.router.weight", 3, 2)]

    assert keys_of(tensors) == {
        f"decoder.layers.0.{ATTENTION}",
        f"decoder.layers.1.{ATTENTION}",
        "decoder.layers.1.mlp.router.weight",
    }


def test_experts_are_stacked_behind_layers() -> None:
    tensors = layers(f"{EXPERT}.0.linear_fc1.weight", f"{EXPERT}.1.linear_fc1.weight", f"{EXPERT}.2.linear_fc1.weight")

    place = place_tensors(tensors, has_fused_moe_norms=False)[f"decoder.layers.1.{EXPERT}.2.linear_fc1.weight"]

    assert place.key == "decoder.layers.mlp.experts.experts.linear_fc1.weight"
    assert (place.offsets, place.global_shape) == ((1, 2, 0, 0), (2, 3, 4, 2))


def test_norms_lie_with_the_linear_layer_behind_them() -> None:
    assert keys_of(layers("input_layernorm.weight", "pre_mlp_layernorm.bias")) == {
        "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
        "decoder.layers.mlp.linear_fc1.layer_norm_bias",
    }


@pytest.mark.parametrize(
    ("has_fused_moe_norms", "name"), [(True, "mlp.linear_fc1.layer_norm_weight"), (False, "pre_mlp_layernorm.weight")]
)
def test_the_norm_before_experts_is_named_as_the_implementation_has_it(has_fused_moe_norms: bool, name: str) -> None:
    tensors = layers("mlp.router.weight", "pre_mlp_layernorm.weight")

    assert f"decoder.layers.{name}" in keys_of(tensors, has_fused_moe_norms=has_fused_moe_norms)


def test_norms_beside_latent_attention_keep_their_names() -> None:
    tensors = layers("self_attention.linear_kv_down_proj.weight", "input_layernorm.weight", "pre_mlp_layernorm.weight")

    assert {"decoder.layers.input_layernorm.weight", "decoder.layers.pre_mlp_layernorm.weight"} <= keys_of(tensors)


def test_extra_states_are_counted_as_megatron_counts_them() -> None:
    stacked = place_tensors(layers(ATTENTION, f"{EXPERT}.0.linear_fc2.weight"), has_fused_moe_norms=False)
    apart = place_tensors([*layers(ATTENTION), tensor("decoder.layers.0.x.weight", 1)], has_fused_moe_norms=False)

    assert "decoder.layers.self_attention.linear_qkv._extra_state/shard_1_2" in extra_state_keys(stacked)
    assert "decoder.layers.mlp.experts.experts.linear_fc2._extra_state/shard_1.0_2.1" in extra_state_keys(stacked)
    assert "decoder.layers.1.self_attention.core_attention._extra_state/shard_0_1" in extra_state_keys(apart)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torch_reads_what_was_written(tmp_path: Path) -> None:
    write(tmp_path, [*layers(ATTENTION, count=3), tensor("output_layer.weight", 5, 2, value=7.0)])

    state = {f"decoder.layers.{ATTENTION}": torch.empty(3, 4, 2), "output_layer.weight": torch.empty(5, 2)}
    dcp.load(state, storage_reader=dcp.FileSystemReader(tmp_path), no_dist=True)

    assert state[f"decoder.layers.{ATTENTION}"][:, 0, 0].tolist() == [0.0, 1.0, 2.0]
    assert state["output_layer.weight"].eq(7.0).all()


def test_our_own_reader_reads_what_was_written(tmp_path: Path) -> None:
    write(tmp_path, layers(ATTENTION, "input_layernorm.weight"), num_layers=2, params_dtype=torch.float32)

    with MegatronCheckpoint.open(tmp_path) as checkpoint:
        assert checkpoint.args == {"num_layers": 2, "params_dtype": "float32"}
        assert checkpoint.read(f"decoder.layers.1.{ATTENTION}").eq(1.0).all()
        assert "decoder.layers.0.input_layernorm.weight" in checkpoint.tensors


def test_only_the_rows_of_a_view_are_saved(tmp_path: Path) -> None:
    large = torch.ones(100_000, 4)
    view = OutputTensor("output_layer.weight", "F32", (2, 4), lambda: large[:2])

    write(tmp_path, [view])

    assert (tmp_path / "__0_0.distcp").stat().st_size < 10_000


def test_a_tensor_that_is_not_what_was_announced_is_refused(tmp_path: Path) -> None:
    wrong = OutputTensor("output_layer.weight", "BF16", (2, 4), lambda: torch.ones(2, 4))

    with pytest.raises(CheckpointError, match=r"output_layer\.weight.*BF16 \(2, 4\) was announced"):
        write(tmp_path, [wrong])


def test_a_tensor_in_no_file_is_refused(tmp_path: Path) -> None:
    tensors = layers(ATTENTION)

    with pytest.raises(BrokenCheckpointError, match=r"decoder\.layers\.0\.self_attention"):
        write_metadata(tmp_path, {}, tensors, place_tensors(tensors, has_fused_moe_norms=False))


def test_each_stack_has_its_own_number_of_layers() -> None:
    encoder = [tensor(f"encoder.layers.{layer}.{ATTENTION}", 4, 2) for layer in range(3)]
    odd = tensor("encoder.layers.0.self_attention.relative_attention_bias.weight", 4, 2)

    places = place_tensors([*encoder, *layers(ATTENTION)], has_fused_moe_norms=False)

    assert places[f"encoder.layers.2.{ATTENTION}"].global_shape == (3, 4, 2)
    assert places[f"decoder.layers.1.{ATTENTION}"].global_shape == (2, 4, 2)
    assert keys_of([*encoder[:2], odd, *layers(ATTENTION)]) == {
        f"encoder.layers.0.{ATTENTION}",
        f"encoder.layers.1.{ATTENTION}",
        odd.name,
        f"decoder.layers.{ATTENTION}",
    }


def test_the_output_layer_of_a_t5_lies_there_once_under_both_of_its_names(tmp_path: Path) -> None:
    write(tmp_path, [tensor("lm_head.output_layer.weight", 6, 2, value=3.0)], num_layers=1)

    loaded = {name: torch.zeros(6, 2) for name in ("lm_head.output_layer.weight", "output_layer.weight")}
    dcp.load(loaded, checkpoint_id=tmp_path)

    assert all(torch.equal(value, torch.full((6, 2), 3.0)) for value in loaded.values())
    with MegatronCheckpoint.open(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["lm_head.output_layer.weight"]
