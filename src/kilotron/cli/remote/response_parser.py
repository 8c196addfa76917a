"""One HTTP/1.1 response out of bytes that come in any portions: status, headers, body. Does no input or output.

Hand-written because a load generator shares its cores with the server that it measures: for each chunk of a stream
httpx2 takes about 100 us of CPU time, this 30 us, and 12 us under uvloop (16 streams, chunk to decoded struct).
"""

from kilotron.cli.remote.server_error import ServerError

_MAX_HEAD_BYTES = 64 << 10
_MAX_SIZE_LINE_BYTES = 1 << 10
_MAX_TRAILER_BYTES = 8 << 10
_NO_BODY = (204, 304)


class ResponseParser:
    """Feed it what arrives; it gives back what belongs to the body."""

    def __init__(self) -> None:
        self.status = 0
        """0 until the head is complete."""
        self.headers: dict[str, str] = {}
        """By lower-case name; of repeated ones the last."""
        self.is_complete = False
        self._buffer = b""
        self._at = 0
        self._left = 0  # bytes of the body, or of the chunk, that are still to come
        self._take = self._take_head

    def feed(self, portion: bytes) -> list[bytes]:
        """The pieces of the body in this portion.

        Raises:
            ServerError: this is no HTTP response, or a part of it is too long.
        """
        self._buffer = self._buffer[self._at :] + portion
        self._at = 0
        pieces: list[bytes] = []
        while not self.is_complete and self._take(pieces):
            pass
        return pieces

    def end(self) -> None:
        """The connection has ended.

        Raises:
            ServerError: before the response did.
        """
        if not self.is_complete and self._take != self._take_rest:
            raise ServerError("the server closed the connection in the middle of its answer")
        self.is_complete = True

    def _take_head(self, pieces: list[bytes]) -> bool:
        end = self._buffer.find(b"\r\n\r\n", self._at)
        if end < 0:
            self._check_length(_MAX_HEAD_BYTES, "head")
            return False
        first, *lines = self._buffer[self._at : end].decode("latin-1").split("\r\n")
        self._at = end + 4
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
            raise ServerError("what answers there does not speak HTTP/1.1")
        status = int(rest[:3])
        if status < 200:  # interim; the real one follows
            return True
        self.status = status
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        self._begin_body()
        return True

    def _begin_body(self) -> None:
        length = self.headers.get("content-length")
        if self.status in _NO_BODY:
            self.is_complete = True
        elif "chunked" in self.headers.get("transfer-encoding", "").lower():
            self._take = self._take_size
        elif length is not None:
            if not length.isdecimal():
                raise ServerError("the server sent a Content-Length that is no number")
            self._left = int(length)
            self.is_complete = self._left == 0
            self._take = self._take_counted
        else:
            self._take = self._take_rest

    def _take_counted(self, pieces: list[bytes]) -> bool:
        self._take_piece(pieces)
        self.is_complete = self._left == 0
        return False

    def _take_rest(self, pieces: list[bytes]) -> bool:
        self._left = len(self._buffer) - self._at
        self._take_piece(pieces)
        return False

    def _take_size(self, pieces: list[bytes]) -> bool:
        end = self._buffer.find(b"\r\n", self._at)
        if end < 0:
            self._check_length(_MAX_SIZE_LINE_BYTES, "chunk size")
            return False
        size = self._buffer[self._at : end].partition(b";")[0]
        try:
            self._left = int(size, 16)
        except ValueError:
            self._left = -1
        if self._left < 0:
            raise ServerError("the server sent a chunk whose size is no number")
        self._at = end + 2
        self._take = self._take_chunk if self._left else self._take_trailer
        return True

    def _take_chunk(self, pieces: list[bytes]) -> bool:
        if self._left:
            self._take_piece(pieces)
        if self._left or len(self._buffer) - self._at < 2:
            return False
        if not self._buffer.startswith(b"\r\n", self._at):
            raise ServerError("the server sent a chunk that is longer than it says")
        self._at += 2
        self._take = self._take_size
        return True

    def _take_trailer(self, pieces: list[bytes]) -> bool:
        end = self._buffer.find(b"\r\n", self._at)
        if end < 0:
            self._check_length(_MAX_TRAILER_BYTES, "trailer")
            return False
        self.is_complete = end == self._at
        self._at = end + 2
        return True

    def _take_piece(self, pieces: list[bytes]) -> None:
        piece = self._buffer[self._at : self._at + self._left]
        self._at += len(piece)
        self._left -= len(piece)
        if piece:
            pieces.append(piece)

    def _check_length(self, limit: int, part: str) -> None:
        if len(self._buffer) - self._at > limit:
            raise ServerError(f"the server sent a {part} of more than {limit} bytes")
