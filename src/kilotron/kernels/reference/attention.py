"""Paged attention in plain torch: rows of like size run together as one batched scaled-dot-product attention.

Letters as in `kernels/interface.py`; moreover r rows of a bundle, q query tokens per row (padded), L key positions
per row (padded), g = H / G query heads per key-value head.

The rows of a step are put into bundles by size (new tokens to a power of two, key positions to `_padded_length`), so
that the number of torch calls per layer depends on the spread of sizes, not on the number of rows. Key positions always
start at 0 and the fused kernel walks them in tiles of 512, so with these lengths a row's result does not depend on the
bundle it landed in (seen on AVX-512 machines; `tests/invariance` holds it).
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kilotron.kernels.interface import AttentionOptions, AttentionRows

# The last few queries of other numbers take another path through the CPU's matrix library, with other bits.
_QUERY_MULTIPLE = 4
_KEY_TILE = 512


class Cache(NamedTuple):
    """One layer's keys, or its values."""

    numbers: Tensor
    """[G, N, B, D]"""
    scales: Tensor | None
    """[G, N, B] float32 when the numbers are int8; they are to be multiplied with it."""

    def write(self, rows: Tensor, slots: Tensor) -> None:
        """Writes [T, G, D] to slots [T] = block id * B + offset."""
        groups, _, _, channels = self.numbers.shape
        rows = rows.transpose(0, 1)
        if self.scales is not None:
            scales = rows.float().abs().amax(-1) / 127
            self.scales.view(groups, -1).index_copy_(1, slots, scales)
            # A row of zeros has the scale 0; one with a NaN keeps it in its scale.
            inverse = torch.where(scales > 0, 1 / scales, 0.0)
            rows = (rows.float() * inverse.unsqueeze(-1)).nan_to_num().round().to(torch.int8)
        self.numbers.view(groups, -1, channels).index_copy_(1, slots, rows)

    def read(self, block_index: Tensor, dtype: torch.dtype) -> Tensor:
        """[n] block ids -> [G, n, B, D] in `dtype`"""
        numbers = self.numbers.index_select(1, block_index)
        if self.scales is None:
            return numbers
        return (numbers.float() * self.scales.index_select(1, block_index).unsqueeze(-1)).to(dtype)

    def clear(self, block_index: Tensor) -> None:
        """Zeroes blocks."""
        self.numbers.index_fill_(1, block_index, 0)
        if self.scales is not None:
            self.scales.index_fill_(1, block_index, 0)


class ReferenceKVLayer(NamedTuple):
    """One layer of the cache."""

    keys: Cache
    values: Cache


@dataclass(slots=True)
class _Bundle:
    """Rows of like size."""

    num_rows: int
    num_queries: int
    """q: new tokens per row, padded."""
    token_index: Tensor | None
    """[r * q] int64: which token of the step each query is (padding repeats a token); None: all in order."""
    valid: Tensor | None
    """[valid] int64: the unpadded places among r * q, in order of `tokens`; None: all of them."""
    tokens: Tensor | None
    """[valid] int64: which token of the step each result belongs to; None: all in order."""
    num_keys: int
    """L"""
    block_index: Tensor
    """[r * blocks] int64; as many blocks as L positions need"""
    query_positions: Tensor
    """[r, q] int64; 0 for padding"""
    masks: dict[int | None, Tensor] = field(default_factory=dict)
    """window -> [1, r, g * q (padded), L] additive, made at first use"""


@dataclass(slots=True)
class ReferencePlan:
    """The rows of one step, bundled."""

    bundles: list[_Bundle]


def plan_attention(rows: AttentionRows, block_size: int, device: torch.device) -> ReferencePlan:
    """Bundles the rows of a step."""
    num_keys = _padded_length(rows.num_computed + rows.num_new)
    bucket = _next_power_of_two(rows.num_new) * (1 << 32) + num_keys
    first_token = np.cumsum(rows.num_new) - rows.num_new
    bundles = []
    for key in np.unique(bucket):
        members = np.nonzero(bucket == key)[0]
        bundles.append(_bundle(rows, members, first_token, int(num_keys[members[0]]), block_size, device))
    return ReferencePlan(bundles)


