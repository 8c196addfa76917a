"""Keys open what they should and nothing else, and are never told."""

import asyncio
import hashlib
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kilotron.errors import ConfigError
from kilotron.text_generation_server.authentication import (
    Authentication,
    Identity,
    KeyRing,
    check_bind,
    is_admin_path,
    is_loopback,
    load_key_ring,
)

API_KEY = "sk-first-key"
OTHER_KEY = "sk-other-key"
ADMIN_KEY = "sk-admin-key"
BOTH = load_key_ring({"KILOTRON_API_KEY": f"{API_KEY},{OTHER_KEY}", "KILOTRON_ADMIN_KEY": ADMIN_KEY})
API_ONLY = load_key_ring({"KILOTRON_API_KEY": API_KEY})
NONE = KeyRing()


def ask(
    keys: KeyRing, path: str, authorization: bytes | None = None, *, is_local: bool = False, method: str = "POST"
) -> tuple[int, Identity | None, Mapping[bytes, bytes]]:
    """Status, the identity that the application saw, and the response's headers."""
    seen: list[Identity] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["state"]["identity"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    headers = [] if authorization is None else [(b"authorization", authorization)]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    asyncio.run(Authentication(app, keys, is_local=is_local)(scope, receive, send))
    return sent[0]["status"], (seen or [None])[0], dict(sent[0]["headers"])


def bearer(key: str) -> bytes:
    return b"Bearer " + key.encode()


@pytest.mark.parametrize("path", ["/livez", "/health", "/ready", "/readyz"])
def test_health_is_open(path: str) -> None:
    assert ask(BOTH, path)[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/v1/models", "/metrics", "/", "", "/health/", "/healthXYZ", "/health/../v1/models", "//health", "/HEALTH", "*"],
)
def test_everything_else_needs_a_key(path: str) -> None:
    status, identity, headers = ask(BOTH, path)

    assert (status, identity) == (401, None)
    assert headers[b"www-authenticate"] == b"Bearer"


@pytest.mark.parametrize("key", [API_KEY, OTHER_KEY, ADMIN_KEY])
def test_each_known_key_opens_and_is_named_by_its_hash(key: str) -> None:
    status, identity, _ = ask(BOTH, "/v1/models", bearer(key))

    assert status == 200
    assert identity == Identity(hashlib.sha256(key.encode()).hexdigest()[:16], key == ADMIN_KEY)


@pytest.mark.parametrize(
    "authorization",
    [
        b"Bearer ",
        b"Bearer",
        b"",
        b"Bearer \xe9",
        b"Bearer \xff\xfe\x00",
        b"Basic c2stZmlyc3Qta2V5",
        bearer(API_KEY[:-1]),
        bearer(API_KEY + "x"),
        bearer(f"{API_KEY},{OTHER_KEY}"),
        API_KEY.encode(),
        b"Bearer " + hashlib.sha256(API_KEY.encode()).digest(),
    ],
)
def test_anything_else_is_401(authorization: bytes) -> None:
    assert ask(BOTH, "/v1/models", authorization)[0] == 401


def test_the_scheme_is_read_in_any_case() -> None:
    assert ask(BOTH, "/v1/models", b"bearer   " + API_KEY.encode())[0] == 200


@pytest.mark.parametrize(
    ("path", "is_admin"),
    [
        ("/admin", True),
        ("/admin/pause", True),
        ("//admin/pause", True),
        ("/./admin/pause", True),
        ("/v1/../admin/pause", True),
        ("/../admin", True),
        ("/administrator", False),
        ("/v1/models/admin", False),
        ("/", False),
        ("", False),
    ],
)
def test_admin_paths_are_told_by_their_first_segment(path: str, is_admin: bool) -> None:
    assert is_admin_path(path) == is_admin


@pytest.mark.parametrize(
    ("keys", "authorization", "is_local", "status"),
    [
        (BOTH, bearer(ADMIN_KEY), False, 200),
        (BOTH, bearer(API_KEY), False, 403),
        (BOTH, bearer("wrong"), False, 401),
        (BOTH, None, True, 401),
        (API_ONLY, bearer(API_KEY), True, 403),
        (API_ONLY, None, True, 403),
        (NONE, None, False, 403),
        (NONE, None, True, 200),
    ],
)
def test_admin_needs_the_admin_key_unless_the_server_is_local_and_has_no_keys(
    keys: KeyRing, authorization: bytes | None, is_local: bool, status: int
) -> None:
    assert ask(keys, "/admin/pause", authorization, is_local=is_local)[0] == status


def test_without_keys_any_token_is_taken_and_nobody_is_named() -> None:
    assert ask(NONE, "/v1/models", bearer("dummy"))[:2] == (200, Identity(None, is_admin=False))


@pytest.mark.parametrize("text", ["", " ", ",", "a,,b", "a,", "a\n\nb", "a b", "schlüssel", "a\tb"])
def test_an_empty_or_unusable_key_refuses_to_start_without_being_told(text: str) -> None:
    with pytest.raises(ConfigError, match="KILOTRON_API_KEY") as caught:
        load_key_ring({"KILOTRON_API_KEY": text})

    assert "schlüssel" not in str(caught.value)


def test_several_keys_are_separated_by_commas_or_lines() -> None:
    assert len(load_key_ring({"KILOTRON_API_KEY": "a, b\nc\n"}).api_digests) == 3


def test_a_key_cannot_be_both() -> None:
    with pytest.raises(ConfigError, match="own"):
        load_key_ring({"KILOTRON_API_KEY": "a", "KILOTRON_ADMIN_KEY": "a"})


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# ours\n{API_KEY}\n\n {OTHER_KEY} \n")
    path.chmod(0o600)
    return path


def test_a_file_holds_a_key_per_line(key_file: Path) -> None:
    assert load_key_ring({}, key_file).api_digests == BOTH.api_digests


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_file_that_others_can_reach_is_refused(key_file: Path, mode: int) -> None:
    key_file.chmod(mode)

    with pytest.raises(ConfigError, match="chmod 600"):
        load_key_ring({}, key_file)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_is_refused(key_file: Path) -> None:
    os.chown(key_file, 12345, -1)

    with pytest.raises(ConfigError, match="another user"):
        load_key_ring({}, key_file)


@contextmanager
def refused() -> Iterator[None]:
    with pytest.raises(ConfigError, match="key file"):
        yield


def test_a_file_that_is_missing_empty_or_no_file_is_refused(key_file: Path, tmp_path: Path) -> None:
    key_file.write_text("# nothing\n\n")
    with refused():
        load_key_ring({}, key_file)
    with refused():
        load_key_ring({}, tmp_path / "missing")
    with refused():
        load_key_ring({}, None, tmp_path)
    key_file.write_text("a" * 100_000)
    with refused():
        load_key_ring({}, key_file)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.0.0.1", False),
        ("localhost.evil.example", False),
    ],
)
def test_loopback_is_known_by_its_address(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_a_public_bind_needs_a_key_or_the_word_that_it_is_meant() -> None:
    check_bind("127.0.0.1", NONE, allow_public_without_key=False)
    check_bind("0.0.0.0", API_ONLY, allow_public_without_key=False)
    check_bind("0.0.0.0", NONE, allow_public_without_key=True)
    admin_only = load_key_ring({"KILOTRON_ADMIN_KEY": ADMIN_KEY})
    for keys in (NONE, admin_only):
        with pytest.raises(ConfigError, match="allow-public-without-key"):
            check_bind("0.0.0.0", keys, allow_public_without_key=False)


@pytest.mark.slow
def test_the_time_taken_does_not_tell_how_much_of_a_key_is_right() -> None:
    layer = Authentication(None, BOTH, is_local=False)
    tokens = {"right prefix": (API_KEY[:-1] + "x").encode(), "all wrong": b"x" * len(API_KEY)}
    durations: dict[str, list[int]] = {name: [] for name in tokens}
    for trial in range(20_000):
        for name in sorted(tokens, reverse=bool(trial % 2)):
            begin = time.perf_counter_ns()
            layer._identity_of_key(tokens[name])
            durations[name].append(time.perf_counter_ns() - begin)
    # The slowest fifth is the machine's other work.
    samples = [sorted(values)[: len(values) * 4 // 5] for values in durations.values()]
    means = [statistics.fmean(sample) for sample in samples]

    # A comparison that goes through the characters in Python differs by tens of percent; digests compared in C do
    # not. A few nanoseconds come from what else the machine does.
    assert abs(means[0] - means[1]) < 0.02 * min(means)
