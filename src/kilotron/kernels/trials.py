"""Trials: each kernel operation at one number of rows, on made-up operands that lie in memory as a model's do.

A trial knows the least work of its operation and does it, each time with the next of several copies of the operands:
together they are larger than a cache, as are the layers between two calls for the same weight. Activations that are
small stay in the cache, as they do between two operations of a model.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kilotron.kernels.interface import (
    Activation,
    AttentionOptions,
    AttentionRows,
    ExpertWeights,
    HeadNorms,
    KernelBackend,
    KVLayer,
    KVShape,
    QuantizedWeight,
    Rotation,
    Weight,
)
from kilotron.kernels.roofline import Ceilings, Work, measure_ceilings

_COPIES_BYTES = 1 << 28  # of all copies of an operand together, if that takes no more than so many copies
_MOST_COPIES = 256
_MOST_CONTEXTS = 64
_OPERATIONS = 11
_CONTEXTS_BYTES = 1 << 30  # of all contexts that one step of decoding reads; with more rows they are shorter
_RANDOM_VALUES = 1 << 20  # that are drawn; larger tensors repeat them
_FILL_TOKENS = 2048  # appended at once to fill a cache
_EPSILON = 1e-6
_FEWEST_TIMES = 3
_GROUP_SIZES = (64, 32)  # columns that share a scale in 4 bits: the first that divides them


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSizes:
    """The sizes of a model, as far as its operations see them. The defaults are those of Qwen3-0.6B."""

    hidden: int = 1024
    ffn: int = 3072
    heads: int = 16
    kv_heads: int = 8
    head_dim: int = 128
    vocab: int = 151936
    experts: int = 8
    experts_per_token: int = 2
    expert_ffn: int = 768
    activation: str = "silu"
    is_gated: bool = True
    context: int = 1024
    """Tokens in the cache that attention looks back on."""
    block_size: int = 32
    most_logits_rows: int = 512
    """Of one step; with more there is no trial of the vocabulary's layer."""


class TrialFacts(NamedTuple):
    """What a trial tries."""

    operation: str
    rows: int
    shape: str
    """For people."""
    work: Work


class Trial(NamedTuple):
    """One operation at one number of rows."""

    facts: TrialFacts
    run: Callable[[], object]
    """Does it once, on the next copy of the operands."""

    def time(self, seconds: float) -> "TrialTime":
        """Repeats it for about so long, at least thrice unless that takes four times as long."""
        self.run()  # allocates, and starts threads
        times: list[float] = []
        elapsed = 0.0
        while not times or ((elapsed < seconds or len(times) < _FEWEST_TIMES) and elapsed < 4 * seconds):
            started = time.perf_counter()
            self.run()
            times.append(time.perf_counter() - started)
            elapsed += times[-1]
        return TrialTime(statistics.median(times), len(times))


class TrialTime(NamedTuple):
    """How long a trial took."""

    median_s: float
    num_repeats: int


