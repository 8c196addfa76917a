"""A lock on a folder that one process at a time writes to. It goes with its process, however that ends."""

import errno
import fcntl
import os
from pathlib import Path

from kilotron.errors import CheckpointError

LOCK_FILE = "conversion.lock"
# What file systems say that have no locks; there, nobody is kept out.
HAS_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderLock:
    """Held until it is released. The file stays: whoever removed it would let two others in."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, folder: Path) -> "FolderLock":
        """Locks a folder that is there.

        Raises:
            CheckpointError: somebody else has locked it, or has just finished it and given it another name.
        """
        file = folder / LOCK_FILE
        busy = CheckpointError(
            f"another process is converting to {folder} at this moment (it holds {file.name}); wait for it, or choose "
            "another output"
        )
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError as error:
            raise busy from error
        lock = cls(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_there = os.path.samestat(os.fstat(descriptor), file.stat())
        except OSError as error:
            if error.errno in HAS_NO_LOCKS:
                return lock
            lock.release()
            if isinstance(error, BlockingIOError | FileNotFoundError):
                raise busy from error
            raise
        if not is_there:
            lock.release()
            raise busy
        return lock

    def release(self) -> None:
        """Unlocks; a second time is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1
