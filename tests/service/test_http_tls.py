"""The server over TLS: versions, unusable files, and the same bounds as without."""

import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kilotron.errors import ConfigError
from kilotron.text_generation_server.http_limits import HttpLimits
from kilotron.text_generation_server.tls import build_tls_context
from service.http_world import World, read_response, request, send_all, serving

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")

LIMITS = HttpLimits(header_timeout_s=0.5, linger_timeout_s=0.5, keep_alive_timeout_s=0.5, send_stall_timeout_s=0.5)


def make_certificate(folder: Path, *options: str) -> tuple[Path, Path]:
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=localhost"]
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, *files, *(options or ("-nodes",))], check=True, capture_output=True)
    return certificate, key


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def world(files: tuple[Path, Path]) -> Iterator[World]:
    with serving(LIMITS, tls=build_tls_context(*files)) as world:
        yield world


def connect(world: World, certificate: Path, version: ssl.TLSVersion) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(certificate))
    context.minimum_version = context.maximum_version = version
    return context.wrap_socket(world.connect(), server_hostname="127.0.0.1")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_is_served_over_tls(world: World, files: tuple[Path, Path], version: ssl.TLSVersion) -> None:
    with connect(world, files[0], version) as peer:
        peer.sendall(request(body=b"hello"))

        assert read_response(peer).status == 200


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
def test_an_older_version_is_refused(world: World, files: tuple[Path, Path]) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        connect(world, files[0], ssl.TLSVersion.TLSv1_1)


def test_a_refused_client_can_read_why(world: World, files: tuple[Path, Path]) -> None:
    with connect(world, files[0], ssl.TLSVersion.TLSv1_3) as peer:
        send_all(peer, b"GET /echo HTTP/1.1\r\nX-A: " + b"a" * (1 << 20))

        assert read_response(peer).status == 431


def test_a_reader_who_stalls_is_dropped(world: World, files: tuple[Path, Path]) -> None:
    with connect(world, files[0], ssl.TLSVersion.TLSv1_3) as peer:
        peer.sendall(request("/flood"))

        assert world.app.was_cancelled.wait(5)


@pytest.mark.parametrize("data", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"], ids=["silent", "half a hello"])
def test_a_handshake_that_does_not_go_on_is_ended(world: World, data: bytes) -> None:
    begin = time.monotonic()
    with world.connect() as peer:
        peer.sendall(data)
        try:
            rest = peer.recv(100)
        except ConnectionResetError:
            rest = b""

    assert rest == b""
    assert time.monotonic() - begin < 3


def test_files_that_are_missing_or_do_not_fit_are_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, key = files
    _, other_key = make_certificate(tmp_path)
    for broken in ((tmp_path / "no.pem", key), (certificate, tmp_path / "no.pem"), (certificate, other_key)):
        with pytest.raises(ConfigError, match=r"\.pem"):
            build_tls_context(*broken)


def test_an_encrypted_key_is_refused_without_asking_for_its_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        build_tls_context(*make_certificate(tmp_path, "-passout", "pass:secret"))


def test_plain_http_on_the_tls_port_does_no_harm(world: World, files: tuple[Path, Path]) -> None:
    with world.connect() as peer:
        peer.sendall(request())
        assert b"200 OK" not in peer.recv(100)
    with connect(world, files[0], ssl.TLSVersion.TLSv1_3) as peer:
        peer.sendall(request())
        assert read_response(peer).status == 200
