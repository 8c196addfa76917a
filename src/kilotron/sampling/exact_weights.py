"""Probabilities as 44-bit fixed-point integers, their sums, and the draw by inverse cumulative distribution.

Integer sums are exact. So neither the width of a list, nor the number of threads, nor the order in which a device
adds can change a bit of a result; torch's float sum of one long row, for comparison, changes with the threads.
Letters: R rows, V (padded) vocabulary, C columns of any list of candidates.

An *exponent* is (logit - greatest logit of the row) / temperature: at most 0, float32. A token's *weight* is e to that
power in units of 2**-44, rounded down; tokens less likely than 2**-44 of the most likely one are never drawn.
"""

import numpy as np
import torch
from torch import Tensor

WEIGHT_BITS = 44
# Sums must stay below 2**63.
MAX_VOCABULARY = 2**19 - 1

_BLOCK = 64
# Its weight is 0, and e to its power is still a normal number; torch is ten times slower where results underflow.
_LEAST_EXPONENT = -31.0


def max_of_rows(logits: Tensor) -> tuple[Tensor, Tensor]:
    """[R, V] float32 -> greatest logit and its lowest id, [R] each. A row that holds NaN gives NaN.

    On a CPU by numpy: 2 us for a row of 2k columns and 12 us for one of 150k, where torch takes 24 and 43 (one core).
    """
    if not logits.is_cpu:
        return max_by_blocks(logits)
    values = logits.detach().numpy()
    ids = values.argmax(1)
    return torch.from_numpy(values[np.arange(len(ids)), ids]), torch.from_numpy(ids)


def max_by_blocks(logits: Tensor) -> tuple[Tensor, Tensor]:
    """`max_of_rows` on any device, in two levels: torch's max with indices costs seven times its max without."""
    num_tokens = logits.shape[1]
    body = num_tokens - num_tokens % _BLOCK
    block_best = logits[:, :body].unflatten(1, (-1, _BLOCK)).amax(2)
    if body < num_tokens:
        block_best = torch.cat([block_best, logits[:, body:].amax(1, keepdim=True)], dim=1)
    columns = block_best.argmax(1, keepdim=True) * _BLOCK + torch.arange(_BLOCK, device=logits.device)
    # The last block may be short: its last column then stands in several times, and the first of equals wins.
    best, within = logits.gather(1, columns.clamp_(max=num_tokens - 1)).max(1, keepdim=True)
    return best.squeeze(1), columns.gather(1, within).squeeze(1)


def to_exponents(logits: Tensor, best: Tensor, inverse_temperature: Tensor | None = None) -> Tensor:
    """[R, V] float32 logits, [R] their maxima, [R] float32 -> [R, V] exponents; without temperature as if it were 1."""
    exponents = logits - best[:, None]
    return exponents if inverse_temperature is None else exponents.mul_(inverse_temperature[:, None])


def to_weights(exponents: Tensor, thresholds: Tensor | None = None) -> Tensor:
    """[R, C] exponents -> [R, C] int64; with thresholds [R] float32, 0 for tokens below their row's."""
    return _scale(exponents, thresholds).to(torch.int64)


def sum_weights(exponents: Tensor, thresholds: Tensor | None = None) -> Tensor:
    """Total weight of the tokens whose exponents reach their row's threshold; [R] int64."""
    return to_weights(exponents, thresholds).sum(1)


def _scale(exponents: Tensor, thresholds: Tensor | None) -> Tensor:
    """Weights before they are rounded down; float32."""
    # Not exp2, though three times faster: its bits depend on a value's place, by where the vectors of a loop end.
    scaled = torch.clamp(exponents, min=_LEAST_EXPONENT).exp_().mul_(2.0**WEIGHT_BITS)
    if thresholds is not None:
        # A mask of floats: with one of booleans this takes six times as long.
        scaled.mul_(torch.ge(exponents, thresholds[:, None], out=torch.empty_like(exponents)))
    return scaled


def draw(exponents: Tensor, thresholds: Tensor | None, uniforms: Tensor) -> Tensor:
    """One token id per row, among those whose exponents reach the threshold, in order of ids.

    [R, V] exponents, [R] float32 thresholds, [R] float64 in [0, 1) -> [R] int64
    """
    num_rows, num_tokens = exponents.shape
    num_blocks = -(-num_tokens // _BLOCK)
    weights = torch.empty(num_rows, num_blocks * _BLOCK, dtype=torch.int64, device=exponents.device)
    weights[:, num_tokens:] = 0
    weights[:, :num_tokens] = _scale(exponents, thresholds)
    blocks = weights.view(num_rows, num_blocks, _BLOCK)
    block_sums = blocks.sum(2)
    cumulative = block_sums.cumsum(1)
    targets = find_targets(cumulative[:, -1], uniforms)
    block = locate(cumulative, targets)
    before = (cumulative - block_sums).gather(1, block[:, None]).squeeze(1)
    chosen = blocks[torch.arange(num_rows, device=exponents.device), block].cumsum(1)
    return block * _BLOCK + locate(chosen, targets - before)


def find_targets(totals: Tensor, uniforms: Tensor) -> Tensor:
    """How much weight lies before the drawn point, at least; [R] int64.

    Below the total: the greatest uniform, 1 - 2**-53, takes away more than the two roundings can add.
    """
    return (uniforms * totals.to(torch.float64)).to(torch.int64)


def locate(cumulative: Tensor, targets: Tensor) -> Tensor:
    """First column whose cumulative weight exceeds the row's target; [R, C], [R] -> [R] int64."""
    return (cumulative <= targets[:, None]).sum(1)