def _bundle(
    rows: AttentionRows,
    members: np.ndarray,
    first_token: np.ndarray,
    num_keys: int,
    block_size: int,
    device: torch.device,
) -> _Bundle:
    num_new = rows.num_new[members]
    num_queries = int(num_new.max())
    offsets = np.arange(num_queries)
    is_valid = offsets < num_new[:, None]
    token_index = np.where(is_valid, first_token[members][:, None] + offsets, first_token[members][:, None])
    positions = np.where(is_valid, rows.num_computed[members][:, None] + offsets, 0)
    block_table = rows.block_table[members, : -(-num_keys // block_size)]
    missing = -(-num_keys // block_size) - block_table.shape[1]
    block_table = np.pad(block_table, ((0, 0), (0, missing)))
    is_padded = not bool(is_valid.all())
    in_order = len(members) == len(rows.num_new) and not is_padded
    return _Bundle(
        num_rows=len(members),
        num_queries=num_queries,
        token_index=None if in_order else _tensor(token_index.reshape(-1), device),
        valid=_tensor(np.nonzero(is_valid.reshape(-1))[0], device) if is_padded else None,
        tokens=None if in_order else _tensor(token_index[is_valid], device),
        num_keys=num_keys,
        block_index=_tensor(block_table.reshape(-1), device),
        query_positions=_tensor(positions, device),
    )


def paged_attention(query: Tensor, kv: ReferenceKVLayer, plan: ReferencePlan, options: AttentionOptions) -> Tensor:
    """Attention of a step's tokens over the cache. [T, H, D] -> [T, H, D]"""
    result = torch.empty_like(query)
    for bundle in plan.bundles:
        part = _attend(query, kv, bundle, options)
        if bundle.tokens is None:
            return part
        if bundle.valid is not None:
            part = part.index_select(0, bundle.valid)
        result.index_copy_(0, bundle.tokens, part)
    return result


def _attend(query: Tensor, kv: ReferenceKVLayer, bundle: _Bundle, options: AttentionOptions) -> Tensor:
    """-> [r * q, H, D]"""
    rows, queries = bundle.num_rows, bundle.num_queries
    groups, channels = kv.keys.numbers.shape[0], kv.keys.numbers.shape[3]
    heads = query.shape[1]
    if bundle.token_index is not None:
        query = query.index_select(0, bundle.token_index)
    # The g query heads of one key-value head become further queries of it, so keys are never repeated.
    grouped = query.view(rows, queries, groups, heads // groups, channels).permute(2, 0, 3, 1, 4)
    grouped = grouped.reshape(groups, rows, -1, channels)
    keys, values = (
        cache.read(bundle.block_index, query.dtype).view(groups, rows, -1, channels)[:, :, : bundle.num_keys]
        for cache in kv
    )
    num_grouped = grouped.shape[2]
    grouped = functional.pad(grouped, (0, 0, 0, -num_grouped % _QUERY_MULTIPLE))
    mask = bundle.masks.get(options.window)
    if mask is None:
        mask = _mask(bundle, heads // groups, options.window, query.dtype)
        mask = functional.pad(mask, (0, 0, 0, grouped.shape[2] - num_grouped))
        bundle.masks[options.window] = mask
    if options.softcap is None and options.sinks is None and options.position_bias is None:
        result = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=options.scale)
    else:
        scores = torch.matmul(grouped.float(), keys.float().transpose(-1, -2))
        weights = _weights(scores, mask, bundle, options)
        result = torch.matmul(weights, values.float()).to(query.dtype)
    result = result[:, :, :num_grouped].reshape(groups, rows, heads // groups, queries, channels).permute(1, 3, 0, 2, 4)
    return result.reshape(rows * queries, heads, channels)


def _weights(scores: Tensor, mask: Tensor, bundle: _Bundle, options: AttentionOptions) -> Tensor:
    """Products [G, r, g * q (padded), L] float32 -> what the values are multiplied with."""
    groups, num_grouped = scores.shape[0], scores.shape[2]
    scores = scores * options.scale
    if options.position_bias is not None:
        biases = _biases(bundle, options.position_bias, groups)
        scores += functional.pad(biases, (0, 0, 0, num_grouped - biases.shape[2]))
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    scores = scores + mask
    if options.sinks is None:
        return scores.softmax(-1)
    sinks = options.sinks.view(groups, -1).repeat_interleave(bundle.num_queries, dim=1)
    sinks = functional.pad(sinks, (0, num_grouped - sinks.shape[1]))[:, None, :, None]
    scores = torch.cat((scores, sinks.expand(-1, bundle.num_rows, -1, -1)), dim=-1)
    return scores.softmax(-1)[..., :-1].contiguous()


def _biases(bundle: _Bundle, table: Tensor, groups: int) -> Tensor:
    """[H, distances] -> [G, r, g * q, L]"""
    distances = bundle.query_positions.unsqueeze(-1) - torch.arange(bundle.num_keys, device=table.device)
    biases = table[:, distances.clamp_(0, table.shape[1] - 1)].unflatten(0, (groups, -1))
    return biases.transpose(1, 2).flatten(2, 3)


def _mask(bundle: _Bundle, group_size: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """[1, r, g * q, L] additive: 0 where a query sees a key, minus infinity elsewhere."""
    query_positions = bundle.query_positions.unsqueeze(-1)
    key_positions = torch.arange(bundle.num_keys, device=query_positions.device)
    is_seen = key_positions <= query_positions
    if window is not None:
        is_seen &= key_positions > query_positions - window
    mask = torch.zeros(is_seen.shape, dtype=dtype, device=is_seen.device).masked_fill_(~is_seen, -math.inf)
    return mask.repeat(1, group_size, 1).unsqueeze(0)


def _padded_length(lengths: np.ndarray) -> np.ndarray:
    """128, 192, 384 or whole tiles. Not 256: of a tile, sums over 193 to 383 keys are cut in two equal halves, and
    longer ones in pieces of 192 (measured; `tests/unit/kernels` holds it)."""
    tiles = -(-lengths // _KEY_TILE) * _KEY_TILE
    return np.where(lengths <= 128, 128, np.where(lengths <= 192, 192, np.where(lengths <= 384, 384, tiles)))


def _next_power_of_two(values: np.ndarray) -> np.ndarray:
    exponents = np.ceil(np.log2(np.maximum(values, 1)))
    result: np.ndarray = (2.0**exponents).astype(np.int64)
    return result


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(device)
