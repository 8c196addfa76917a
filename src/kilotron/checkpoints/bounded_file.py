"""Reads small files whole, once they were found to be files and no larger than they should be; and lists folders."""

import os
import stat
from itertools import islice
from pathlib import Path

from kilotron.checkpoints.damage import broken, unreadable

MAX_ENTRIES = 100_000  # of a folder; a wrong path may lead anywhere


def list_entries(folder: Path) -> list[str]:
    """The names in a folder, sorted; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in islice(entries, MAX_ENTRIES))
    except (OSError, ValueError):
        return []


def read_bounded(file: Path, max_bytes: int, *, content: str = "content") -> bytes:
    """All bytes of a file. `content` says what they are, for messages. A device or a pipe is never opened.

    Raises:
        BrokenCheckpointError: it is missing, no file, or larger than `max_bytes`.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise broken(file, expected="a file", found="a folder or device")
        if status.st_size > max_bytes:
            raise broken(file, expected=f"at most {max_bytes} bytes of {content}", found=f"{status.st_size} bytes")
        with file.open("rb") as stream:
            return stream.read(max_bytes)
    except OSError as error:
        raise unreadable(file, error) from error
