"""Measures what the machine can do at most: bytes read per second, and operations per second of its widest unit.

`machine_limits.c` is compiled on the spot. Without a compiler torch measures instead, and the result says so: its
figures are what torch reaches, which may lie below the machine's limits.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from workloads.shapes import MachineRates

SOURCE = Path(__file__).with_name("machine_limits.c")
COMPILERS = ("cc", "gcc", "clang")
TIMEOUT_S = 120
TORCH_RUNS = 5


class MachineLimits(NamedTuple):
    """The measured rates and how they came about."""

    rates: MachineRates
    unit: str
    """The matrix or vector unit behind `flops_per_s`."""
    note: str
    """Empty, or why the figures are less than sure."""

    def best_of(self, other: "MachineLimits") -> "MachineLimits":
        """Of two measurements: what was reached once can be reached."""
        note = self.note if other.note else ""
        return self._replace(rates=MachineRates(*map(max, self.rates, other.rates)), note=note)

    def describe(self) -> str:
        """One line for people."""
        text = f"reads {self.rates.bytes_per_s / 1e9:.1f} GB/s, {self.unit} {self.rates.flops_per_s / 1e12:.3f} TFLOP/s"
        return f"{text} ({self.note})" if self.note else text


def measure_limits(num_threads: int) -> MachineLimits:
    """Takes seconds, with all of the threads."""
    try:
        return _measure_compiled(num_threads)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return measure_with_torch(num_threads, f"torch's figures, as machine_limits.c did not run: {error}")


def _measure_compiled(num_threads: int) -> MachineLimits:
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise FileNotFoundError("there is no C compiler")
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "machine_limits")
        command = [compiler, "-O3", "-march=native", "-fopenmp", str(SOURCE), "-o", program]
        subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)
        environment = os.environ | {"OMP_NUM_THREADS": str(num_threads)}
        done = subprocess.run([program], check=True, capture_output=True, timeout=TIMEOUT_S, env=environment)
    answer = json.loads(done.stdout)
    return MachineLimits(MachineRates(answer["bytes_per_s"], answer["flops_per_s"]), answer["unit"], "")


def measure_with_torch(num_threads: int, note: str, *, num_bytes: int = 1 << 30, size: int = 2048) -> MachineLimits:
    """A sum over memory and a square bfloat16 product."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        data = torch.ones(num_bytes // 4)
        left, right = (torch.randn(size, size).to(torch.bfloat16) for _ in range(2))
        read_s = _least_seconds(lambda: data.sum())
        product_s = _least_seconds(lambda: left @ right)
    finally:
        torch.set_num_threads(before)
    return MachineLimits(MachineRates(num_bytes / read_s, 2 * size**3 / product_s), "torch bf16 product", note)


def _least_seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(TORCH_RUNS + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times[1:])
