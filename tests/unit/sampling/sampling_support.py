"""A request to sample for, the sampler around it, and a plain float64 oracle of what it should choose from."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from kilotron.kernels.interface import KernelBackend
from kilotron.sampling.sampler import SampledTokens, Sampler
from kilotron.sampling.sampling_table import SamplingTable
from kilotron.sampling_params import SamplingParams

CPU = torch.device("cpu")


@dataclass
class Request:
    """All that decides about a row, but for its logits."""

    params: SamplingParams
    seed: int = 0
    prompt_ids: list[int] = field(default_factory=lambda: [1, 2, 3])
    generated_ids: list[int] = field(default_factory=list)
    end_ids: frozenset[int] = frozenset()
    bad_word_ids: tuple[tuple[int, ...], ...] = ()

    @property
    def position(self) -> int:
        return len(self.prompt_ids) + len(self.generated_ids)


def admit(table: SamplingTable, slot: int, request: Request) -> None:
    table.admit(
        slot,
        request.params,
        seed=request.seed,
        prompt_ids=request.prompt_ids,
        generated_ids=request.generated_ids,
        end_ids=request.end_ids,
        bad_word_ids=request.bad_word_ids,
    )


def make_table(requests: list[Request], vocab_size: int) -> SamplingTable:
    table = SamplingTable(max_requests=max(1, len(requests)), vocab_size=vocab_size, device=CPU)
    for slot, request in enumerate(requests):
        admit(table, slot, request)
    return table


def sample(
    kernels: KernelBackend,
    logits: Tensor,
    requests: list[Request],
    mode: str = "raw_logprobs",
    vocab_size: int | None = None,
) -> SampledTokens:
    """The next token of each request; `logits` [requests, V] are left as they are."""
    sampler = Sampler(make_table(requests, vocab_size or logits.shape[1]), kernels, logprobs_mode=mode)
    positions = [request.position for request in requests]
    return sampler.sample(logits.clone(), list(range(len(requests))), positions)


def draw_many(kernels: KernelBackend, row: Tensor, request: Request, count: int) -> np.ndarray:
    """Tokens drawn from one row of logits [V] at the positions 0 .. count - 1, each on its own."""
    sampler = Sampler(make_table([request], len(row)), kernels)
    tokens: list[int] = []
    for start in range(0, count, 1000):
        positions = list(range(start, min(start + 1000, count)))
        tokens += sampler.sample(row.repeat(len(positions), 1), [0] * len(positions), positions).token_ids
    return np.array(tokens)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.asarray(logits, dtype=np.float64) - np.max(logits)
    return shifted - np.log(np.exp(shifted).sum())


def processed_logits(row: np.ndarray, request: Request) -> np.ndarray:
    """[V] float64 logits after every filter, -inf where a token cannot be chosen."""
    logits, params = row.astype(np.float64), request.params
    if params.allowed_token_ids is not None:
        kept = list(params.allowed_token_ids)
        logits[[token for token in range(len(logits)) if token not in kept]] = -np.inf
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    if len(request.generated_ids) < params.min_tokens:
        logits[list(request.end_ids)] = -np.inf
    history = request.prompt_ids + request.generated_ids
    for *head, last in request.bad_word_ids:
        if not head or history[-len(head) :] == head:
            logits[last] = -np.inf
    for token in set(history):
        factor = params.repetition_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
    for token in set(request.generated_ids):
        logits[token] -= params.frequency_penalty * request.generated_ids.count(token) + params.presence_penalty
    return logits if params.is_greedy else _truncate(logits / params.temperature, params)


def _truncate(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    if params.min_p:
        logits[logits < logits.max() + np.log(params.min_p)] = -np.inf
    if params.top_k:
        logits[logits < np.sort(logits)[-min(params.top_k, len(logits))]] = -np.inf
    if 0 < params.top_p < 1:
        descending = np.sort(logits)[::-1]
        mass = np.cumsum(np.exp(log_softmax(descending)))
        logits[logits < descending[min(np.searchsorted(mass, params.top_p), len(mass) - 1)]] = -np.inf
    return logits
