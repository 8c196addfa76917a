"""The child of a `TemplateWorker`: renders what it is sent, one conversation at a time, until it is killed.

Imports chat templates and nothing of the server. Trusts neither the templates nor the messages, and lowers its own
limits before it looks at either.
"""

import json
import os
import re
import resource
import signal
import socket
import struct
import sys
from typing import Any

import jinja2.sandbox  # noqa: F401  chat templates would only import it at the first use, under the limits

from kilotron.coordinator.supervision.parent_death import die_with_parent
from kilotron.errors import ChatTemplateError
from kilotron.tokenization.chat_template import ChatTemplate

LENGTH = struct.Struct(">I")  # in front of every frame

# The first byte of a frame to the parent; text follows.
READY, RENDERED, REFUSED = b"A", b"T", b"E"

MAX_ERROR_CHARS = 1024

_SANDBOX_SHARE = 0.8  # of the time limit: then the sandbox itself stops, which saves the process
_CPU_SHARE = 2.0  # a parent that is too busy to kill us does not keep us running
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")


def main() -> None:
    """Serves the socket that is our stdin; arguments: the parent's pid."""
    die_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to decide about
    with socket.socket(fileno=os.dup(0)) as connection:
        request = _receive(connection)
        if request is None:
            return
        start = json.loads(request)
        template = ChatTemplate(
            start["templates"],
            start["special_tokens"],
            max_output_chars=start["max_output_chars"],
            time_limit_s=start["time_limit_s"] * _SANDBOX_SHARE,
        )
        _lower_limits(start["memory_bytes"])
        _send(connection, READY)
        _silence()
        while (request := _receive(connection)) is not None:
            signal.setitimer(signal.ITIMER_PROF, start["time_limit_s"] * _CPU_SHARE)
            reply, is_healthy = _answer(template, request)
            signal.setitimer(signal.ITIMER_PROF, 0)
            _send(connection, reply)
            if not is_healthy:
                return


def _answer(template: ChatTemplate, request: bytes) -> tuple[bytes, bool]:
    """The reply, and whether this process is good for another one."""
    try:
        arguments: dict[str, Any] = json.loads(request)
        variables = arguments.pop("variables")
        text = template.render(**variables, **arguments)
        return RENDERED + text.encode("utf-8", "surrogatepass"), True
    except ChatTemplateError as error:
        message = _ADDRESS.sub("0x...", str(error))[:MAX_ERROR_CHARS]
        is_healthy = not isinstance(error.__cause__, MemoryError)
        return REFUSED + message.encode("utf-8", "replace"), is_healthy
    except (RecursionError, MemoryError) as error:
        message = f"the conversation is too large for its chat template: {type(error).__name__}"
        return REFUSED + message.encode(), False


def _lower_limits(memory_bytes: int) -> None:
    """What a template could do if it left the sandbox: no files, no processes, no core dump with prompts in it."""
    with open("/proc/self/statm", encoding="ascii") as sizes:
        base_bytes = int(sizes.read().split()[0]) * resource.getpagesize()
    for kind, limit in (
        (resource.RLIMIT_AS, base_bytes + memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


def _silence() -> None:
    """From here on what Python might say about a crash could hold a user's text."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)


def _receive(connection: socket.socket) -> bytes | None:
    """The next frame, or `None` when the parent has closed the connection."""
    header = _receive_exactly(connection, LENGTH.size)
    return None if header is None else _receive_exactly(connection, LENGTH.unpack(header)[0])


def _receive_exactly(connection: socket.socket, num_bytes: int) -> bytes | None:
    pieces = []
    while num_bytes:
        piece = connection.recv(min(num_bytes, 1 << 20))
        if not piece:
            return None
        pieces.append(piece)
        num_bytes -= len(piece)
    return b"".join(pieces)


def _send(connection: socket.socket, frame: bytes) -> None:
    try:
        connection.sendall(LENGTH.pack(len(frame)) + frame)
    except BrokenPipeError:
        sys.exit()  # the parent has left


if __name__ == "__main__":
    main()
