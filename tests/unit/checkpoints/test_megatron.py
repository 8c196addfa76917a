"""One model, saved in every layout that Megatron has, reads as the same whole tensors."""

import argparse
import itertools
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kilotron.checkpoints.huggingface import HuggingFaceCheckpoint
from kilotron.checkpoints.mapped_file import MAX_MAPPED
from kilotron.checkpoints.megatron import MegatronCheckpoint
from kilotron.checkpoints.open_checkpoint import open_checkpoint
from kilotron.errors import BrokenCheckpointError, CheckpointError
from unit.checkpoints.written_files import write_model
from unit.checkpoints.written_megatron import (
    ARGS,
    FFN,
    LAYERS,
    model_tensors,
    save_dcp,
    shard_of,
    stacked,
    write_dist,
    write_legacy,
    write_pieces,
    write_rank,
)

EXPERTS = 4


def assert_same(checkpoint: MegatronCheckpoint, expected: Mapping[str, Tensor]) -> None:
    assert {name: info.shape for name, info in checkpoint.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in expected.items()
    }
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.read(name), tensor), name


def local_experts(tensors: Mapping[str, Tensor], first: int, count: int) -> dict[str, Tensor]:
    """The tensors of one expert rank: its own experts, counted from 0, and all that is no expert's."""
    held = {}
    for name, tensor in tensors.items():
        before, separator, after = name.partition("local_experts.")
        number, _, rest = after.partition(".")
        if not separator:
            held[name] = tensor
        elif first <= int(number) < first + count:
            held[f"{before}local_experts.{int(number) - first}.{rest}"] = tensor
    return held


# Legacy ranks.


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("pipeline", [1, 2, 4])
def test_legacy_ranks_are_merged(tmp_path: Path, tensor: int, pipeline: int) -> None:
    whole = model_tensors()
    write_legacy(tmp_path / "iter_0000005", whole, tensor=tensor, pipeline=pipeline)
    with MegatronCheckpoint.open(tmp_path) as checkpoint:
        assert (checkpoint.format, checkpoint.iteration) == ("torch", 5)
        assert_same(checkpoint, whole)


@pytest.mark.parametrize("is_cut", [False, True])
def test_second_number_of_a_rank_is_the_experts_without_pipeline(tmp_path: Path, is_cut: bool) -> None:
    whole = model_tensors(num_layers=1, num_experts=EXPERTS)
    tensor = 2 if is_cut else 1
    sizes = {"tensor_model_parallel_size": tensor, "expert_model_parallel_size": 2}
    for expert_rank in range(2):
        held = local_experts(whole, expert_rank * 2, 2)
        for rank in range(tensor):
            shards = {name: shard_of(name, value, rank, tensor) for name, value in held.items()}
            write_rank(tmp_path / f"mp_rank_{rank:02d}_{expert_rank:03d}", shards, ARGS | sizes)
    assert_same(MegatronCheckpoint.open(tmp_path), whole)


def test_experts_that_are_not_cut_need_no_file_of_every_pair_of_ranks(tmp_path: Path) -> None:
    whole = model_tensors(num_layers=1, num_experts=EXPERTS)
    sizes = {"tensor_model_parallel_size": 2, "expert_model_parallel_size": 2, "expert_tensor_parallel_size": 1}
    for rank in range(2):
        held = local_experts(whole, rank * 2, 2)
        shards = {name: value if "experts." in name else shard_of(name, value, rank, 2) for name, value in held.items()}
        write_rank(tmp_path / f"mp_rank_{rank:02d}_{rank:03d}", shards, ARGS | sizes)
    assert_same(MegatronCheckpoint.open(tmp_path), whole)


