"""Work on a matrix some rows at a time: little memory, data that stays in the cache, and a thread for each core.

torch shares out each operation instead, and all threads wait for the slowest after every one. Where other programs want
the cores too, that collapses: rounding 0.6 billion weights to 4 bits, with two threads on two cores that five other
processes wanted, took 160 s (76 CPU seconds) in torch's way, and 21 s (7 CPU seconds) in this one.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch


def for_row_chunks(work: Callable[[slice], None], shape: tuple[int, ...], values_at_once: int) -> None:
    """Calls `work` with slices that make up all rows; the calls may run at the same time."""
    step = max(values_at_once // shape[1], 1)
    chunks = [slice(start, start + step) for start in range(0, shape[0], step)]
    num_threads = min(torch.get_num_threads(), len(chunks))
    if num_threads <= 1:
        for chunk in chunks:
            work(chunk)
        return
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(num_threads, initializer=partial(torch.set_num_threads, 1)) as pool:
            list(pool.map(work, chunks))
    finally:
        torch.set_num_threads(before)  # a thread's own number becomes that of all threads to come
