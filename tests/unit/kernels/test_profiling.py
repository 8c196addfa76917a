"""Tests of ProfiledBackend: every operation is handed on unchanged and is on record."""

from inspect import isfunction
from pathlib import Path
from typing import Any
from unittest.mock import Mock, create_autospec

import pytest
import torch

from kilotron.kernels.interface import Activation, ExpertWeights, KernelBackend, KVShape, TemperedRows
from kilotron.kernels.profiling import NamedWeights, ProfiledBackend
from kilotron.kernels.reference.backend import ReferenceBackend
from kilotron.trace import Trace

NOT_OPERATIONS = {"free_memory_bytes", "pack_layers", "release_unused_memory"}
GIVE_NOTHING = {"clear_kv_blocks", "write_kv_blocks"}
OPERATIONS = sorted(name for name, member in vars(KernelBackend).items() if isfunction(member) and name[0] != "_")
X = torch.ones(3, 4)
HEADS = torch.ones(3, 2, 8)
ROWS = TemperedRows(X, torch.arange(3), X[:, 0], X[:, 0])
SHAPE = KVShape(num_layers=1, num_blocks=2, block_size=8, num_query_groups=2, kv_channels=8, dtype=torch.float32)
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "pack_linear": (torch.ones(6, 4), None, Activation("silu", is_gated=True)),
    "linear": (X, NamedWeights("packed", "linear 4 -> 6, gated silu"), X),
    "embedding": (torch.tensor([1, 2]), torch.ones(6, 4)),
    "rms_norm": (X, X[0], 1e-6, 1.0),
    "layer_norm": (X, X[0], None, 1e-6),
    "allocate_kv": (SHAPE,),
    "clear_kv_blocks": (["layer"], [1, 2]),
    "read_kv_blocks": (["layer"], [1, 2]),
    "write_kv_blocks": (["layer"], [1, 2], X),
    "rotate_and_append": (HEADS, None, None, "kv", torch.zeros(3)),
    "plan_attention": (Mock(num_new=[1, 1, 1]), 8),
    "paged_attention": (HEADS, "kv", "plan", Mock(window=16)),
    "pack_experts": (ExpertWeights(torch.ones(2, 6, 4), torch.ones(2, 4, 3)), Activation("silu", is_gated=True)),
    "full_attention": (HEADS, HEADS, HEADS, [1, 2]),
    "max_of_rows": (X,),
    "weigh": (X,),
    "sum_weights": (ROWS, None),
    "draw": (ROWS, None, X[:, 0]),
    "list_greatest": (X, torch.arange(3), 2),
    "mix_experts": (X, NamedWeights("packed", "mix_experts 2x6x4"), X, X),
}
NAMED_ARGUMENTS: dict[str, dict[str, Any]] = {"full_attention": {"scale": 0.5, "bias": None}}


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return Trace(tmp_path / "trace.json")


@pytest.mark.parametrize("operation", sorted(set(OPERATIONS) - NOT_OPERATIONS))
def test_every_operation_of_the_interface_is_handed_on_and_recorded(trace: Trace, operation: str) -> None:
    kernels = create_autospec(ReferenceBackend, instance=True)
    arguments, named = ARGUMENTS[operation], NAMED_ARGUMENTS.get(operation, {})

    result = getattr(ProfiledBackend(kernels, trace), operation)(*arguments, **named)

    inner = getattr(kernels, operation)
    plain = tuple(each.packed if isinstance(each, NamedWeights) else each for each in arguments)
    assert (inner.call_args.args, inner.call_args.kwargs) == (plain, named)
    given = result.packed if isinstance(result, NamedWeights) else result
    assert given is (None if operation in GIVE_NOTHING else inner.return_value)
    assert [total.name.split()[0] for total in trace.totals()] == [operation]


def test_names_tell_the_sizes_of_the_layer_and_arguments_the_rows(trace: Trace) -> None:
    kernels = ProfiledBackend(ReferenceBackend(), trace)
    kernels.linear(X, kernels.pack_linear(torch.ones(6, 4), None, Activation("relu", is_gated=False)))
    kernels.rms_norm(HEADS, torch.ones(8), 1e-6)

    names = [total.name for total in trace.totals()]
    assert names == ["pack_linear 4 -> 6", "linear 4 -> 6, relu", "rms_norm 2x8"]


def test_name_device_and_memory_are_those_of_the_backend_at_work(trace: Trace) -> None:
    kernels = ProfiledBackend(ReferenceBackend(), trace)

    assert (kernels.name, kernels.device) == ("reference", torch.device("cpu"))
    assert kernels.free_memory_bytes() > 0
    assert trace.totals() == []
