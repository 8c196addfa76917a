"""Tests of --url, and of where a key comes from and may travel."""

from pathlib import Path

import pytest

from kilotron.cli.failures import UsageError
from kilotron.cli.remote.server_address import server_address


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KILOTRON_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "shown", "authority"),
    [
        ("http://localhost:8000", "http://localhost:8000", "localhost:8000"),
        ("localhost:8000/v1/", "http://localhost:8000", "localhost:8000"),
        ("https://x.example/base/v1", "https://x.example/base", "x.example"),
        ("http://[::1]:9", "http://[::1]:9", "[::1]:9"),
    ],
)
def test_a_url_may_be_written_in_several_ways(url: str, shown: str, authority: str) -> None:
    address = server_address(url, None)
    assert (address.url, address.authority) == (shown, authority)


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "http://u:p@x", "http://x?a=1", "http://x:port", "http://x/\r\nX: y", "http://x y"]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="--url"):
        server_address(url, None)


def test_the_files_key_beats_the_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    assert server_address("http://localhost", None).api_key == "theirs"
    monkeypatch.setenv("KILOTRON_API_KEY", "ours")
    assert server_address("http://localhost", None).api_key == "ours"
    (tmp_path / "key").write_text("filed\n")
    assert server_address("http://localhost", tmp_path / "key").api_key == "filed"


def test_of_the_keys_that_a_server_knows_the_first_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text("one\ntwo\n")
    assert server_address("http://localhost", tmp_path / "keys").api_key == "one"
    monkeypatch.setenv("KILOTRON_API_KEY", "three,four")
    assert server_address("http://localhost", None).api_key == "three"


@pytest.mark.parametrize("key", ["", "two words", "line\rX-Evil:1", "nön-ascii"])
def test_a_key_that_would_break_a_header_is_refused_and_not_shown(tmp_path: Path, key: str) -> None:
    (tmp_path / "key").write_text(key)
    with pytest.raises(UsageError, match="--api-key-file") as caught:
        server_address("http://localhost", tmp_path / "key")
    assert not key or key not in str(caught.value)


def test_a_key_is_neither_in_the_repr_nor_sent_in_the_clear_unsaid(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KILOTRON_API_KEY", "sesame")
    assert "sesame" not in repr(server_address("http://127.0.0.1:1", None))
    assert capsys.readouterr().err == ""
    server_address("http://models.example", None)
    assert "unencrypted" in capsys.readouterr().err
