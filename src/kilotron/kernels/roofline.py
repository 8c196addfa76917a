"""The roofline (Williams et al. 2009): what a machine's memory and its arithmetic allow, and how near a time comes.

Measures both ceilings on this machine, with the native kernels' own instructions where there are any.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from kilotron.kernels.cpu.backend import CpuBackend, why_not_native

READ_BYTES = 1 << 28  # larger than the part of the last cache that a process gets
_PASSES = 5
_LARGEST_CHANGE = 1.25
_SQUARE = 1024  # side of the matrices that torch multiplies


class Work(NamedTuple):
    """What an operation cannot do without, however it is made."""

    num_bytes: float
    """Each operand read once and each result written once."""
    num_operations: float
    """On floating-point numbers; a multiply-add is two."""
    format: str
    """Of the weights or keys that are multiplied: a dtype's name, "int8" or "int4"."""


class Ceilings(NamedTuple):
    """What the machine reaches with the threads it was measured with."""

    bytes_per_s: float
    operations_per_s: dict[str, float]
    """By `Work.format`."""
    measured_with: str

    def joined_with(self, other: "Ceilings") -> "Ceilings":
        """The higher of each, since other programs only ever lower them."""
        rates = {name: max(rate, other.operations_per_s[name]) for name, rate in self.operations_per_s.items()}
        return Ceilings(max(self.bytes_per_s, other.bytes_per_s), rates, self.measured_with)

    def differs_from(self, other: "Ceilings") -> bool:
        """Whether one of them is more than a quarter higher than its counterpart."""
        pairs = [(rate, other.operations_per_s[name]) for name, rate in self.operations_per_s.items()]
        pairs.append((self.bytes_per_s, other.bytes_per_s))
        return any(max(pair) > _LARGEST_CHANGE * min(pair) for pair in pairs)

    def least_s(self, work: Work) -> float:
        """The time below which the work cannot be done, unless some of it lies in a cache."""
        return max(work.num_bytes / self.bytes_per_s, work.num_operations / self.operations_per_s[work.format])

    def bound_of(self, work: Work) -> str:
        """What holds the work up: "memory" or "arithmetic"."""
        is_memory = work.num_bytes / self.bytes_per_s >= work.num_operations / self.operations_per_s[work.format]
        return "memory" if is_memory else "arithmetic"


def measure_ceilings(formats: set[str], dtype: torch.dtype, num_bytes: int = READ_BYTES) -> Ceilings:
    """Measures reading and multiplying with all of torch's threads; takes about a second.

    Args:
        formats: those of the works to come.
        dtype: of the activations; torch, which knows no others, multiplies in it.
        num_bytes: are read.
    """
    if why_not_native() is None:
        native = CpuBackend()
        rates = {one: native.multiply_rate(one) for one in formats}
        return Ceilings(native.read_bandwidth(num_bytes), rates, native.name)
    return Ceilings(_torch_bandwidth(num_bytes), dict.fromkeys(formats, _torch_rate(dtype)), "torch")


def _torch_bandwidth(num_bytes: int) -> float:
    data = torch.ones(num_bytes // 8, dtype=torch.int64)
    return num_bytes / _best_s(data.sum)


def _torch_rate(dtype: torch.dtype) -> float:
    matrix = torch.ones((_SQUARE, _SQUARE), dtype=dtype)
    return 2 * _SQUARE**3 / _best_s(lambda: matrix @ matrix)


def _best_s(run: Callable[[], object]) -> float:
    """The shortest time: others may want the cores."""
    times = []
    for _ in range(_PASSES):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)
