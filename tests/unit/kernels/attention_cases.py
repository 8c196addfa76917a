"""Paged attention on any backend: a cache that others left full of NaN, the rows of a step, and the naive result."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kilotron.kernels.interface import (
    AttentionOptions,
    AttentionRows,
    HeadNorms,
    KernelBackend,
    KVLayer,
    KVShape,
    Rotation,
)

# What blocks hold before a row gets them; writing it needs no shape of its own.
LEFTOVER = float("nan")


@dataclass
class Case:
    """Rows of one step, whose keys and values are in the cache already."""

    backend: KernelBackend
    kv: KVLayer
    block_size: int
    rows: AttentionRows
    query: Tensor
    """[T, H, D]"""
    keys: list[Tensor]
    """[computed + new, G, D] of each row"""
    values: list[Tensor]
    options: AttentionOptions

    def run(self, members: list[int] | None = None) -> list[Tensor]:
        """The results of some rows (all unless said), computed together."""
        members = list(range(len(self.rows.num_new))) if members is None else members
        query = torch.cat([self.query_of(row) for row in members])
        rows = AttentionRows(*(part[members] for part in self.rows))
        return list(self._attend(query, rows).split(rows.num_new.tolist()))

    def run_part(self, row: int, start: int, stop: int) -> Tensor:
        """The results of a row's positions from `start` to `stop`, as a step of their own."""
        first = start - int(self.rows.num_computed[row])
        query = self.query_of(row)[first : first + stop - start]
        rows = AttentionRows(np.array([start]), np.array([stop - start]), self.rows.block_table[row : row + 1])
        return self._attend(query, rows)

    def query_of(self, row: int) -> Tensor:
        first = int(self.rows.num_new[:row].sum())
        return self.query[first : first + int(self.rows.num_new[row])]

    def append(self, row: int, start: int, stop: int) -> None:
        """Writes keys and values of a row's positions into the cache."""
        keys, values = self.keys[row][start:stop], self.values[row][start:stop]
        append(self.backend, keys, keys, values, None, self.kv, self.slots_of(row, start, stop))

    def slots_of(self, row: int, start: int, stop: int) -> Tensor:
        positions = torch.arange(start, stop)
        blocks = torch.from_numpy(self.rows.block_table[row])[positions // self.block_size]
        return blocks * self.block_size + positions % self.block_size

    def _attend(self, query: Tensor, rows: AttentionRows) -> Tensor:
        plan = self.backend.plan_attention(rows, self.block_size)
        return self.backend.paged_attention(query, self.kv, plan, self.options)


def append(
    backend: KernelBackend,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rotation: Rotation | None,
    kv: KVLayer,
    slots: Tensor,
    norms: HeadNorms | None = None,
) -> Tensor:
    """[T, H, D], [T, G, D] twice -> the queries, normed and rotated"""
    return backend.rotate_and_append(torch.cat((query, keys, values), 1), norms, rotation, kv, slots)


def make_case(
    backend: KernelBackend,
    sizes: list[tuple[int, int]],
    *,
    heads: int = 4,
    groups: int = 2,
    channels: int = 8,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
    softcap: float | None = None,
    scale: float = 0.4,
    has_sinks: bool = False,
    num_distances: int | None = None,
    kv_dtype: torch.dtype | None = None,
    is_written: bool = True,
) -> Case:
    """`sizes` are (computed, new) tokens per row; blocks are handed out in random order.

    With `num_distances` there is a position bias of so many columns; the cache has the activations' dtype unless said.
    """
    generator, shuffle = (torch.Generator().manual_seed(sum(map(sum, sizes))) for _ in range(2))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    lengths = [computed + new for computed, new in sizes]
    table = _hand_out([-(-length // block_size) for length in lengths], shuffle)
    shape = KVShape(
        num_layers=1,
        num_blocks=int(table.max()) + 3,
        block_size=block_size,
        num_query_groups=groups,
        kv_channels=channels,
        dtype=kv_dtype or dtype,
    )
    kv_layers = backend.allocate_kv(shape)
    _leave_behind(backend, kv_layers[0], shape, dtype)
    backend.clear_kv_blocks(kv_layers, [block for block in table.reshape(-1).tolist() if block])
    computed, new = (np.array(column, dtype=np.int64) for column in zip(*sizes, strict=True))
    keys, values = ([draw(length, groups, channels) for length in lengths] for _ in range(2))
    query = draw(int(new.sum()), heads, channels)
    options = AttentionOptions(
        scale=scale,
        window=window,
        softcap=softcap,
        sinks=torch.randn(heads, generator=generator) * 2 if has_sinks else None,
        position_bias=None if num_distances is None else torch.randn(heads, num_distances, generator=generator),
    )
    case = Case(backend, kv_layers[0], block_size, AttentionRows(computed, new, table), query, keys, values, options)
    for row, length in enumerate(lengths if is_written else []):
        case.append(row, 0, length)
    return case


def naive(case: Case, row: int) -> Tensor:
    """[new, heads, channels] in float64, one head at a time."""
    keys, values = case.keys[row].double(), case.values[row].double()
    query, options = case.query_of(row).double(), case.options
    ages = torch.arange(len(keys) - len(query), len(keys))[:, None] - torch.arange(len(keys))
    is_hidden = (ages < 0) | (ages >= (options.window or len(keys)))
    result = torch.zeros_like(query)
    for head in range(query.shape[1]):
        group = head * keys.shape[1] // query.shape[1]
        scores = query[:, head] @ keys[:, group].T * options.scale
        if options.position_bias is not None:
            scores += options.position_bias[head][ages.clamp(0, options.position_bias.shape[1] - 1)]
        if options.softcap is not None:
            scores = torch.tanh(scores / options.softcap) * options.softcap
        powers = scores.masked_fill(is_hidden, -torch.inf).exp()
        total = powers.sum(-1, keepdim=True)
        if options.sinks is not None:
            total += options.sinks[head].double().exp()
        result[:, head] = powers / total @ values[:, group]
    return result


def _hand_out(counts: list[int], generator: torch.Generator) -> np.ndarray:
    """A block table; some blocks before the last one belong to nobody."""
    order = (torch.randperm(sum(counts) + 2, generator=generator) + 1).numpy()
    table = np.zeros((len(counts), max(counts)), dtype=np.int64)
    for row, count in enumerate(counts):
        table[row, :count], order = order[:count], order[count:]
    return table


def _leave_behind(backend: KernelBackend, kv: KVLayer, shape: KVShape, dtype: torch.dtype) -> None:
    slots = torch.arange(shape.block_size, shape.num_blocks * shape.block_size)
    left = torch.full((len(slots), shape.num_query_groups, shape.kv_channels), LEFTOVER, dtype=dtype)
    append(backend, left, left, left, None, kv, slots)
