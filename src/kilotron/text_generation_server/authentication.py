"""API keys: where they are read from, how they are compared, and the ASGI layer that asks every request for one.

Keys are hashed when loaded and never kept, logged or echoed. Knows nothing of quotas; it names the key by its hash.
"""

import hashlib
import hmac
import ipaddress
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kilotron.config import ADMIN_KEY_VARIABLE, API_KEY_VARIABLE
from kilotron.errors import ConfigError
from kilotron.text_generation_server.http_errors import HttpError

# Compared whole: a prefix would open `/healthXYZ`.
OPEN_PATHS = frozenset({"/livez", "/health", "/ready", "/readyz"})
ADMIN_SEGMENT = "admin"

_MAX_KEY_FILE_BYTES = 64 * 1024
_KEY_ID_DIGITS = 16


@dataclass(frozen=True)
class KeyRing:
    """SHA-256 digests of the keys that are known. The admin keys open everything, the API keys all but admin paths."""

    api_digests: tuple[bytes, ...] = ()
    admin_digests: tuple[bytes, ...] = ()

    @property
    def is_empty(self) -> bool:
        """True if no key of either kind is configured, so none can be asked for."""
        return not self.api_digests and not self.admin_digests


@dataclass(frozen=True)
class Identity:
    """Who asks. `key_id` names the key without giving it away; it is None where no keys are configured."""

    key_id: str | None
    is_admin: bool


def load_key_ring(
    environment: Mapping[str, str], api_key_file: Path | None = None, admin_key_file: Path | None = None
) -> KeyRing:
    """Read the keys from KILOTRON_API_KEY and KILOTRON_ADMIN_KEY (commas or newlines between several) and from files.

    Raises:
        ConfigError: a key is empty or has characters that no header can carry; a file is missing, is not ours, can be
            read by others, or holds no key; one key is both. The message never holds a key.
    """
    api = _keys_of_environment(environment, API_KEY_VARIABLE) + _keys_of_file(api_key_file)
    admin = _keys_of_environment(environment, ADMIN_KEY_VARIABLE) + _keys_of_file(admin_key_file)
    if set(api) & set(admin):
        raise ConfigError("an API key is also an admin key; give the admin a key of its own")
    return KeyRing(tuple(map(_digest, api)), tuple(map(_digest, admin)))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to this host; a name other than localhost does not count."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_bind(host: str, keys: KeyRing, *, allow_public_without_key: bool) -> None:
    """Refuse to serve strangers without asking for a key.

    Raises:
        ConfigError: `host` is reachable from other machines, no API key is configured, and nobody said that is meant.
    """
    if not is_loopback(host) and not keys.api_digests and not allow_public_without_key:
        raise ConfigError(
            f"binding {host} would let everybody on the network use the server; set {API_KEY_VARIABLE}, give "
            "--api-key-file, bind 127.0.0.1, or pass --allow-public-without-key if that is meant"
        )


def is_admin_path(path: str) -> bool:
    """Whether a decoded path is an admin one, also when written with empty, `.` or `..` segments."""
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del segments[-1:]
        elif segment not in ("", "."):
            segments.append(segment)
    return segments[:1] == [ADMIN_SEGMENT]


class Authentication:
    """ASGI layer that lets nothing pass without a key except the health routes. Goes right inside the guard.

    Puts an `Identity` into `scope["state"]["identity"]`.

    Args:
        app: The application.
        keys: Known keys. If there are no API keys, every path but the admin ones is open.
        is_local: The server is bound to a loopback address. There, and only if no key of any kind is configured,
            the admin paths are open as well: whoever can connect can already signal the process or read its memory in
            the usual case of a single user, and pausing one's own engine should not need a secret. As soon as any key
            exists, the operator tells callers apart, and admin paths stay closed until an admin key exists too.
    """

    def __init__(self, app: Any, keys: KeyRing, *, is_local: bool) -> None:
        self._app = app
        self._keys = keys
        self._is_admin_open = is_local and keys.is_empty

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            try:
                scope.setdefault("state", {})["identity"] = self._identify(scope)
            except HttpError as error:
                await error.to_response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _identify(self, scope: Mapping[str, Any]) -> Identity:
        path: str = scope["path"]
        if path in OPEN_PATHS:
            return Identity(None, is_admin=False)
        identity = self._identity_of_key(_bearer_token(scope["headers"]))
        if is_admin_path(path) and not (self._is_admin_open or (identity is not None and identity.is_admin)):
            raise self._admin_refusal(identity)
        if identity is not None:
            return identity
        if self._keys.api_digests:
            raise _unauthorized()
        return Identity(None, is_admin=self._is_admin_open)

    def _identity_of_key(self, token: bytes) -> Identity | None:
        digest = hashlib.sha256(token).digest()
        # Every known key is compared, whichever fits, so that the time taken tells nothing.
        is_api = sum([hmac.compare_digest(digest, known) for known in self._keys.api_digests]) > 0
        is_admin = sum([hmac.compare_digest(digest, known) for known in self._keys.admin_digests]) > 0
        return Identity(digest.hex()[:_KEY_ID_DIGITS], is_admin) if is_api or is_admin else None

    def _admin_refusal(self, identity: Identity | None) -> HttpError:
        if not self._keys.admin_digests:
            message = f"admin routes are closed because the server has no admin key; start it with {ADMIN_KEY_VARIABLE}"
            return HttpError(403, message, code="admin_key_required")
        if identity is not None:
            return HttpError(403, "this route needs the admin key", code="admin_key_required")
        return _unauthorized()


def _unauthorized() -> HttpError:
    message = "no valid API key was given; send it as 'Authorization: Bearer KEY'"
    return HttpError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def _bearer_token(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The token as raw bytes; empty, which is no key, if there is none or more than one."""
    values = [value for name, value in headers if name == b"authorization"]
    if len(values) != 1:
        return b""
    scheme, _, token = values[0].partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _keys_of_environment(environment: Mapping[str, str], variable: str) -> list[str]:
    text = environment.get(variable)
    if text is None:
        return []
    keys = [key.strip() for key in text.rstrip("\n").replace("\n", ",").split(",")]
    return [_checked(key, variable) for key in keys]


def _keys_of_file(path: Path | None) -> list[str]:
    if path is None:
        return []
    lines = [line.strip() for line in _read_private_file(path).splitlines()]
    keys = [_checked(line, str(path)) for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"key file {path} holds no key")
    return keys


def _read_private_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"key file {path} is not a regular file")
            if status.st_uid != os.geteuid():
                raise ConfigError(f"key file {path} belongs to another user; it must be owned by the one who serves")
            if status.st_mode & 0o077:
                raise ConfigError(f"key file {path} can be reached by other users; run: chmod 600 {path}")
            content = file.read(_MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"key file {path} cannot be read: {error.strerror}") from error
    if len(content) > _MAX_KEY_FILE_BYTES:
        raise ConfigError(f"key file {path} is larger than {_MAX_KEY_FILE_BYTES} bytes")
    return content.decode("utf-8", errors="replace")


def _checked(key: str, source: str) -> str:
    if not key:
        raise ConfigError(f"{source} holds an empty key; set a key or unset it")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"a key in {source} has a space or a character outside printable ASCII")
    return key