def grouped(shards: Mapping[str, Tensor], num_experts: int) -> dict[str, Tensor]:
    """As Megatron's GroupedMLP keeps experts: it reads them by weight1.view(num_experts, hidden, -1), and weight2."""
    experts = "decoder.layers.0.mlp.experts."
    rest = {name: value for name, value in shards.items() if experts not in name}
    for number in (1, 2):
        turned = [shards[f"{experts}local_experts.{one}.linear_fc{number}.weight"].t() for one in range(num_experts)]
        rest[f"{experts}weight{number}"] = torch.stack(turned).reshape((8, -1) if number == 1 else (-1, 8))
    return rest


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("expert", [1, 2])
def test_experts_of_a_grouped_layer_are_told_apart(tmp_path: Path, tensor: int, expert: int) -> None:
    whole = model_tensors(num_layers=1, num_experts=EXPERTS)
    sizes = {"tensor_model_parallel_size": tensor, "expert_model_parallel_size": expert, "num_experts": EXPERTS}
    count = EXPERTS // expert
    for number, rank in itertools.product(range(expert), range(tensor)):
        held = local_experts(whole, number * count, count)
        shards = {name: shard_of(name, value, rank, tensor) for name, value in held.items()}
        name = f"mp_rank_{rank:02d}" + (f"_{number:03d}" if expert > 1 else "")
        write_rank(tmp_path / name, grouped(shards, count), ARGS | sizes)
    assert_same(MegatronCheckpoint.open(tmp_path), whole)


@pytest.mark.parametrize("is_flat", [True, False])
def test_experts_in_one_stack_are_told_apart(tmp_path: Path, is_flat: bool) -> None:
    whole = model_tensors(num_layers=1, num_experts=EXPERTS)
    experts = "decoder.layers.0.mlp.experts."
    held = {name: value for name, value in whole.items() if experts not in name}
    for kind in ("linear_fc1.weight", "linear_fc2.weight"):
        matrices = [whole[f"{experts}local_experts.{expert}.{kind}"] for expert in range(EXPERTS)]
        held[experts + kind] = torch.cat(matrices) if is_flat else torch.stack(matrices)
    write_rank(tmp_path / "mp_rank_00", held, ARGS | {"num_experts": EXPERTS})
    assert_same(MegatronCheckpoint.open(tmp_path), whole)


@pytest.mark.parametrize("is_cut", [True, False])
def test_fused_down_projections_are_told_apart(tmp_path: Path, is_cut: bool) -> None:
    attention = "decoder.layers.0.self_attention."
    whole = {"q": torch.randn(6, 8), "kv": torch.randn(4, 8)}
    for rank in range(2):
        held = [value.chunk(2)[rank] if is_cut else value for value in whole.values()]
        sizes = {"tensor_model_parallel_size": 2, "q_lora_rank": 6, "kv_lora_rank": 3, "qk_pos_emb_head_dim": 1}
        write_rank(
            tmp_path / f"mp_rank_{rank:02d}", {attention + "linear_qkv_down_proj.weight": torch.cat(held)}, sizes
        )
    parts = {f"{attention}linear_{kind}_down_proj.weight": value for kind, value in whole.items()}
    assert_same(MegatronCheckpoint.open(tmp_path), parts)


@pytest.mark.parametrize("num_experts", [None, 5])
def test_a_grouped_layer_of_another_number_of_experts_is_refused(tmp_path: Path, num_experts: int | None) -> None:
    shards = grouped(model_tensors(num_layers=1, num_experts=EXPERTS), EXPERTS)
    write_rank(tmp_path / "mp_rank_00", shards, ARGS | {"num_experts": num_experts, "expert_model_parallel_size": None})
    with pytest.raises(BrokenCheckpointError, match=r"experts\.weight1': expected matrices of \d experts"):
        MegatronCheckpoint.open(tmp_path)


