"""Paged attention in plain torch: rows of like size run together as one batched scaled-dot-product attention.

Letters as in `kernels/interface.py`; moreover r rows of a bundle, q query tokens per row (padded), L key positions
per row (padded to whole blocks), g = H / G query heads per key-value head.

The rows of a step are put into bundles by size (powers of two of new tokens and of blocks), so that padding wastes
less than half and the number of torch calls per layer depends on the spread of sizes, not on the number of rows.
Key positions always start at 0 and the fused kernel walks them in fixed tiles, so a row's result does not depend
on the bundle it landed in.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kilotron.kernels.interface import AttentionOptions, AttentionRows, KVLayer

_FEWEST_BLOCKS = 4  # bundles below this many blocks are not split further: small gathers cost less than more calls


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
    block_index: Tensor
    """[r * blocks] int64"""
    query_positions: Tensor
    """[r, q] int64; 0 for padding"""
    masks: dict[int | None, Tensor] = field(default_factory=dict)
    """window -> [1, r, g * q, L] additive, made at first use"""


@dataclass(slots=True)
class ReferencePlan:
    """The rows of one step, bundled."""

    bundles: list[_Bundle]
    block_size: int


def plan_attention(rows: AttentionRows, block_size: int, device: torch.device) -> ReferencePlan:
    """Bundles the rows of a step."""
    num_blocks = -(-(rows.num_computed + rows.num_new) // block_size)
    query_bucket = _next_power_of_two(rows.num_new)
    block_bucket = np.maximum(_next_power_of_two(num_blocks), _FEWEST_BLOCKS)
    bucket = query_bucket * (1 << 32) + block_bucket
    first_token = np.cumsum(rows.num_new) - rows.num_new
    bundles = []
    keys = np.unique(bucket)
    for key in keys:
        members = np.nonzero(bucket == key)[0]
        bundles.append(_bundle(rows, members, first_token, int(num_blocks[members].max()), device))
    return ReferencePlan(bundles, block_size)


def _bundle(
    rows: AttentionRows,
    members: np.ndarray,
    first_token: np.ndarray,
    most_blocks: int,
    device: torch.device,
) -> _Bundle:
    num_new = rows.num_new[members]
    num_queries = int(num_new.max())
    offsets = np.arange(num_queries)
    is_valid = offsets < num_new[:, None]
    token_index = np.where(is_valid, first_token[members][:, None] + offsets, first_token[members][:, None])
    positions = np.where(is_valid, rows.num_computed[members][:, None] + offsets, 0)
    is_padded = not bool(is_valid.all())
    in_order = len(members) == len(rows.num_new) and not is_padded
    return _Bundle(
        num_rows=len(members),
        num_queries=num_queries,
        token_index=None if in_order else _tensor(token_index.reshape(-1), device),
        valid=_tensor(np.nonzero(is_valid.reshape(-1))[0], device) if is_padded else None,
        tokens=None if in_order else _tensor(token_index[is_valid], device),
        block_index=_tensor(rows.block_table[members, :most_blocks].reshape(-1), device),
        query_positions=_tensor(positions, device),
    )


def paged_attention(query: Tensor, kv: KVLayer, plan: ReferencePlan, options: AttentionOptions) -> Tensor:
    """Attention of a step's tokens over the cache. query [T, H, D]; kv both [G, N, B, D] -> [T, H, D]"""
    result = torch.empty_like(query)
    for bundle in plan.bundles:
        part = _attend(query, kv, bundle, options)
        if bundle.tokens is None:
            return part
        if bundle.valid is not None:
            part = part.index_select(0, bundle.valid)
        result.index_copy_(0, bundle.tokens, part)
    return result


def _attend(query: Tensor, kv: KVLayer, bundle: _Bundle, options: AttentionOptions) -> Tensor:
    """-> [r * q, H, D]"""
    rows, queries = bundle.num_rows, bundle.num_queries
    groups, channels = kv.keys.shape[0], kv.keys.shape[3]
    heads = query.shape[1]
    if bundle.token_index is not None:
        query = query.index_select(0, bundle.token_index)
    # The g query heads of one key-value head become further queries of it, so keys are never repeated.
    grouped = query.view(rows, queries, groups, heads // groups, channels).permute(2, 0, 3, 1, 4)
    grouped = grouped.reshape(groups, rows, -1, channels)
    keys = kv.keys.index_select(1, bundle.block_index).view(groups, rows, -1, channels)
    values = kv.values.index_select(1, bundle.block_index).view(groups, rows, -1, channels)
    mask = bundle.masks.get(options.window)
    if mask is None:
        mask = _mask(bundle, keys.shape[2], heads // groups, options.window, query.dtype)
        bundle.masks[options.window] = mask
    if options.softcap is None:
        result = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=options.scale)
    else:
        scores = torch.matmul(grouped.float(), keys.float().transpose(-1, -2)) * options.scale
        scores = torch.tanh(scores / options.softcap) * options.softcap + mask
        result = torch.matmul(scores.softmax(-1), values.float()).to(query.dtype)
    result = result.view(groups, rows, heads // groups, queries, channels).permute(1, 3, 0, 2, 4)
    return result.reshape(rows * queries, heads, channels)


def _mask(bundle: _Bundle, num_keys: int, group_size: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """[1, r, g * q, L] additive: 0 where a query sees a key, minus infinity elsewhere."""
    query_positions = bundle.query_positions.unsqueeze(-1)
    key_positions = torch.arange(num_keys, device=query_positions.device)
    is_seen = key_positions <= query_positions
    if window is not None:
        is_seen &= key_positions > query_positions - window
    mask = torch.zeros(is_seen.shape, dtype=dtype, device=is_seen.device).masked_fill_(~is_seen, -math.inf)
    return mask.repeat(1, group_size, 1).unsqueeze(0)


def _next_power_of_two(values: np.ndarray) -> np.ndarray:
    exponents = np.ceil(np.log2(np.maximum(values, 1)))
    result: np.ndarray = (2.0**exponents).astype(np.int64)
    return result


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(device)
