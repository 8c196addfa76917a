"""Finds a hub id in the Hugging Face cache, else downloads it. The only file here that may use the network."""

import os
from pathlib import Path

from kilotron.checkpoints.damage import shown
from kilotron.checkpoints.shard_index import INDEX_FILE, WEIGHTS_FILE, read_shard_index
from kilotron.errors import BrokenCheckpointError, CheckpointError, CheckpointNotFoundError

CONFIG_FILE = "config.json"
WANTED_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "*.tiktoken", "merges.txt", "vocab.txt"]
# Copies of the same weights in other formats: ONNX and other folders, and Mistral's own layout.
UNWANTED_FILES = ["*/*", "consolidated*"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
TRUE_WORDS = {"1", "ON", "YES", "TRUE"}


def find_hub_snapshot(hub_id: str, *, revision: str | None, hint: str) -> Path:
    """The folder of a hub repository: from the cache when all of it is there, however old; else from the network.

    Raises:
        CheckpointNotFoundError: not in the cache, and offline, or the hub does not have it or does not give it.
    """
    cached = _cached_snapshot(hub_id, revision)
    usable = cached if cached is not None and _has_weights(cached) else None
    if usable is not None and (_has_tokenizer(usable) or _is_offline()):
        return usable
    if _is_offline():
        raise _not_found(hub_id, revision, hint, _offline_reason(hub_id, revision, cached))
    try:
        return _snapshot(hub_id, revision, local_files_only=False)
    except _download_errors() as error:
        if usable is not None:  # only a tokenizer file was in doubt
            return usable
        raise _not_found(hub_id, revision, hint, _download_reason(hub_id, error)) from error


def _snapshot(hub_id: str, revision: str | None, *, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download  # costs 0.4 s, and a local folder needs none of it

    folder = snapshot_download(
        hub_id,
        revision=revision,
        cache_dir=_cache_folder(),
        local_files_only=local_files_only,
        allow_patterns=WANTED_FILES,
        ignore_patterns=UNWANTED_FILES,
    )
    return Path(folder)


def _cached_snapshot(hub_id: str, revision: str | None) -> Path | None:
    """What the cache has of it, perhaps not all, since any program may have fetched a single file."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return _snapshot(hub_id, revision, local_files_only=True)
    except LocalEntryNotFoundError as error:
        incomplete = getattr(error, "snapshot_path", None)  # some hub versions know that files are missing
        return Path(incomplete) if incomplete else None
    except (OSError, ValueError) as error:
        raise CheckpointNotFoundError(f"the hub id {shown(hub_id)} cannot be looked up: {error}") from error


def _cache_folder() -> str | None:
    """The cache that the environment names now; the library looks only once, when it is first imported."""
    if folder := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return os.path.expanduser(folder)
    if home := os.environ.get("HF_HOME"):
        return os.path.join(os.path.expanduser(home), "hub")
    return None


def _is_offline() -> bool:
    words = (os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(word in TRUE_WORDS for word in words)


def _has_weights(folder: Path) -> bool:
    """Whether config.json and every shard are there. Damage is for the reader to name, so a bad index counts."""
    if not (folder / CONFIG_FILE).exists():
        return False
    if (folder / WEIGHTS_FILE).exists():
        return True
    try:
        shards = set(read_shard_index(folder / INDEX_FILE).values())
    except BrokenCheckpointError:
        return (folder / INDEX_FILE).exists()
    return all(shard.exists() for shard in shards)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).exists() for name in TOKENIZER_FILES)


def _download_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # the HTTP client's own base class

    return (OSError, ValueError, HTTPError)


def _not_found(hub_id: str, revision: str | None, hint: str, reason: str) -> CheckpointError:
    name = hub_id if revision is None else f"{hub_id} at revision {shown(revision)}"
    return CheckpointNotFoundError(
        f"no folder {hub_id} here, and the hub id {name} {reason}" + (f"; {hint}" * bool(hint))
    )


def _offline_reason(hub_id: str, revision: str | None, cached: Path | None) -> str:
    state = "is not in the local cache" if cached is None else f"is only in part in the local cache ({cached})"
    chosen = "" if revision is None else f" --revision {revision}"
    return (
        f"{state}, while HF_HUB_OFFLINE forbids the network: unset it, or run `hf download {hub_id}{chosen}` where "
        "there is a network"
    )


def _download_reason(hub_id: str, error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return f"is gated: accept its terms at https://huggingface.co/{hub_id}, then log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "does not exist on the hub, or is private: check the spelling, or log in with `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"has no such revision: see https://huggingface.co/{hub_id}/tree/main"
    cause = str(error).partition("\n")[0]  # the library's further lines are advice, in words of its own
    return f"could not be downloaded ({type(error).__name__}: {shown(cause)}): check the network and try again"
