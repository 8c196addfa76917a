"""Has the system read a checkpoint's weights into its cache while the program does something else.

Takes none of the process's own memory, and 20 ms of CPU time per GB that is cached already. Through a memory map alone,
the disk would idle until the first touch, after a second of imports.
"""

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# Of the memory that is available; reading more would push out what was read first.
_MOST_MEMORY = 0.5


def start_reading_ahead(files: Sequence[Path]) -> None:
    """Starts a thread that reads files of weights, if there are any. What goes wrong shows when they are loaded."""
    if files:
        threading.Thread(target=_read_ahead, args=(files,), name="kilotron-read-ahead", daemon=True).start()


def _read_ahead(files: Sequence[Path]) -> None:
    import psutil

    with suppress(OSError):
        if sum(file.stat().st_size for file in files) <= psutil.virtual_memory().available * _MOST_MEMORY:
            with open(os.devnull, "wb") as nowhere:
                for file in files:
                    _send(file, nowhere.fileno())


def _send(file: Path, target: int) -> None:
    """Sends a file to the null device, which reads its pages and copies none. One call of the system for up to 2 GB, so
    that other threads are not asked for the interpreter again and again, as with reads or advice piece by piece."""
    with file.open("rb") as stream:
        offset = 0
        while sent := os.sendfile(target, stream.fileno(), offset, 1 << 40):
            offset += sent
