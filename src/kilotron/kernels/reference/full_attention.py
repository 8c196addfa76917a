"""Attention of an encoder in plain torch: every token sees all of its row. One row at a time, so no other row matters.

Letters as in `kernels/interface.py`; moreover n tokens of a row, g = H / G query heads per key-value head.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Scores of so many queries are held at a time.
_QUERY_CHUNK = 512


def attend_fully(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int] | np.ndarray,
    *,
    scale: float,
    bias: Tensor | None,
) -> Tensor:
    """[T, H, D], [T, G, D], [T, G, D] -> [T, H, D]"""
    result = torch.empty_like(query)
    sizes = [int(length) for length in lengths]
    queries, keys, values, results = (part.split(sizes) for part in (query, key, value, result))
    for row in zip(queries, keys, values, results, strict=True):
        _attend_row(row, scale, bias)
    return result


def _attend_row(row: tuple[Tensor, Tensor, Tensor, Tensor], scale: float, bias: Tensor | None) -> None:
    """[n, H, D], [n, G, D], [n, G, D]; writes the last one, [n, H, D]."""
    query, key, value, result = row
    groups, channels = key.shape[1:]
    wide_query, keys, values = (_by_head(part) for part in (query, key, value))
    positions = torch.arange(len(query), device=query.device)
    for chunk in positions.split(_QUERY_CHUNK):
        # The g query heads of one key-value head become further queries of it, so keys are never repeated.
        queries = wide_query[:, chunk].view(groups, -1, channels)
        scores = torch.matmul(queries, keys.transpose(1, 2)) * scale
        if bias is not None:
            farthest = bias.shape[1] // 2
            distances = (positions - chunk.unsqueeze(-1)).clamp_(-farthest, farthest)
            scores += bias[:, distances + farthest].view(scores.shape)
        mixed = torch.matmul(scores.softmax(-1), values)
        result[chunk] = mixed.view(-1, len(chunk), channels).transpose(0, 1).to(result.dtype)


def _by_head(part: Tensor) -> Tensor:
    """[n, heads, D] -> [heads, n, D] float32, always in memory of its own: its place may change the order of sums."""
    return part.transpose(0, 1).to(torch.float32, copy=True, memory_format=torch.contiguous_format)
