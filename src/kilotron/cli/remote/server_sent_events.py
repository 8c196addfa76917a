"""Server-sent events out of bytes that come in any portions. Knows nothing of HTTP, nor what the events say."""

from kilotron.cli.remote.server_error import ServerError

MAX_EVENT_BYTES = 8 << 20

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventParser:
    """Collects the data of events; their names, ids and retry times do not matter here, and comments are skipped."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._rest = b""
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._was_carriage_return = False  # a line feed that comes next belongs to the line end before
        self._is_first_line = True

    def feed(self, portion: bytes) -> list[bytes]:
        """The data of each event that has become complete, its lines joined by line feeds.

        Raises:
            ServerError: a line or an event is too long.
        """
        if self._was_carriage_return and portion:
            portion = portion.removeprefix(b"\n")
            self._was_carriage_return = False
        text = self._rest + portion if self._rest else portion
        lines = text.splitlines()  # of bytes: at \n, \r and \r\n only
        self._rest = lines.pop() if lines and text[-1] not in b"\r\n" else b""
        self._was_carriage_return = self._was_carriage_return or text[-1:] == b"\r"
        self._check_size(len(self._rest))
        events: list[bytes] = []
        for line in lines:
            self._take(line, events)
        return events

    def _take(self, line: bytes, events: list[bytes]) -> None:
        if self._is_first_line:
            line = line.removeprefix(_BYTE_ORDER_MARK)
            self._is_first_line = False
        if not line:
            if self._data:
                events.append(b"\n".join(self._data))
                self._data, self._data_bytes = [], 0
        elif line.startswith(b"data:"):
            self._check_size(len(line))
            self._data.append(line[5:].removeprefix(b" "))
            self._data_bytes += len(line)
        elif line == b"data":
            self._check_size(len(line))
            self._data.append(b"")
            self._data_bytes += len(line)

    def _check_size(self, more: int) -> None:
        if self._data_bytes + more > self._max_event_bytes:
            raise ServerError(f"the server sent an event of more than {self._max_event_bytes} bytes")
