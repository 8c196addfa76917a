"""What children write to stdout and stderr: cut into lines, and passed on under the child's name.

Knows nothing of processes. Nothing here ever waits for a reader: a supervisor that waits does not supervise.
"""

import os
import select

# A write of at most this many bytes to a pipe that poll calls writable does not wait (PIPE_BUF).
_MAX_LINE_BYTES = select.PIPE_BUF
_READ_BYTES = 1 << 16  # as much as a pipe holds, unless somebody made it larger
STDERR_FD = 2


class LinePipe:
    """The reading end of a pipe, cut into lines. Of a line that is too long only the beginning is kept."""

    def __init__(self, fd: int, max_line_bytes: int) -> None:
        """Takes over the descriptor."""
        os.set_blocking(fd, False)
        self.fd = fd
        self.is_at_end = False  # nobody can write any more
        self._max_line_bytes = max_line_bytes
        self._rest = b""

    def read_lines(self) -> list[bytes]:
        """The lines that have become whole. Reads one piece only: a writer without end must not keep us."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return []
        self.is_at_end = not data
        first, *others = data.split(b"\n")
        lines = [self._rest + first[: self._max_line_bytes - len(self._rest)], *others]
        self._rest = lines.pop()[: self._max_line_bytes]
        return [line[: self._max_line_bytes] for line in lines]

    def read_last_lines(self) -> list[bytes]:
        """What is left when the writer is gone, a line without an end included."""
        lines = self.read_lines()
        rest, self._rest = self._rest, b""
        return [*lines, rest] if rest else lines

    def close(self) -> None:
        """Gives the descriptor back."""
        os.close(self.fd)


class OutputLog:
    """Writes lines to a file descriptor, each with the name of who wrote it. Drops what nobody takes, and says so.

    A line that is a JSON object is left as it is, for machines to read; it says itself whose it is.
    """

    def __init__(self, fd: int = STDERR_FD) -> None:
        """The descriptor stays the caller's."""
        self._fd = fd
        self._num_dropped = 0

    def write(self, name: str, line: str) -> None:
        """Writes one line; a reader who is gone or stalled is no error."""
        if self._num_dropped:
            note = f"{self._num_dropped} lines were dropped, because nobody read them"
            if self._put("supervisor", note):
                self._num_dropped = 0
        if self._num_dropped or not self._put(name, line):
            self._num_dropped += 1

    def _put(self, name: str, line: str) -> bool:
        is_json = line.startswith("{") and line.endswith("}")
        return write_line(self._fd, line if is_json else f"[{name}] {line}")


def write_line(fd: int, line: str) -> bool:
    """Writes one line if that needs no waiting; False when nobody takes it, or the reader is gone."""
    data = line.encode("utf-8", "replace")[: _MAX_LINE_BYTES - 1] + b"\n"
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    try:
        return bool(poll.poll(0)) and os.write(fd, data) > 0
    except OSError:
        return False