@pytest.mark.parametrize("name", ["weight1", "weight2", "linear_fc1.weight"])
@pytest.mark.parametrize("shape", [(0, 0), (0,), (), (2**40, 0), (0, 2**40)])
def test_an_empty_stack_of_endless_experts_is_refused(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    tensors = {f"decoder.layers.0.mlp.experts.{name}": torch.empty(shape)}
    write_rank(tmp_path / "mp_rank_00", tensors, ARGS | {"num_experts": 2**40})
    with pytest.raises(BrokenCheckpointError, match="of 1099511627776 experts, found shape"):
        MegatronCheckpoint.open(tmp_path)


def test_a_missing_expert_rank_is_refused(tmp_path: Path) -> None:
    held = local_experts(model_tensors(num_layers=1, num_experts=EXPERTS), 0, 2)
    write_rank(tmp_path / "mp_rank_00_000", held, ARGS | {"expert_model_parallel_size": 2})
    with pytest.raises(BrokenCheckpointError, match="found no expert rank 1 in pipeline stage 0"):
        MegatronCheckpoint.open(tmp_path)


def test_virtual_stages_take_turns(tmp_path: Path) -> None:
    whole = model_tensors()
    order = {0: [0, 2], 1: [1, 3]}  # two ranks of two stages each, one layer in each stage
    for rank, layers in order.items():
        content = {"args": argparse.Namespace(**ARGS, pipeline_model_parallel_size=2)}
        for chunk, number in enumerate(layers):
            layer = f"decoder.layers.{number}."
            chunk_tensors = {
                name.replace(layer, "decoder.layers.0."): value for name, value in whole.items() if layer in name
            }
            is_first, is_last = number == 0, number == LAYERS - 1
            chunk_tensors |= {name: value for name, value in whole.items() if is_first and "embedding" in name}
            chunk_tensors |= {name: value for name, value in whole.items() if is_last and "final" in name}
            content[f"model{chunk}"] = chunk_tensors  # type: ignore[assignment]
        folder = tmp_path / f"mp_rank_00_{rank:03d}"
        folder.mkdir()
        torch.save(content, folder / "model_optim_rng.pt")
    assert_same(MegatronCheckpoint.open(tmp_path), whole)


def test_an_untied_output_layer_is_kept_and_merged(tmp_path: Path) -> None:
    whole = model_tensors() | {"output_layer.weight": torch.randn(32, 8)}
    sizes = {"tensor_model_parallel_size": 2, "untie_embeddings_and_output_weights": True}
    for rank in range(2):
        shards = {name: shard_of(name, value, rank, 2) for name, value in whole.items()}
        write_rank(tmp_path / f"mp_rank_{rank:02d}", shards, ARGS | sizes)
    assert_same(MegatronCheckpoint.open(tmp_path), whole)


def test_an_ungated_mlp_is_merged_plainly(tmp_path: Path) -> None:
    first, second = torch.randn(FFN, 8), torch.randn(8, FFN)
    for rank in range(2):
        shards = {
            "decoder.layers.0.mlp.linear_fc1.weight": first.chunk(2)[rank].clone(),
            "decoder.layers.0.mlp.linear_fc2.weight": second.chunk(2, dim=1)[rank].clone(),
        }
        write_rank(tmp_path / f"mp_rank_{rank:02d}", shards, {"tensor_model_parallel_size": 2})
    checkpoint = MegatronCheckpoint.open(tmp_path)
    assert torch.equal(checkpoint.read("decoder.layers.0.mlp.linear_fc1.weight"), first)
    assert torch.equal(checkpoint.read("decoder.layers.0.mlp.linear_fc2.weight"), second)


@pytest.mark.parametrize("is_cut", [True, False])
def test_down_projections_of_latent_attention_may_be_cut_or_whole(tmp_path: Path, is_cut: bool) -> None:
    name, whole = "decoder.layers.0.self_attention.linear_q_down_proj.weight", torch.randn(6, 8)
    for rank in range(2):
        held = whole.chunk(2)[rank].clone() if is_cut else whole
        write_rank(tmp_path / f"mp_rank_{rank:02d}", {name: held}, {"tensor_model_parallel_size": 2, "q_lora_rank": 6})
    assert torch.equal(MegatronCheckpoint.open(tmp_path).read(name), whole)


def test_legacy_weights_stay_in_their_file_until_they_are_read(tmp_path: Path) -> None:
    write_rank(tmp_path / "mp_rank_00", {"embedding.word_embeddings.weight": torch.ones(300, 300)}, ARGS)
    checkpoint = MegatronCheckpoint.open(tmp_path)
    held = checkpoint.read("embedding.word_embeddings.weight")
    held.zero_()  # a private view: the file never changes
    checkpoint.close()
    assert held.sum() == 0
    assert MegatronCheckpoint.open(tmp_path).read("embedding.word_embeddings.weight").sum() == 90_000


def test_a_model_from_before_megatron_core_gets_a_remedy(tmp_path: Path) -> None:
    write_rank(tmp_path / "mp_rank_00", {"language_model": {}}, ARGS)  # type: ignore[dict-item]
    with pytest.raises(CheckpointError, match=r"convert\.py --saver core"):
        MegatronCheckpoint.open(tmp_path)


# The distributed format.


@pytest.mark.parametrize("has_common_file", [True, False])
@pytest.mark.parametrize("num_experts", [0, 3])
def test_both_generations_of_torch_dist_are_read(tmp_path: Path, has_common_file: bool, num_experts: int) -> None:
    whole = model_tensors(num_experts=num_experts)
    folder = write_dist(tmp_path / "iter_0000005", stacked(whole), has_common_file=has_common_file)
    with MegatronCheckpoint.open(folder) as checkpoint:
        assert (checkpoint.format, checkpoint.iteration) == ("torch_dist", 5)
        assert checkpoint.config == ARGS | {"architectures": ["MegatronGPT"]}
        assert_same(checkpoint, whole)


def test_torch_dcp_is_read(tmp_path: Path) -> None:
    whole = model_tensors()
    state = {f"model.{name}": tensor for name, tensor in whole.items()}
    save_dcp(tmp_path, state | {"args": argparse.Namespace(**ARGS), "optimizer.state.exp_avg": torch.ones(2)})
    checkpoint = MegatronCheckpoint.open(tmp_path)
    assert (checkpoint.format, dict(checkpoint.args)) == ("torch_dcp", ARGS)
    assert_same(checkpoint, whole)


def test_megatron_fsdp_gets_a_remedy(tmp_path: Path) -> None:
    save_dcp(tmp_path, {"model.module.embedding.word_embeddings.weight": torch.ones(2), "args": argparse.Namespace()})
    with pytest.raises(CheckpointError, match=r"fsdp_dtensor\), which is not read: .* --ckpt-format torch_dist"):
        MegatronCheckpoint.open(tmp_path)


def test_without_saved_arguments_the_message_says_so(tmp_path: Path) -> None:
    folder = write_dist(tmp_path / "c", {"embedding.word_embeddings.weight": torch.ones(2)}, has_common_file=True)
    torch.save({"iteration": 1}, folder / "common.pt")
    with pytest.raises(BrokenCheckpointError, match=r"common\.pt: expected the saved arguments, `args`, found none"):
        MegatronCheckpoint.open(folder)


def test_optimizer_files_need_not_be_there(tmp_path: Path) -> None:
    whole = {"embedding.word_embeddings.weight": torch.ones(2, 2)}
    folder = write_pieces(tmp_path / "c", {"optimizer.state.exp_avg.x": (torch.ones(4), (2,))})
    (folder / "__1_0.distcp").unlink()
    with pytest.raises(BrokenCheckpointError, match="expected weights of a model, found none"):
        MegatronCheckpoint.open(folder)
    other = write_pieces(tmp_path / "d", {name: (value, (2, 2)) for name, value in whole.items()})
    assert_same(MegatronCheckpoint.open(other), whole)


WHOLE = torch.arange(4 * 12 * 10, dtype=torch.float32).view(4, 12, 10)
NAME = "decoder.layers.{}.self_attention.linear_qkv.weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [(4, 12, 10), (1, 12, 10), (1, 4, 10), (2, 5, 10), (1, 12, 3), (3, 5, 4)])
def test_pieces_of_any_shape_make_the_tensor(tmp_path: Path, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    whole = WHOLE.to(dtype)
    folder = write_pieces(tmp_path / "c", {NAME.replace(".{}", ""): (whole, sizes)})
    assert_same(MegatronCheckpoint.open(folder), {NAME.format(layer): whole[layer] for layer in range(4)})


@pytest.mark.parametrize(
    "index", [(slice(0, 3),), (slice(4, 9), slice(2, 8)), (slice(None), slice(9, 10)), (slice(5, 5),), ()]
)
def test_a_slice_equals_the_slice_of_the_whole(tmp_path: Path, index: tuple[slice, ...]) -> None:
    folder = write_pieces(tmp_path / "c", {NAME.replace(".{}", ""): (WHOLE, (1, 4, 4))})
    checkpoint = MegatronCheckpoint.open(folder)
    for layer in range(4):
        assert torch.equal(checkpoint.read_slice(NAME.format(layer), index), WHOLE[layer][index])


def test_a_slice_reads_only_the_pieces_it_touches(tmp_path: Path) -> None:
    folder = write_pieces(tmp_path / "c", {"embedding.word_embeddings.weight": (torch.ones(8, 4), (4, 4))})
    checkpoint = MegatronCheckpoint.open(folder)
    (folder / "__1_0.distcp").unlink()  # where the second half lies
    assert checkpoint.read_slice("embedding.word_embeddings.weight", (slice(0, 4),)).sum() == 16
    with pytest.raises(BrokenCheckpointError, match=r"__1_0\.distcp: expected a readable file, found no such file"):
        checkpoint.read("embedding.word_embeddings.weight")


def test_a_slice_outside_is_refused(tmp_path: Path) -> None:
    folder = write_pieces(tmp_path / "c", {"embedding.word_embeddings.weight": (torch.ones(8, 4), (4, 4))})
    with pytest.raises(BrokenCheckpointError, match=r"expected to hold the slice \[0:9:None\]"):
        MegatronCheckpoint.open(folder).read_slice("embedding.word_embeddings.weight", (slice(0, 9),))


def test_a_closed_checkpoint_says_so(tmp_path: Path) -> None:
    checkpoint = MegatronCheckpoint.open(write_dist(tmp_path / "c", stacked(model_tensors()), has_common_file=True))
    checkpoint.close()
    with pytest.raises(CheckpointError, match="the checkpoint is closed"):
        checkpoint.read("decoder.final_layernorm.weight")


def test_more_files_than_a_process_keeps_open_are_read(tmp_path: Path) -> None:
    count = MAX_MAPPED + 5
    whole = torch.arange(2.0 * count).view(count, 2)
    folder = write_pieces(tmp_path / "c", {"x": (whole, (1, 2))}, num_files=count)
    checkpoint = MegatronCheckpoint.open(folder)
    num_open = len(os.listdir("/proc/self/fd"))
    assert torch.equal(checkpoint.read("x"), whole)
    assert len(os.listdir("/proc/self/fd")) <= num_open + MAX_MAPPED
    assert torch.equal(checkpoint.read("x"), whole)


# The one door.


def test_the_one_door_opens_both_formats(tmp_path: Path) -> None:
    assert isinstance(open_checkpoint(write_model(tmp_path / "a")), HuggingFaceCheckpoint)
    folder = write_dist(tmp_path / "b", stacked(model_tensors()), has_common_file=True)
    assert isinstance(open_checkpoint(folder), MegatronCheckpoint)


def test_a_converted_folder_with_both_is_hugging_face(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("1")
    assert isinstance(open_checkpoint(tmp_path), HuggingFaceCheckpoint)
