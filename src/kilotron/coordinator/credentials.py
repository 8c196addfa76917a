"""Credentials of a service: where its coordinator listens and how its peers prove that they belong to it.

A peer shows a token made for its role, so that a client's token opens no engine's door. Over tcp all traffic is
encrypted with CURVE keys as well. None of this is ever put into argv, an environment or a log; it travels by a pipe or
a 0600 file.
"""

import hmac
import json
import os
import secrets
import stat
from pathlib import Path
from typing import Self, get_args

import msgspec

from kilotron.coordinator.wire import Role
from kilotron.errors import ConfigError, ProtocolError

_LEAST_SECRET_CHARS = 32
_ROLES: tuple[str, ...] = get_args(Role)


class CurveKeys(msgspec.Struct, frozen=True, kw_only=True):
    """Key pairs of CurveZMQ (RFC 26) in Z85: one for the coordinator, one that all peers share."""

    server_public: str
    server_secret: str
    client_public: str
    client_secret: str


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """All that a peer needs to reach a coordinator and be let in."""

    address: str
    """ipc://FILE or tcp://HOST:PORT."""
    secret: str
    curve: CurveKeys | None = None

    def __repr__(self) -> str:
        return f"Credentials({self.address})"

    @classmethod
    def create(cls, address: str) -> Self:
        """New ones for a coordinator that will listen at `address`.

        Raises:
            ConfigError: it is neither ipc nor tcp.
        """
        if address.startswith("ipc:///"):
            return cls(address=address, secret=secrets.token_hex(32))
        if not address.startswith("tcp://"):
            raise ConfigError(f"a coordinator listens at ipc:///FOLDER/FILE or tcp://HOST:PORT, not {address!r}")
        import zmq

        pairs = [key.decode() for _ in range(2) for key in zmq.curve_keypair()]
        names = ("server_public", "server_secret", "client_public", "client_secret")
        return cls(
            address=address, secret=secrets.token_hex(32), curve=CurveKeys(**dict(zip(names, pairs, strict=True)))
        )

    @classmethod
    def from_json(cls, text: bytes | str) -> Self:
        """Reads what `to_json` wrote.

        Raises:
            ConfigError: it is something else, or its secret is missing or too short to be one.
        """
        try:
            credentials = msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as error:
            raise ConfigError(f"these are no credentials of a kilotron service: {error}") from None
        if len(credentials.secret) < _LEAST_SECRET_CHARS:
            raise ConfigError("the secret of these credentials is empty or too short; let the service make new ones")
        if credentials.address.startswith("tcp://") and credentials.curve is None:
            raise ConfigError("a coordinator at a tcp address needs CURVE keys; let the service make new credentials")
        return credentials

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Reads a file that only its owner may read.

        Raises:
            ConfigError: it is missing, readable by others, or holds something else.
        """
        try:
            status = path.stat()
            text = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        if stat.S_IMODE(status.st_mode) & 0o077 or status.st_uid != os.geteuid():
            raise ConfigError(f"{path} can be read by others than you: chmod 600 {path}")
        return cls.from_json(text)

    def to_json(self) -> bytes:
        """For a pipe to a child, or a 0600 file."""
        return json.dumps(msgspec.to_builtins(self)).encode()

    def token(self, role: Role) -> str:
        """What a peer of this role shows in its Hello."""
        return hmac.digest(self.secret.encode(), f"kilotron/1 {role}".encode(), "sha256").hex()

    def check(self, role: str, token: str) -> None:
        """Lets a peer in, or not.

        Raises:
            ProtocolError: the token is not the one of that role.
        """
        if role not in _ROLES or not hmac.compare_digest(self.token(role).encode(), token.encode()):  # type: ignore[arg-type]
            raise ProtocolError(f"a {role} with a wrong token")
