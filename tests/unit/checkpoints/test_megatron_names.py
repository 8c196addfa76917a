"""Every name that some layer specification or format gives a tensor leads to one canonical name."""

from pathlib import Path

import pytest
import torch

from kilotron.checkpoints.inert_values import StoredTensor
from kilotron.checkpoints.mapped_file import FileIdentity, MappedFile
from kilotron.checkpoints.megatron_names import canonical_name, canonical_tensors, is_weight
from kilotron.checkpoints.sharded_tensor import ShardedTensor
from kilotron.errors import BrokenCheckpointError

LAYER = "decoder.layers.3."


@pytest.mark.parametrize(
    ("stored", "canonical"),
    [
        ("embedding.word_embeddings.weight", "embedding.word_embeddings.weight"),
        ("model.embedding.word_embeddings.weight", "embedding.word_embeddings.weight"),
        ("module.module.decoder.final_layernorm.weight", "decoder.final_layernorm.weight"),
        (LAYER + "self_attention.linear_qkv.layer_norm_weight", LAYER + "input_layernorm.weight"),
        (LAYER + "self_attention.linear_qkv.layer_norm_bias", LAYER + "input_layernorm.bias"),
        (LAYER + "mlp.linear_fc1.layer_norm_weight", LAYER + "pre_mlp_layernorm.weight"),
        (LAYER + "self_attention.linear_q_up_proj.layer_norm_weight", LAYER + "self_attention.q_layernorm.weight"),
        (LAYER + "self_attention.linear_kv_up_proj.layer_norm_weight", LAYER + "self_attention.kv_layernorm.weight"),
        (LAYER + "cross_attention.linear_q.layer_norm_weight", LAYER + "pre_cross_attn_layernorm.weight"),
        (LAYER + "mlp.experts.linear_fc1.weight12", LAYER + "mlp.experts.local_experts.12.linear_fc1.weight"),
        (LAYER + "self_attention.linear_qkv_down_proj.layer_norm_weight", LAYER + "input_layernorm.weight"),
        (LAYER + "self_attention.q_layernorm.weight", LAYER + "self_attention.q_layernorm.weight"),
        (LAYER + "mlp.shared_experts.linear_fc1.weight", LAYER + "mlp.shared_experts.linear_fc1.weight"),
        (LAYER + "mlp.shared_experts.gate_weight", LAYER + "mlp.shared_experts.gate_weight"),
        (LAYER + "mlp.experts.experts.7.linear_fc1.weight", LAYER + "mlp.experts.local_experts.7.linear_fc1.weight"),
        (LAYER + "mlp.experts.linear_fc2.bias0", LAYER + "mlp.experts.local_experts.0.linear_fc2.bias"),
        (LAYER + "mlp.router.expert_bias", LAYER + "mlp.router.expert_bias"),
        ("something.else", "something.else"),
    ],
)
def test_names_of_all_layer_specifications_are_one(stored: str, canonical: str) -> None:
    assert canonical_name(stored) == canonical


@pytest.mark.parametrize(
    "name",
    [
        "decoder.layers.self_attention.core_attention._extra_state/shard_0_4",
        "output_layer._extra_state",
        "decoder.layers.0.mlp.experts.linear_fc1._extra_state",
        "decoder.layers.0.mlp.experts.linear_fc1._extra_state11",
        "decoder.layers.0.self_attention.core_attention.fused_attention._extra_state",
        "rng_state/shard_0.0_1.1",
        "optimizer.state.exp_avg.decoder.layers.mlp.linear_fc1.weight",
        "chained_0.optimizer.state.exp_avg.x",
        "optimizer_state.step",
        "opt_param_scheduler.num_steps",
        "rerun_state_machine_state/shard_0_1",
        "common_state/shard_0_1",
    ],
)
def test_the_state_of_training_is_no_weight(name: str) -> None:
    assert not is_weight(name)


@pytest.mark.parametrize("name", ["decoder.layers.mlp.linear_fc1.weight", "x.arguments.weight", "model.optimizers"])
def test_weights_are_weights(name: str) -> None:
    assert is_weight(name)


@pytest.fixture
def stack(tmp_path: Path) -> StoredTensor:
    """A tensor of two layers and two experts."""
    file = tmp_path / "numbers"
    file.write_bytes(torch.arange(8.0).numpy().tobytes())
    return StoredTensor(MappedFile(file, FileIdentity.of(file)), 0, "F32", (2, 2, 2), (4, 2, 1))


def read(stored: dict[str, StoredTensor]) -> dict[str, list[float]]:
    tensors = canonical_tensors({name: ShardedTensor.whole(name, tensor) for name, tensor in stored.items()})
    return {name: tensor.read_slice().tolist() for name, tensor in tensors.items()}


def test_stacks_of_layers_and_experts_are_split(stack: StoredTensor) -> None:
    assert read({"decoder.layers.mlp.experts.experts.linear_fc2.weight": stack}) == {
        f"decoder.layers.{layer}.mlp.experts.local_experts.{expert}.linear_fc2.weight": [
            4.0 * layer + 2 * expert,
            4.0 * layer + 2 * expert + 1,
        ]
        for layer in range(2)
        for expert in range(2)
    }


def test_layers_that_are_stored_one_by_one_are_not_split(stack: StoredTensor) -> None:
    names = read({"decoder.layers.1.mlp.experts.experts.linear_fc2.weight": stack})
    assert list(names) == [
        f"decoder.layers.1.mlp.experts.local_experts.{expert}.linear_fc2.weight" for expert in (0, 1)
    ]


def test_gate_and_up_that_are_stored_apart_are_joined(stack: StoredTensor) -> None:
    name = "decoder.layers.0.mlp.linear_fc1.weight"
    joined = read({name + "_w": stack, name + "_v": stack})
    assert joined == {name: torch.arange(8.0).view(2, 2, 2).repeat(2, 1, 1).tolist()}


def test_gate_and_up_of_single_experts_are_joined(stack: StoredTensor) -> None:
    name = "decoder.layers.0.mlp.experts.experts.1.linear_fc1.weight"
    joined = read({name + "_w": stack, name + "_v": stack})
    assert list(joined) == ["decoder.layers.0.mlp.experts.local_experts.1.linear_fc1.weight"]


def test_two_tensors_of_one_name_are_refused(stack: StoredTensor) -> None:
    names = (LAYER + "input_layernorm.weight", LAYER + "self_attention.linear_qkv.layer_norm_weight")
    with pytest.raises(
        BrokenCheckpointError, match=r"expected one tensor for decoder\.layers\.3\.input_layernorm\.weight"
    ):
        read(dict.fromkeys(names, stack))


def test_t5_keeps_one_of_its_duplicates(stack: StoredTensor) -> None:
    assert list(read({"output_layer.bias": stack, "lm_head.output_layer.bias": stack})) == ["lm_head.output_layer.bias"]
