"""Where a server is and the key it wants: out of --url, --api-key-file and the environment. Opens no connection."""

import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from kilotron.cli.failures import UsageError
from kilotron.cli.output import note

KEY_VARIABLES = ("KILOTRON_API_KEY", "OPENAI_API_KEY")

_PORTS = {"http": 80, "https": 443}
_MAX_KEY_BYTES = 4096
_BETWEEN_KEYS = re.compile("[,\n]")


@dataclass(frozen=True)
class ServerAddress:
    """A server, as far as a client must know it."""

    scheme: str
    host: str
    port: int
    prefix: str
    """What stands before /v1 in every path; mostly nothing."""
    api_key: str | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """For messages."""
        return f"{self.scheme}://{self.authority}{self.prefix}"

    @property
    def authority(self) -> str:
        """Host and port, for the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def is_private(self) -> bool:
        """Whether nobody on the way can read along: TLS, or this machine."""
        if self.scheme == "https" or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def server_address(url: str, api_key_file: Path | None) -> ServerAddress:
    """The server of a URL: http or https, with or without /v1 at its end, and without a scheme http.

    Raises:
        UsageError: it is no such URL, or the key cannot be used.
    """
    key = _read_key(api_key_file)
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError as error:
        raise UsageError(f"--url {url}: {error}") from None
    if "@" in parts.netloc:
        raise UsageError("--url must not hold a password; a key goes into KILOTRON_API_KEY or --api-key-file")
    if parts.scheme not in _PORTS or not parts.hostname or parts.query or parts.fragment or not _is_visible(url):
        raise UsageError(f"--url must look like http://localhost:8000, not {url!r}")
    prefix = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    address = ServerAddress(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], prefix, key)
    if key is not None and not address.is_private:
        note(f"the API key travels to {address.host} unencrypted; https would hide it")
    return address


def _read_key(file: Path | None) -> str | None:
    if file is None:
        found = next(((name, os.environ[name]) for name in KEY_VARIABLES if os.environ.get(name)), None)
        if found is None:
            return None
        source, key = found
    else:
        source = f"--api-key-file {file}"
        try:
            with file.open("rb") as stream:
                key = stream.read(_MAX_KEY_BYTES).decode("utf-8", "replace")
        except OSError as error:
            raise UsageError(f"{source}: {error.strerror}") from error
    key = _BETWEEN_KEYS.split(key.strip())[0].strip()  # a server may share its list of keys with us: the first one
    if not key or not _is_visible(key):
        raise UsageError(f"{source}: a key is made of printable ASCII characters without blanks")
    return key


def _is_visible(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text