class TrialMaker:
    """Makes trials of all operations; the operands of one operation live until the next one's are asked for.

    Args:
        kernels: the backend on trial.
        sizes: of the model.
        dtype: of activations, and of weights that are not quantized.
        bits: 8 or 4 quantizes the weights of linear layers and experts; None leaves them plain.
    """

    def __init__(self, kernels: KernelBackend, sizes: TrialSizes, dtype: torch.dtype, bits: int | None) -> None:
        self._kernels = kernels
        self._sizes = sizes
        self._dtype = dtype
        self._bits = bits
        self._plain_format = str(dtype).removeprefix("torch.")
        self._generator = torch.Generator().manual_seed(0)

    def measure_ceilings(self) -> Ceilings:
        """The machine's, for the formats that occur in the trials."""
        formats = {self._plain_format} if self._bits is None else {self._plain_format, f"int{self._bits}"}
        return measure_ceilings(formats, self._dtype)

    def count(self, rows: Sequence[int]) -> int:
        """How many trials `make` gives."""
        return _OPERATIONS * len(rows) - sum(count > self._sizes.most_logits_rows for count in rows)

    def make(self, rows: Sequence[int]) -> Iterator[Trial]:
        """All trials: one operation after the other, with each number of rows."""
        sizes = self._sizes
        query_size = sizes.heads * sizes.head_dim
        activation = Activation(sizes.activation, sizes.is_gated)
        num_fc1 = (2 if sizes.is_gated else 1) * sizes.ffn
        logits_rows = [count for count in rows if count <= sizes.most_logits_rows]
        yield from self._linear("qkv", (self._qkv_size, sizes.hidden), rows)
        yield from self._linear("proj", (sizes.hidden, query_size), rows, has_residual=True)
        yield from self._linear("fc1", (num_fc1, sizes.hidden), rows, activation)
        yield from self._linear("fc2", (sizes.hidden, sizes.ffn), rows, has_residual=True)
        yield from self._linear("vocabulary", (sizes.vocab, sizes.hidden), logits_rows)
        yield from self._embedding(rows)
        yield from self._rms_norm(rows)
        yield from self._rotate_and_append(rows)
        yield from self._attention(rows)
        yield from self._mix_experts(rows)

    @property
    def _qkv_size(self) -> int:
        return (self._sizes.heads + 2 * self._sizes.kv_heads) * self._sizes.head_dim

    @property
    def _kv_bytes(self) -> int:
        """Of one token's keys and values."""
        return 2 * self._sizes.kv_heads * self._sizes.head_dim * self._dtype.itemsize

    def _linear(
        self,
        operation: str,
        shape: tuple[int, int],
        rows: Sequence[int],
        activation: Activation | None = None,
        *,
        has_residual: bool = False,
    ) -> Iterator[Trial]:
        if not rows:
            return
        size_out, size_in = shape
        num_results = size_out // 2 if activation is not None and activation.is_gated else size_out
        weight = self._weight(shape)
        weight_bytes = _bytes_of(weight)
        copies = [
            (self._kernels.pack_linear(_copied(weight), None, activation),) for _ in range(_num_copies(weight_bytes))
        ]
        for count in rows:
            x = self._random((count, size_in))
            residual = self._random((count, num_results)) if has_residual else None
            num_values = count * (size_in + (2 if has_residual else 1) * num_results)
            num_bytes = weight_bytes + num_values * self._dtype.itemsize
            work = Work(num_bytes, 2 * count * size_in * size_out, self._format_of(weight))
            run = partial(self._kernels.linear, x, residual=residual)
            yield Trial(TrialFacts(operation, count, f"{size_in} to {size_out}", work), _in_turn(run, copies))

    def _embedding(self, rows: Sequence[int]) -> Iterator[Trial]:
        vocab, hidden = self._sizes.vocab, self._sizes.hidden
        table = self._random((vocab, hidden))
        for count in rows:
            num_bytes = 2 * count * hidden * self._dtype.itemsize + 8 * count
            ids = torch.randint(0, vocab, (_num_copies(num_bytes), count), generator=self._generator)
            run = partial(self._kernels.embedding, table=table)
            work = Work(num_bytes, 0, self._plain_format)
            yield Trial(
                TrialFacts("embedding", count, f"{vocab} x {hidden}", work), _in_turn(run, [(one,) for one in ids])
            )

    def _rms_norm(self, rows: Sequence[int]) -> Iterator[Trial]:
        hidden = self._sizes.hidden
        weight = self._random((1, hidden))[0]
        for count in rows:
            num_bytes = (2 * count + 1) * hidden * self._dtype.itemsize
            x = self._random((_num_copies(num_bytes), count, hidden))
            run = partial(self._kernels.rms_norm, weight=weight, epsilon=_EPSILON)
            work = Work(num_bytes, 4 * count * hidden, self._plain_format)
            yield Trial(TrialFacts("rms_norm", count, f"{hidden}", work), _in_turn(run, [(one,) for one in x]))

    def _rotate_and_append(self, rows: Sequence[int]) -> Iterator[Trial]:
        """The tokens of one prompt, each time a new one; with norms of the heads, which the arithmetic hardly feels."""
        sizes = self._sizes
        num_heads = sizes.heads + 2 * sizes.kv_heads
        weight = self._random((sizes.head_dim,))
        norms = HeadNorms(weight, weight, _EPSILON, 0.0)
        for count in rows:
            num_bytes = count * (2 * self._qkv_size * self._dtype.itemsize + 4 * sizes.head_dim + 8)
            num_copies = _num_copies(num_bytes)
            kv = self._filled_kv(num_copies * count)
            rotation = _rotation(count, sizes.head_dim)
            heads = self._random((num_copies, count, num_heads, sizes.head_dim))
            slots = sizes.block_size + torch.arange(num_copies * count).view(num_copies, count)
            copies = [(one, norms, rotation, kv, to) for one, to in zip(heads, slots, strict=True)]
            num_operations = 7 * count * (sizes.heads + sizes.kv_heads) * sizes.head_dim
            work = Work(num_bytes, num_operations, self._plain_format)
            shape = f"{sizes.heads} + {sizes.kv_heads} heads"
            yield Trial(
                TrialFacts("rotate_and_append", count, shape, work), _in_turn(self._kernels.rotate_and_append, copies)
            )

    def _attention(self, rows: Sequence[int]) -> Iterator[Trial]:
        context = self._sizes.context
        num_tokens = max(min(_COPIES_BYTES // self._kv_bytes, _MOST_CONTEXTS * context), context + max(rows))
        kv = self._filled_kv(num_tokens)
        for count in rows:
            length = max(1, min(context, _CONTEXTS_BYTES // (count * self._kv_bytes)))
            yield self._attention_trial("attention, decode", kv, num_tokens, (count, length - 1, 1))
        for count in rows:
            yield self._attention_trial("attention, prefill", kv, num_tokens, (1, context, count))

    def _attention_trial(self, operation: str, kv: KVLayer, num_tokens: int, step: tuple[int, int, int]) -> Trial:
        """`step`: rows, tokens computed before, and new ones of each row."""
        sizes = self._sizes
        num_rows, num_computed, num_new = step
        length = num_computed + num_new
        blocks_of_row, num_blocks = -(-length // sizes.block_size), num_tokens // sizes.block_size
        num_copies = min(_MOST_COPIES, -(-num_blocks // (num_rows * blocks_of_row)))
        tables = 1 + np.arange(num_copies * num_rows * blocks_of_row) % num_blocks
        new = np.full(num_rows, num_new)
        plans = [
            (self._kernels.plan_attention(AttentionRows(new * 0 + num_computed, new, table), sizes.block_size),)
            for table in tables.reshape(num_copies, num_rows, blocks_of_row)
        ]
        query = self._random((num_rows * num_new, sizes.heads, sizes.head_dim))
        run = partial(self._kernels.paged_attention, query, kv, options=AttentionOptions(scale=sizes.head_dim**-0.5))
        num_pairs = num_rows * (num_new * num_computed + num_new * (num_new + 1) // 2)
        num_bytes = 2 * query.numel() * self._dtype.itemsize + num_rows * length * self._kv_bytes
        work = Work(num_bytes, 4 * num_pairs * sizes.heads * sizes.head_dim, self._plain_format)
        facts = TrialFacts(operation, num_rows * num_new, f"context {num_computed}", work)
        return Trial(facts, _in_turn(run, plans))

    def _mix_experts(self, rows: Sequence[int]) -> Iterator[Trial]:
        sizes = self._sizes
        gate_up, down = (
            self._weight((2 * sizes.expert_ffn, sizes.hidden)),
            self._weight((sizes.hidden, sizes.expert_ffn)),
        )
        expert_bytes = _bytes_of(gate_up) + _bytes_of(down)
        copies = [
            (self._kernels.pack_experts(self._experts(gate_up, down), Activation("silu", is_gated=True)),)
            for _ in range(_num_copies(sizes.experts * expert_bytes))
        ]
        for count in rows:
            x = self._random((count, sizes.hidden))
            scores = torch.rand((count, sizes.experts), generator=self._generator)
            weights, ids = scores.topk(sizes.experts_per_token)
            num_bytes = ids.unique().numel() * expert_bytes + 2 * x.numel() * self._dtype.itemsize
            num_operations = 6 * ids.numel() * sizes.hidden * sizes.expert_ffn
            work = Work(num_bytes, num_operations, self._format_of(gate_up))
            run = partial(self._kernels.mix_experts, x, expert_ids=ids, expert_weights=weights)
            shape = f"{sizes.experts_per_token} of {sizes.experts}, {sizes.hidden} to {sizes.expert_ffn}"
            yield Trial(TrialFacts("mix_experts", count, shape, work), _in_turn(run, copies))

    def _experts(self, gate_up: Weight, down: Weight) -> ExpertWeights:
        num_experts = range(self._sizes.experts)
        return ExpertWeights([_copied(gate_up) for _ in num_experts], [_copied(down) for _ in num_experts])

    def _allocate_kv(self, num_tokens: int) -> KVLayer:
        sizes = self._sizes
        shape = KVShape(
            num_layers=1,
            num_blocks=1 + -(-num_tokens // sizes.block_size),
            block_size=sizes.block_size,
            num_query_groups=sizes.kv_heads,
            kv_channels=sizes.head_dim,
            dtype=self._dtype,
        )
        return self._kernels.allocate_kv(shape)[0]

    def _filled_kv(self, num_tokens: int) -> KVLayer:
        """A cache full of numbers: pages of memory that nobody has written are all one page, which is in the cache."""
        kv = self._allocate_kv(num_tokens)
        sizes = self._sizes
        heads = self._random((_FILL_TOKENS, sizes.heads + 2 * sizes.kv_heads, sizes.head_dim))
        for slots in (sizes.block_size + torch.arange(num_tokens)).split(_FILL_TOKENS):
            self._kernels.rotate_and_append(heads[: len(slots)], None, None, kv, slots)
        return kv

    def _weight(self, shape: tuple[int, int]) -> Weight:
        """4 bits stay plain where no group size divides the columns, as they do when a model is loaded."""
        group_size = shape[1] if self._bits == 8 else next((one for one in _GROUP_SIZES if shape[1] % one == 0), None)
        if self._bits is None or group_size is None:
            return self._random(shape)
        low, high, zero = (-127, 128, 0) if self._bits == 8 else (0, 16, 8)
        groups = (shape[0], shape[1] // group_size)
        return QuantizedWeight(
            values=torch.randint(low, high, shape, dtype=torch.int8, generator=self._generator),
            scales=torch.full(groups, 0.01),
            zeros=torch.full(groups, zero, dtype=torch.int8),
            bits=self._bits,
            dtype=self._dtype,
        )

    def _random(self, shape: tuple[int, ...]) -> Tensor:
        size = int(np.prod(shape))
        values = torch.randn(min(size, _RANDOM_VALUES), generator=self._generator).to(self._dtype)
        return values.repeat(-(-size // len(values)))[:size].view(shape)

    def _format_of(self, weight: Weight) -> str:
        return f"int{weight.bits}" if isinstance(weight, QuantizedWeight) else self._plain_format


def _in_turn(run: Callable[..., object], copies: Sequence[tuple[object, ...]]) -> Callable[[], object]:
    """Calls `run` with the operands of the next copy."""
    turns = cycle(copies)
    return lambda: run(*next(turns))


def _num_copies(num_bytes: int) -> int:
    return min(_MOST_COPIES, -(-_COPIES_BYTES // num_bytes))


def _bytes_of(weight: Weight) -> int:
    if not isinstance(weight, QuantizedWeight):
        return weight.numel() * weight.itemsize
    num_zeros = weight.zeros.numel() if weight.bits == 4 else 0
    return weight.values.numel() * weight.bits // 8 + 4 * weight.scales.numel() + num_zeros


def _copied(weight: Weight) -> Weight:
    """Backends that keep plain weights as they are must not be given the same one twice."""
    return weight.clone() if isinstance(weight, Tensor) else weight


def _rotation(num_tokens: int, channels: int) -> Rotation:
    angles = torch.arange(num_tokens, dtype=torch.float32)[:, None] / (1 + torch.arange(channels // 2))
    return Rotation(angles.cos(), angles.sin())
