"""The private folder of one running service, which holds its ipc sockets. Knows nothing of what listens on them."""

import fcntl
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from kilotron.errors import ConfigError

_PREFIX = "kilotron-"
_OWNER_FILE = "owner"
_MAX_OWNER_BYTES = 256
_MAX_SOCKET_PATH_BYTES = 107  # sun_path of linux/un.h, less its end
_START_TIME_FIELD = 22  # of /proc/PID/stat, see proc(5)


class RunFolder:
    """A folder that only this user can enter; gone when the service ends.

    It says whose it is: a file holds the owner's pid and start time, and the owner holds a lock on it. Both must say
    that the owner is dead before anybody else removes the folder: the lock is also right when two containers share a
    folder and not their process numbers, the pid also where locks do not work.

    Example:
        >>> with RunFolder.create() as folder:
        ...     address = "ipc://" + folder.socket_path("coordinator")
    """

    def __init__(self, path: Path, owner_fd: int) -> None:
        """Takes the parts; use `create`."""
        self.path = path
        self._owner_fd = owner_fd

    @classmethod
    def create(cls) -> Self:
        """Makes the folder under $XDG_RUNTIME_DIR, or $TMPDIR or /tmp, and removes those of services that were killed.

        Raises:
            ConfigError: no folder can be made there.
        """
        parent = _parent_folder()
        for stale in _stale_folders(parent):
            shutil.rmtree(stale, ignore_errors=True)
        try:
            path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            return cls(path, _write_owner(path))
        except OSError as error:
            raise ConfigError(
                f"no folder for sockets can be made in {parent}: {error.strerror}; "
                "set XDG_RUNTIME_DIR or TMPDIR to a folder that you may write to"
            ) from error

    def socket_path(self, name: str) -> str:
        """The path of a unix socket in this folder.

        Raises:
            ConfigError: it would be longer than the kernel allows.
        """
        path = str(self.path / name)
        length = len(os.fsencode(path))
        if length > _MAX_SOCKET_PATH_BYTES:
            raise ConfigError(
                f"{path} has {length} bytes, but the path of a unix socket may have {_MAX_SOCKET_PATH_BYTES}: "
                "set XDG_RUNTIME_DIR or TMPDIR to a folder with a shorter name"
            )
        return path

    def remove(self) -> None:
        """Removes the folder and what is in it; doing so twice is no error."""
        if self._owner_fd >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._owner_fd)
            self._owner_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def _parent_folder() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and os.access(runtime, os.W_OK | os.X_OK):
        return Path(runtime)
    return Path(tempfile.gettempdir())


def _write_owner(path: Path) -> int:
    fd = os.open(path / _OWNER_FILE, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    pid = os.getpid()
    os.write(fd, json.dumps({"pid": pid, "start_time": _start_time(pid)}).encode())
    return fd


def _stale_folders(parent: Path) -> list[Path]:
    stale = []
    for path in parent.glob(f"{_PREFIX}*"):
        with _locked_owner_file(path) as text:
            if text is not None and _is_owner_dead(text):
                stale.append(path)
    return stale


@contextmanager
def _locked_owner_file(path: Path) -> Iterator[bytes | None]:
    """What the owner of a folder of ours wrote; `None` if this is none, or somebody holds the lock."""
    try:
        if not _is_private_folder(path):
            yield None
            return
        fd = os.open(path / _OWNER_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # it has just been removed, or its owner has not got that far
        yield None
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield os.read(fd, _MAX_OWNER_BYTES)
    except BlockingIOError:
        yield None
    finally:
        os.close(fd)


def _is_private_folder(path: Path) -> bool:
    """Whether it is what `create` makes: a real folder, ours, closed to everybody else."""
    state = path.lstat()
    return stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and stat.S_IMODE(state.st_mode) == 0o700


def _is_owner_dead(text: bytes) -> bool:
    """What is no answer counts as alive."""
    try:
        owner = json.loads(text)
        return bool(_start_time(owner["pid"]) != owner["start_time"])
    except (ValueError, TypeError, KeyError):
        return False


def _start_time(pid: int) -> int | None:
    """When a process started, in ticks since boot; `None` if there is none. The same number later is another one."""
    try:
        line = Path(f"/proc/{int(pid)}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = line[line.rindex(b")") + 2 :].split()  # the name before it may hold anything
    return int(fields[_START_TIME_FIELD - 3])
