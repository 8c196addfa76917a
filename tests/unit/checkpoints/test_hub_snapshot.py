"""A hub id comes from the local cache when it is whole there, from the network when not, and fails in one sentence."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from kilotron.checkpoints.huggingface import HuggingFaceCheckpoint
from kilotron.errors import BrokenCheckpointError, CheckpointNotFoundError
from unit.checkpoints.written_files import COMMIT, two_tensors, write_cached_repository

WHOLE = {"config.json": b"{}", "model.safetensors": two_tensors(), "tokenizer.json": b"{}"}
WITHOUT_TOKENIZER = {name: WHOLE[name] for name in ("config.json", "model.safetensors")}
INDEX = json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}).encode()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HOME", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hub"


class FakeHub:
    """Stands in for the library's download: looks into the real cache, and has its own idea of the network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Path | Exception) -> None:
        self.answer = answer
        self.downloads: list[dict[str, Any]] = []
        self.real_snapshot_download = huggingface_hub.snapshot_download
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        monkeypatch.delenv("HF_HUB_OFFLINE")

    def snapshot_download(self, repo_id: str, **options: Any) -> str:
        if options["local_files_only"]:
            return str(self.real_snapshot_download(repo_id, **options))
        self.downloads.append(options)
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


def http_error(kind: type[errors.HfHubHTTPError], status: int) -> Exception:
    return kind("refused", response=errors.Response(status, request=object()))


def complaint_about(hub_id: str, revision: str | None = None) -> str:
    with pytest.raises(CheckpointNotFoundError) as caught:
        HuggingFaceCheckpoint.open(hub_id, revision=revision)
    return str(caught.value)


def test_cached_repository_opens_offline(cache: Path) -> None:
    snapshot = write_cached_repository(cache, "acme/tiny", WHOLE)
    checkpoint = HuggingFaceCheckpoint.open("acme/tiny")
    assert checkpoint.folder == snapshot
    assert checkpoint.read("weight").shape == (2, 3)


def test_cache_is_found_through_hf_home(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(cache.parent))
    assert HuggingFaceCheckpoint.open(write_cached_repository(cache, "acme/tiny", WHOLE)).total_bytes == 32
    assert HuggingFaceCheckpoint.open("acme/tiny").total_bytes == 32


@pytest.mark.parametrize("revision", ["v2", COMMIT])
def test_revision_is_a_tag_or_a_commit(cache: Path, revision: str) -> None:
    snapshot = write_cached_repository(cache, "acme/tiny", WHOLE, revision="v2")
    assert HuggingFaceCheckpoint.open("acme/tiny", revision=revision).folder == snapshot
    assert "is not in the local cache" in complaint_about("acme/tiny")


def test_uncached_id_offline_says_what_to_type(cache: Path) -> None:
    complaint = complaint_about("acme/tiny", "v2")
    assert complaint.startswith("no folder acme/tiny here, and the hub id acme/tiny at revision 'v2' is not in the")
    assert "unset it, or run `hf download acme/tiny --revision v2`" in complaint


def test_near_miss_of_a_local_folder_is_mentioned(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert complaint_about("models/llama-2").endswith("; did you mean models/llama?")


@pytest.mark.parametrize(
    "present", [["config.json"], ["config.json", "index"], ["config.json", "index", "m-1"], ["m-1"]]
)
def test_half_cached_repository_offline_says_so(cache: Path, present: list[str]) -> None:
    names = {"index": "model.safetensors.index.json", "m-1": "m-1.safetensors"}
    files = {names.get(name, name): INDEX if name == "index" else b"{}" for name in present}
    snapshot = write_cached_repository(cache, "acme/tiny", files)
    assert f"is only in part in the local cache ({snapshot})" in complaint_about("acme/tiny")


def test_cached_repository_without_a_tokenizer_opens_offline(cache: Path) -> None:
    write_cached_repository(cache, "acme/tiny", WITHOUT_TOKENIZER)
    assert HuggingFaceCheckpoint.open("acme/tiny").total_bytes == 32


def test_broken_index_in_the_cache_is_named_and_not_fetched_again(cache: Path) -> None:
    write_cached_repository(cache, "acme/tiny", {"config.json": b"{}", "model.safetensors.index.json": b"{"})
    with pytest.raises(BrokenCheckpointError, match=r"index\.json: expected valid JSON"):
        HuggingFaceCheckpoint.open("acme/tiny")


def test_whole_cached_repository_asks_nothing_of_the_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cached_repository(cache, "acme/tiny", WHOLE)
    hub = FakeHub(monkeypatch, OSError("no network"))
    assert HuggingFaceCheckpoint.open("acme/tiny").total_bytes == 32
    assert hub.downloads == []


def test_uncached_id_is_downloaded_without_other_formats(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = write_cached_repository(tmp_path / "elsewhere", "acme/tiny", WHOLE)
    hub = FakeHub(monkeypatch, snapshot)
    assert HuggingFaceCheckpoint.open("acme/tiny").folder == snapshot
    assert "*.safetensors" in hub.downloads[0]["allow_patterns"]
    assert hub.downloads[0]["ignore_patterns"] == ["*/*", "consolidated*"]
    assert hub.downloads[0]["cache_dir"] == str(cache)


def test_half_cached_repository_is_completed(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cached_repository(cache, "acme/tiny", {"config.json": b"{}"})
    snapshot = write_cached_repository(tmp_path / "elsewhere", "acme/tiny", WHOLE)
    FakeHub(monkeypatch, snapshot)
    assert HuggingFaceCheckpoint.open("acme/tiny").folder == snapshot


def test_missing_tokenizer_is_asked_for_but_not_insisted_on(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = write_cached_repository(cache, "acme/tiny", WITHOUT_TOKENIZER)
    hub = FakeHub(monkeypatch, OSError("no network"))
    assert HuggingFaceCheckpoint.open("acme/tiny").folder == snapshot
    assert len(hub.downloads) == 1


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (http_error(errors.GatedRepoError, 403), "is gated: accept its terms at https://huggingface.co/acme/tiny"),
        (http_error(errors.RepositoryNotFoundError, 404), "does not exist on the hub, or is private"),
        (http_error(errors.RevisionNotFoundError, 404), "has no such revision"),
        (http_error(errors.HfHubHTTPError, 500), "could not be downloaded (HfHubHTTPError: 'refused')"),
        (errors.HTTPError("broke off"), "could not be downloaded (HTTPError: 'broke off'): check the network"),
        (
            OSError("no route\nto be read\nat length"),
            "could not be downloaded (OSError: 'no route'): check the network",
        ),
        (OSError("No space left on device"), "could not be downloaded (OSError: 'No space left on device')"),
    ],
)
def test_refusal_of_the_hub_becomes_advice(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, advice: str
) -> None:
    FakeHub(monkeypatch, error)
    assert advice in complaint_about("acme/tiny")


@pytest.mark.parametrize("hub_id", ["acme/a--b", "acme/a..b", "acme/name."])
def test_id_that_the_hub_could_never_have_is_refused(cache: Path, hub_id: str) -> None:
    assert f"the hub id '{hub_id}' cannot be looked up" in complaint_about(hub_id)
