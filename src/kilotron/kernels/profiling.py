"""ProfiledBackend: any kernel backend, with the time of each operation on record."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import Tensor, device

from kilotron.kernels.interface import (
    Activation,
    AttentionOptions,
    AttentionPlan,
    AttentionRows,
    DecoderLayer,
    ExpertWeights,
    HeadNorms,
    KernelBackend,
    KVLayer,
    KVShape,
    PackedExperts,
    PackedLayers,
    PackedLinear,
    Rotation,
    TemperedRows,
    Weight,
)
from kilotron.trace import Trace

OPERATION = "operation"
"""The category of what a step calls."""
LOADING = "loading"
"""The category of what is called between steps: before the first one, or when the engine is suspended and resumed."""

R = TypeVar("R")


class NamedWeights(NamedTuple):
    """What the backend made of some weights, and what to call their use."""

    packed: Any
    name: str


class ProfiledBackend:
    """Hands every operation on and changes nothing of it.

    An operation's name tells the sizes that a layer fixes; what differs between steps stands in the arguments. On an
    accelerator, which works on its own, the times are those of handing work over.

    Args:
        kernels: the backend that does the work.
        trace: takes the times.
    """

    def __init__(self, kernels: KernelBackend, trace: Trace) -> None:
        self._kernels = kernels
        self._trace = trace

    @property
    def name(self) -> str:
        """That of the backend at work."""
        return self._kernels.name

    @property
    def device(self) -> device:
        """That of the backend at work."""
        return self._kernels.device

    def free_memory_bytes(self) -> int:
        """See `KernelBackend`; this is no operation, and not on record."""
        return self._kernels.free_memory_bytes()

    @property
    def packed_files(self) -> None:
        """None: what is packed has a name here, which files do not hold."""
        return None

    def pack_linear(self, weight: Weight, bias: Tensor | None, activation: Activation | None = None) -> PackedLinear:
        """See `KernelBackend`."""
        num_out, num_in = weight.shape
        name = f"pack_linear {num_in} -> {num_out}"
        packed = self._load(name, {}, self._kernels.pack_linear, weight, bias, activation)
        return NamedWeights(packed, f"linear {num_in} -> {num_out}{_ending(activation)}")

    def linear(self, x: Tensor, packed: PackedLinear, residual: Tensor | None = None) -> Tensor:
        """See `KernelBackend`."""
        return self._run(packed.name, {"rows": x.shape[0]}, self._kernels.linear, x, packed.packed, residual)

    def embedding(self, token_ids: Tensor, table: Tensor) -> Tensor:
        """See `KernelBackend`."""
        name = f"embedding {_sizes(table.shape)}"
        return self._run(name, {"rows": len(token_ids)}, self._kernels.embedding, token_ids, table)

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float, weight_offset: float = 0.0) -> Tensor:
        """See `KernelBackend`."""
        name = f"rms_norm {_sizes(x.shape[1:])}"
        return self._run(name, {"rows": x.shape[0]}, self._kernels.rms_norm, x, weight, epsilon, weight_offset)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
        """See `KernelBackend`."""
        name = f"layer_norm {_sizes(x.shape[1:])}"
        return self._run(name, {"rows": x.shape[0]}, self._kernels.layer_norm, x, weight, bias, epsilon)

    def allocate_kv(self, shape: KVShape) -> list[KVLayer]:
        """See `KernelBackend`."""
        return self._load("allocate_kv", {"bytes": shape.total_bytes}, self._kernels.allocate_kv, shape)

    def clear_kv_blocks(self, kv_layers: list[KVLayer], block_ids: list[int]) -> None:
        """See `KernelBackend`."""
        self._run("clear_kv_blocks", {"blocks": len(block_ids)}, self._kernels.clear_kv_blocks, kv_layers, block_ids)

    def read_kv_blocks(self, kv_layers: list[KVLayer], block_ids: list[int]) -> Tensor:
        """See `KernelBackend`."""
        figures = {"blocks": len(block_ids)}
        return self._load("read_kv_blocks", figures, self._kernels.read_kv_blocks, kv_layers, block_ids)

    def write_kv_blocks(self, kv_layers: list[KVLayer], block_ids: list[int], contents: Tensor) -> None:
        """See `KernelBackend`."""
        figures = {"blocks": len(block_ids)}
        self._load("write_kv_blocks", figures, self._kernels.write_kv_blocks, kv_layers, block_ids, contents)

    def release_unused_memory(self) -> None:
        """See `KernelBackend`; this is no operation, and not on record."""
        self._kernels.release_unused_memory()

    def rotate_and_append(
        self, heads: Tensor, norms: HeadNorms | None, rotation: Rotation | None, kv: KVLayer, kv_slots: Tensor
    ) -> Tensor:
        """See `KernelBackend`."""
        name = f"rotate_and_append {_sizes(heads.shape[1:])}"
        append = self._kernels.rotate_and_append
        return self._run(name, {"rows": heads.shape[0]}, append, heads, norms, rotation, kv, kv_slots)

    def plan_attention(self, rows: AttentionRows, block_size: int) -> AttentionPlan:
        """See `KernelBackend`."""
        name = "plan_attention"
        return self._run(name, {"rows": len(rows.num_new)}, self._kernels.plan_attention, rows, block_size)

    def paged_attention(self, query: Tensor, kv: KVLayer, plan: AttentionPlan, options: AttentionOptions) -> Tensor:
        """See `KernelBackend`."""
        name = f"paged_attention {_sizes(query.shape[1:])}{'' if options.window is None else f' in {options.window}'}"
        return self._run(name, {"rows": query.shape[0]}, self._kernels.paged_attention, query, kv, plan, options)

    def full_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        lengths: Sequence[int] | np.ndarray,
        *,
        scale: float,
        bias: Tensor | None = None,
    ) -> Tensor:
        """See `KernelBackend`."""
        name = f"full_attention {_sizes(query.shape[1:])}"
        attend = partial(self._kernels.full_attention, scale=scale, bias=bias)
        return self._run(name, {"rows": query.shape[0]}, attend, query, key, value, lengths)

    def pack_layers(self, layers: Sequence[DecoderLayer]) -> PackedLayers | None:
        """None: operations inside of layers are to be on record."""
        return None

    def pack_experts(self, weights: ExpertWeights, activation: Activation) -> PackedExperts:
        """See `KernelBackend`."""
        sizes = _sizes((len(weights.gate_up), *weights.gate_up[0].shape))
        packed = self._load(f"pack_experts {sizes}", {}, self._kernels.pack_experts, weights, activation)
        return NamedWeights(packed, f"mix_experts {sizes}")

    def mix_experts(self, x: Tensor, packed: PackedExperts, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        """See `KernelBackend`."""
        mix = self._kernels.mix_experts
        return self._run(packed.name, {"rows": x.shape[0]}, mix, x, packed.packed, expert_ids, expert_weights)

    def max_of_rows(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """See `KernelBackend`."""
        name = f"max_of_rows {_sizes(logits.shape[1:])}"
        return self._run(name, {"rows": logits.shape[0]}, self._kernels.max_of_rows, logits)

    def weigh(self, exponents: Tensor) -> Tensor:
        """See `KernelBackend`."""
        return self._run("weigh", {"numbers": exponents.numel()}, self._kernels.weigh, exponents)

    def sum_weights(self, rows: TemperedRows, thresholds: Tensor | None) -> Tensor:
        """See `KernelBackend`."""
        name = f"sum_weights {_sizes(rows.logits.shape[1:])}"
        return self._run(name, {"rows": len(rows.rows)}, self._kernels.sum_weights, rows, thresholds)

    def draw(self, rows: TemperedRows, thresholds: Tensor | None, uniforms: Tensor) -> Tensor:
        """See `KernelBackend`."""
        name = f"draw {_sizes(rows.logits.shape[1:])}"
        return self._run(name, {"rows": len(rows.rows)}, self._kernels.draw, rows, thresholds, uniforms)

    def list_greatest(self, logits: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """See `KernelBackend`."""
        name = f"list_greatest {count} of {_sizes(logits.shape[1:])}"
        return self._run(name, {"rows": len(rows)}, self._kernels.list_greatest, logits, rows, count)

    def _run(self, name: str, arguments: Mapping[str, int], operation: Callable[..., R], *args: Any) -> R:
        return self._trace.run(operation, *args, name=name, category=OPERATION, arguments=arguments)

    def _load(self, name: str, arguments: Mapping[str, int], operation: Callable[..., R], *args: Any) -> R:
        return self._trace.run(operation, *args, name=name, category=LOADING, arguments=arguments)


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _ending(activation: Activation | None) -> str:
    """An activation as a part of a name."""
    if activation is None:
        return ""
    return f", gated {activation.kind}" if activation.is_gated else f", {activation.kind}"
