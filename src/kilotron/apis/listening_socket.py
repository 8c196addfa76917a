"""The socket that a server's front ends share: bound once, before anything else is started, so that a mistake is told
at once and early callers wait instead of being refused."""

import socket

from kilotron.errors import ConfigError

_BACKLOG = 1024


def open_listening_socket(host: str, port: int) -> socket.socket:
    """Bound and listening.

    Raises:
        ConfigError: the address cannot be had; names it and the remedy.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"host {host!r} is no address of this machine: {error.strerror or error}") from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen at {host}:{port}: {error.strerror}; choose another --port") from error
    return listener


def url_of(listener: socket.socket, *, has_tls: bool) -> str:
    """Where to find it."""
    host, port = listener.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    return f"{'https' if has_tls else 'http'}://{name}:{port}"
