"""Finds the folder of one saved iteration below what a person typed, and tells which Megatron format it has.

Looks at names only, and at the tracker file. Opens no weights.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from kilotron.checkpoints.bounded_file import list_entries, read_bounded
from kilotron.checkpoints.damage import broken, shown
from kilotron.checkpoints.json_file import read_json_object
from kilotron.errors import CheckpointError

TRACKER_FILE = "latest_checkpointed_iteration.txt"
RELEASE = "release"
NEMO_WEIGHTS = "weights"
MAX_TRACKER_BYTES = 100
MAX_NAMED = 5
ITERATION = re.compile(r"iter_(\d{1,18})", re.ASCII)
RANK = re.compile(r"mp_rank_\d+(_\d+)*")
WEIGHTS = re.compile(r"mp_rank_\d+(_\d+)*|\.metadata|.*\.distcp")

Format = Literal["torch_dist", "torch", "torch_dcp"]


@dataclass(frozen=True, slots=True)
class MegatronFolder:
    """One saved iteration."""

    folder: Path
    format: Format
    iteration: int | None
    """None for a release, or a folder whose name does not tell."""


def is_megatron_folder(path: Path) -> bool:
    """Whether a folder looks like a Megatron checkpoint: one iteration, or the folder above several."""
    return _has_weights(path) or _has_weights(path / NEMO_WEIGHTS) or bool(_saved(path)) or _has(path, TRACKER_FILE)


def find_megatron_folder(path: Path) -> MegatronFolder:
    """The iteration that `path` is, or the newest of those in it, as the tracker file says.

    Raises:
        BrokenCheckpointError: the tracker names an iteration that is not there; says which are.
        CheckpointError: it is of a Megatron format that is not read here; says how to convert it.
    """
    for folder in (path, path / NEMO_WEIGHTS):
        if _has_weights(folder):
            return _describe(folder)
    if _has(path, TRACKER_FILE):
        return _describe(_tracked(path / TRACKER_FILE))
    saved = _saved(path)
    if not saved:
        raise broken(path, expected=f"{TRACKER_FILE}, iter_* or mp_rank_*", found="none of them")
    return _describe(path / saved[-1])


def folder_around(path: Path) -> Path | None:
    """The checkpoint's folder that a file or a rank's folder inside of it is a part of, if it is."""
    inner = path if path.is_dir() else path.parent
    if RANK.fullmatch(inner.name):
        return inner.parent
    return inner if inner is not path and _has_weights(inner) else None


def _tracked(tracker: Path) -> Path:
    text = read_bounded(tracker, MAX_TRACKER_BYTES).decode("ascii", "replace").strip()
    if text != RELEASE and not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise broken(tracker, expected=f"an iteration's number or {RELEASE!r}", found=shown(text))
    saved = _saved(tracker.parent)
    name = text if text == RELEASE else f"iter_{int(text):07d}"
    if name not in saved:
        named = ", ".join(saved[-MAX_NAMED:]) or "none"
        found = f"no such folder; there are: {named}" if saved else "no such folder, and no other"
        raise broken(tracker, expected=f"{name} beside it, as it says", found=found)
    return tracker.parent / name


def _saved(path: Path) -> list[str]:
    """The iterations of a folder, the newest last; a release comes before all of them."""
    entries = list_entries(path)
    iterations = sorted((name for name in entries if ITERATION.fullmatch(name)), key=lambda name: int(name[5:]))
    return ([RELEASE] if RELEASE in entries and (path / RELEASE).is_dir() else []) + iterations


def _describe(folder: Path) -> MegatronFolder:
    entries = list_entries(folder)
    match = ITERATION.fullmatch(folder.name)
    known = int(match[1]) if match else None
    if any(RANK.fullmatch(name) for name in entries):
        return MegatronFolder(folder, "torch", known)
    if "metadata.json" in entries:
        _check_backend(folder / "metadata.json")
    elif _is_zarr(folder, entries):
        raise _zarr_error(folder)
    if ".metadata" not in entries:
        raise broken(folder / ".metadata", expected="the list of all tensors", found="no such file")
    return MegatronFolder(folder, "torch_dist" if "metadata.json" in entries else "torch_dcp", known)


def _check_backend(file: Path) -> None:
    backend = read_json_object(file).get("sharded_backend")
    if backend == "zarr":
        raise _zarr_error(file.parent)
    if backend != "torch_dist":
        expected = "sharded_backend torch_dist"
        raise broken(file, expected=expected, found=f"{shown(backend)}; save it again with --ckpt-format torch_dist")


def _is_zarr(folder: Path, entries: Iterable[str]) -> bool:
    return any((folder / name / ".zarray").is_file() for name in islice(entries, 1000))


def _zarr_error(folder: Path) -> CheckpointError:
    return CheckpointError(
        f"{folder} is a zarr checkpoint, which Megatron itself no longer reads: load it with megatron-core 0.15 or "
        "older and save it with --ckpt-format torch_dist"
    )


def _has_weights(path: Path) -> bool:
    entries = set(list_entries(path))
    return {"metadata.json", "common.pt"} <= entries or any(WEIGHTS.fullmatch(name) for name in entries)


def _has(path: Path, name: str) -> bool:
    return os.path.lexists(path / name)
