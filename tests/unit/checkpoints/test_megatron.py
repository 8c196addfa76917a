"""One model, saved in every layout that Megatron has, reads as the same whole tensors."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kilotron.checkpoints.megatron import MegatronCheckpoint
from unit.checkpoints.written_megatron import ARGS, model_tensors, stacked, write_dist, write_legacy


def assert_same(checkpoint: MegatronCheckpoint, expected: dict[str, Tensor]) -> None:
    assert {name: info.shape for name, info in checkpoint.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in expected.items()
    }
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.read(name), tensor), name


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("pipeline", [1, 2, 4])
def test_legacy_ranks_are_merged(tmp_path: Path, tensor: int, pipeline: int) -> None:
    whole = model_tensors()
    write_legacy(tmp_path / "iter_0000005", whole, tensor=tensor, pipeline=pipeline)
    with MegatronCheckpoint.open(tmp_path) as checkpoint:
        assert (checkpoint.format, checkpoint.iteration) == ("torch", 5)
        assert_same(checkpoint, whole)


@pytest.mark.parametrize("has_common_file", [True, False])
@pytest.mark.parametrize("num_experts", [0, 3])
def test_both_generations_of_torch_dist_are_read(tmp_path: Path, has_common_file: bool, num_experts: int) -> None:
    whole = model_tensors(num_experts=num_experts)
    folder = write_dist(tmp_path / "iter_0000005", stacked(whole), has_common_file=has_common_file)
    with MegatronCheckpoint.open(folder) as checkpoint:
        assert (checkpoint.format, checkpoint.iteration) == ("torch_dist", 5)
        assert checkpoint.config == ARGS | {"architectures": ["MegatronGPT"]}
        assert_same(checkpoint, whole)
