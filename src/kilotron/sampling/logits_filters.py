"""Top-k, top-p and min-p, and drawing from what they leave.

Each filter is a threshold on the logit: it keeps a token with everything that is at least as likely, so tokens of equal
logit are kept or dropped together. Top-k thus keeps k tokens and whatever ties with the k-th; top-p keeps the fewest
tokens whose mass reaches p and whatever ties with the last. No order among equals is needed, and none can leak in.
Letters and exponents as in `exact_weights`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kilotron.sampling.exact_weights import (
    draw,
    find_targets,
    locate,
    max_of_rows,
    sum_weights,
    to_exponents,
    to_weights,
)

# Lists of candidates tried one after the other, until the last one listed is not kept any more. One row of 128k
# columns on one core: 0.18, 0.64 and 1.6 ms; a sort of all columns 10 ms.
_CANDIDATE_COUNTS = (64, 1024, 8192)


class Truncation(NamedTuple):
    """What top-k and top-p ask of each row."""

    top_k: Tensor
    """[R] int64; 0 keeps all."""
    top_p: Tensor
    """[R] float64; 1 keeps all."""

    def take(self, rows: Tensor) -> "Truncation":
        """The same of some rows."""
        return Truncation(self.top_k[rows], self.top_p[rows])


class _Candidates(NamedTuple):
    """The most likely tokens of each row, [R, C] each, most likely first."""

    exponents: Tensor
    ids: Tensor
    weights: Tensor
    are_all: bool
    """Whether the list is the whole vocabulary."""


def modify_logits_for_top_k_filtering(logits: Tensor, top_k: int) -> None:
    """Sets all but the k greatest logits of each row of [R, V], and those equal to the k-th, to -inf, in place."""
    if 0 < top_k < logits.shape[-1]:
        logits.masked_fill_(logits < torch.topk(logits, top_k).values[..., -1:], -torch.inf)


def modify_logits_for_top_p_filtering(logits: Tensor, top_p: float) -> None:
    """Keeps, in each row of [R, V], the fewest most likely tokens whose mass reaches p; the others become -inf.

    0 and 1 keep all. Ties with the last one kept are kept.
    """
    if not 0.0 < top_p < 1.0:
        return
    wide = logits.float()
    exponents = to_exponents(wide, max_of_rows(wide)[0])
    limits = Truncation(
        torch.zeros(len(logits), dtype=torch.int64, device=logits.device),
        torch.full((len(logits),), top_p, dtype=torch.float64, device=logits.device),
    )
    thresholds = torch.full_like(exponents[:, 0], -torch.inf)
    candidates = _list_candidates(exponents, logits.shape[1])
    thresholds, _ = _find_thresholds(candidates, limits, thresholds, sum_weights(exponents))
    logits.masked_fill_(exponents < thresholds[:, None], -torch.inf)


def draw_truncated(
    exponents: Tensor, thresholds: Tensor, limits: Truncation, uniforms: Tensor
) -> tuple[Tensor, Tensor]:
    """Draws from what top-k, then top-p of the rest, leave of the tokens that reach their row's threshold.

    Args:
        exponents: [R, V] float32
        thresholds: [R] float32; what min-p demands.
        limits: of each row.
        uniforms: [R] float64 in [0, 1)

    Returns:
        The tokens, [R] int64, and the thresholds that all filters together demand, [R] float32.
    """
    tokens = torch.empty_like(limits.top_k)
    final = thresholds.clone()
    totals = torch.zeros_like(tokens)
    top_k = limits.top_k.cpu().numpy()
    by_mass = _on(np.flatnonzero(top_k == 0), exponents)
    if len(by_mass):
        totals[by_mass] = sum_weights(_take(exponents, by_mass), thresholds[by_mass])
    pending = np.arange(len(top_k))
    for width in _widths(exponents.shape[1]):
        is_active = top_k[pending] < width
        active = pending[is_active]
        if not len(active):
            continue
        rows = _on(active, exponents)
        some = _take(exponents, rows)
        candidates = _list_candidates(some, width)
        found, is_complete = _find_thresholds(candidates, limits.take(rows), thresholds[rows], totals[rows])
        final[rows] = found
        # What is drawn for a row whose list is too short is overwritten by a longer list's turn.
        tokens[rows] = _draw_candidates(candidates, some, found, uniforms[rows])
        is_active[is_active] = is_complete.cpu().numpy()
        pending = pending[~is_active]
        if not len(pending):
            break
    return tokens, final


def _list_candidates(exponents: Tensor, width: int) -> _Candidates:
    best, ids = torch.topk(exponents, width)
    return _Candidates(best, ids, to_weights(best), are_all=width == exponents.shape[1])


def _find_thresholds(
    candidates: _Candidates, limits: Truncation, thresholds: Tensor, totals: Tensor
) -> tuple[Tensor, Tensor]:
    """The [R] thresholds after top-k and top-p, and whether each row's list holds all tokens that reach it.

    `totals` [R] int64 is the weight that reaches `thresholds`, needed of rows without top-k only.
    """
    exponents, _, weights, are_all = candidates
    has_top_k = limits.top_k > 0
    kth = exponents.gather(1, (limits.top_k - 1).clamp(min=0)[:, None]).squeeze(1)
    thresholds = torch.where(has_top_k, torch.maximum(thresholds, kth), thresholds)
    last = exponents[:, -1]
    is_listed = (last < thresholds) | ~has_top_k
    cumulative = (weights * (exponents >= thresholds[:, None])).cumsum(1)
    totals = torch.where(has_top_k, cumulative[:, -1], totals)
    needed = torch.minimum((limits.top_p * totals.to(torch.float64)).ceil().to(torch.int64), totals)
    place = (cumulative < needed[:, None]).sum(1, keepdim=True)
    is_reached = place.squeeze(1) < exponents.shape[1]
    nucleus = exponents.gather(1, place.clamp(max=exponents.shape[1] - 1)).squeeze(1)
    thresholds = torch.where(limits.top_p < 1.0, torch.maximum(thresholds, nucleus), thresholds)
    if are_all:
        return thresholds, torch.ones_like(is_listed)
    return thresholds, is_listed & is_reached & (last < thresholds)


def _draw_candidates(candidates: _Candidates, exponents: Tensor, thresholds: Tensor, uniforms: Tensor) -> Tensor:
    """Draws as `draw` does, in order of ids, but looks at the candidates only."""
    if candidates.are_all:
        return draw(exponents, thresholds, uniforms)
    weights = candidates.weights * (candidates.exponents >= thresholds[:, None])
    ids, order = candidates.ids.sort(1)
    cumulative = weights.gather(1, order).cumsum(1)
    place = locate(cumulative, find_targets(cumulative[:, -1], uniforms))
    return ids.gather(1, place[:, None]).squeeze(1)


def _widths(num_tokens: int) -> Iterator[int]:
    yield from (count for count in _CANDIDATE_COUNTS if count < num_tokens)
    yield num_tokens


def _on(rows: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(rows).to(like.device)


def _take(exponents: Tensor, rows: Tensor) -> Tensor:
    """Some rows, without a copy when it is all of them."""
    return exponents if len(rows) == len(exponents) else exponents.index_select(0, rows)
