"""Log-probabilities of given tokens and of the most likely ones.

One function for generated tokens and for prompts: what `score` says of a text is bit for bit what `generate` said.
Letters: N rows, V padded vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kilotron.kernels.interface import KernelBackend, TemperedRows
from kilotron.kernels.reference.exact_weights import WEIGHT_BITS

# Bounds the copies of logits in half precision (4 bytes per element).
_CHUNK_ELEMENTS = 2**22


@torch.inference_mode()
def score_tokens(
    kernels: KernelBackend, logits: Tensor, targets: Sequence[int], top_n: int, vocab_size: int
) -> tuple[list[float], list[dict[int, float]] | None]:
    """Log-softmax of each row at its target, and of its `top_n` most likely tokens.

    Args:
        kernels: at work where the logits are.
        logits: [N, V] float; columns from `vocab_size` on are padding and count as impossible.
        targets: one token id per row.
        top_n: how many most likely tokens to list; 0 for none.
        vocab_size: number of real tokens.

    Returns:
        The targets' log-probs, float32 values: -inf where a token is impossible, NaN where the row has NaN or +Inf
        (then the caller fails its request). And with `top_n`, per row, id -> log-prob, the most likely first and of
        equals the lowest id first; impossible tokens are left out; the target is always in, with the same float.
    """
    log_probs: list[float] = []
    listed: list[dict[int, float]] = []
    rows_per_chunk = max(1, _CHUNK_ELEMENTS // logits.shape[1])
    for start in range(0, len(targets), rows_per_chunk):
        chunk = logits[start : start + rows_per_chunk, :vocab_size].detach().float()
        chunk_targets = targets[start : start + rows_per_chunk]
        rows = torch.arange(len(chunk), device=logits.device)
        best, log_sums = sum_of_rows(kernels, chunk)
        columns = torch.tensor(chunk_targets, dtype=torch.int64, device=logits.device)[:, None]
        scores = to_log_probs(chunk.gather(1, columns), best, log_sums).squeeze(1).tolist()
        log_probs += scores
        if top_n:
            ids, values = list_top(kernels, chunk, rows, top_n)
            top_scores = to_log_probs(values, best, log_sums).tolist()
            found = zip(ids.tolist(), top_scores, chunk_targets, scores, strict=True)
            listed += [_combine(*row) for row in found]
    return log_probs, listed if top_n else None


def sum_of_rows(kernels: KernelBackend, logits: Tensor) -> tuple[Tensor, Tensor]:
    """[N, V] float32 -> each row's greatest logit, [N] float32, and the log of its sum of exponentials relative to
    that, [N] float64: NaN for rows with NaN or +Inf."""
    best, _ = kernels.max_of_rows(logits)
    rows = torch.arange(len(logits), device=logits.device)
    totals = kernels.sum_weights(TemperedRows(logits, rows, best, torch.ones_like(best)), None)
    # The sums of rows of NaN or +Inf are undefined, so they are put right here.
    is_sound = torch.isfinite(best)
    return best, torch.where(is_sound, (totals.to(torch.float64) * 2.0**-WEIGHT_BITS).log(), torch.nan)


def to_log_probs(logits: Tensor, best: Tensor, log_sums: Tensor) -> Tensor:
    """[N, C] logits of some tokens -> [N, C] float32 log-probs; see `sum_of_rows`."""
    return ((logits - best[:, None]).to(torch.float64) - log_sums[:, None]).to(torch.float32)


def list_top(kernels: KernelBackend, logits: Tensor, rows: Tensor, top_n: int) -> tuple[Tensor, Tensor]:
    """Ids and logits [N, top_n] of the greatest logits; of equals at the end of the list, the lowest ids."""
    num_tokens = logits.shape[1]
    top_n = min(top_n, num_tokens)
    values, ids = kernels.list_greatest(logits, rows, min(top_n + 1, num_tokens))
    if values.shape[1] > top_n:
        # Which of several equals is listed is left open; where that matters, all of them are looked at.
        is_ambiguous = (values[:, top_n - 1] == values[:, top_n]) & torch.isfinite(values[:, top_n])
        for row in np.flatnonzero(is_ambiguous.cpu().numpy()).tolist():
            reaching = torch.nonzero(logits[row] >= values[row, top_n]).squeeze(1)
            order = torch.sort(logits[row, reaching], descending=True, stable=True).indices[:top_n]
            ids[row, :top_n] = reaching[order]
    return ids[:, :top_n], values[:, :top_n]


def _combine(ids: list[int], scores: list[float], target: int, target_score: float) -> dict[int, float]:
    pairs = sorted((-score, token_id) for token_id, score in zip(ids, scores, strict=True) if score > -np.inf)
    top = {token_id: -negated for negated, token_id in pairs}
    top[target] = target_score
    return top
