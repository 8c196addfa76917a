"""A folder that is written piece by piece and gets its name only when all of it is there.

Until then it is NAME.unfinished, with a manifest of the files that are done, so that a later run goes on where one was
stopped. Knows nothing of what is in the files.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from kilotron.checkpoints.damage import shown
from kilotron.checkpoints.folder_lock import LOCK_FILE, FolderLock
from kilotron.checkpoints.json_file import read_json_object
from kilotron.checkpoints.output_tensor import DigestingStream
from kilotron.errors import BrokenCheckpointError, CheckpointError

SUFFIX = ".unfinished"
REPLACED_SUFFIX = ".replaced"
MANIFEST_FILE = "conversion.json"
PART_SUFFIX = ".part"
MANIFEST_VERSION = 1
MAX_MANIFEST_BYTES = 512_000_000
CHUNK_BYTES = 1 << 22
# Headers, indices and tokenizer files, and what a file system needs itself.
SPARE_BYTES = 64 << 20

FreeBytes = Callable[[Path], int]


def free_bytes(folder: Path) -> int:
    """What the file system of a folder has left for this user."""
    return shutil.disk_usage(folder).free


class UnfinishedFolder:
    """A folder under way.

    Nobody else can open it before it is closed, in this process or another.

    Example:
        with UnfinishedFolder.open(Path("out"), work={"source": "in"}, overwrite=False) as folder:
            folder.write_file("a.bin", lambda stream: {"rows": stream.write(b"...")})
            folder.finish()
    """

    def __init__(self, final: Path, path: Path, lock: FolderLock, manifest: dict[str, Any], *, overwrite: bool) -> None:
        self.final = final
        self.path = path
        self._lock = lock
        self._manifest = manifest
        self._overwrite = overwrite

    @classmethod
    def open(cls, final: Path, *, work: Mapping[str, Any], overwrite: bool) -> "UnfinishedFolder":
        """Goes on with an unfinished folder for the same `work` (plain JSON values), or begins one.

        Raises:
            CheckpointError: the final folder is there and must stay, an unfinished one is of other work, or another
                process is at work on it.
        """
        path = final.with_name(final.name + SUFFIX)
        check_free(final, overwrite=overwrite)
        if path.is_file():
            raise CheckpointError(f"{path} is a file, and a folder of that name is needed; remove it")
        path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            lock = FolderLock.take(path)
            stack.callback(lock.release)
            check_free(final, overwrite=overwrite)  # another process may just have finished it
            manifest = _open_manifest(path, json.loads(json.dumps(work)))
            stack.pop_all()
        return cls(final, path, lock, manifest, overwrite=overwrite)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets others open it. What is done stays."""
        self._lock.release()

    def require_free(self, num_bytes: int, measure: FreeBytes = free_bytes) -> None:
        """Makes sure that so many more bytes fit.

        Raises:
            CheckpointError: they do not.
        """
        free = measure(self.path)
        needed = num_bytes + SPARE_BYTES
        if free < needed:
            raise CheckpointError(
                f"{self.path.parent}: {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free; "
                "make room or choose an output on another disk, then run the same command again"
            )

    def facts_of(self, name: str) -> dict[str, Any] | None:
        """What `write_file` noted of a file, once its bytes are found as they were written; None where they are not."""
        noted = self._manifest["files"].get(name)
        if noted is None or not _is_intact(self.path / name, noted):
            return None
        facts: dict[str, Any] = noted["facts"]
        return facts

    def write_file(self, name: str, write: Callable[[DigestingStream], Mapping[str, Any]]) -> dict[str, Any]:
        """Has a file written, synced, renamed, and noted with what `write` gives (plain JSON values).

        Raises:
            CheckpointError: the disk is full. All files done so far stay.
        """
        part = self.path / (name + PART_SUFFIX)
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as stream:
                digesting = DigestingStream(stream)
                facts = dict(write(digesting))
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, self.path / name)
            self._manifest["files"][name] = {
                "num_bytes": digesting.num_bytes,
                "sha256": digesting.hexdigest(),
                "facts": facts,
            }
            _write_manifest(self.path, self._manifest)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise explain_full_disk(error, self.path) from error
        return facts

    def finish(self) -> None:
        """Gives the folder its name. What had the name before goes only now.

        Raises:
            CheckpointError: something has taken the name meanwhile.
        """
        check_free(self.final, overwrite=self._overwrite)
        _sync_folder(self.path)
        replaced = self.final.with_name(self.final.name + REPLACED_SUFFIX)
        is_replacing = os.path.lexists(self.final)
        if is_replacing:
            remove(replaced)
            os.replace(self.final, replaced)
        os.replace(self.path, self.final)
        _sync_folder(self.final.parent)
        (self.final / MANIFEST_FILE).unlink()
        (self.final / LOCK_FILE).unlink()
        if is_replacing:
            remove(replaced)


def check_free(final: Path, *, overwrite: bool) -> None:
    """Makes sure that a folder may take this name.

    Raises:
        CheckpointError: there is something already, and it must not be overwritten.
    """
    if os.path.lexists(final) and not overwrite:
        raise CheckpointError(f"{final} is there already; choose another output, or add --overwrite to replace it")


def explain_full_disk(error: OSError, folder: Path) -> Exception:
    """The error for the user when a disk is full; any other error stays what it is."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    return CheckpointError(
        f"{folder.parent}: the disk is full ({error.strerror}). What is done is kept in {folder}: make room and run "
        "the same command again to go on, or remove that folder"
    )


def remove(path: Path) -> None:
    """Removes a file or folder that may not be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _open_manifest(folder: Path, work: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of this work so far, or a new one."""
    if not any(path.name not in (LOCK_FILE, MANIFEST_FILE + PART_SUFFIX) for path in folder.iterdir()):
        manifest: dict[str, Any] = {"version": MANIFEST_VERSION, "work": work, "files": {}}
        _write_manifest(folder, manifest)
        return manifest
    manifest = _read_manifest(folder)
    if (found := manifest["work"]) != work:
        differing = sorted(name for name in {*found, *work} if found.get(name) != work.get(name))
        raise CheckpointError(
            f"{folder} is of an earlier conversion that was another one (other: {', '.join(differing)}); "
            "remove that folder, or choose another output"
        )
    return manifest


def _read_manifest(folder: Path) -> dict[str, Any]:
    """An unfinished folder's manifest; nothing in it is trusted before the bytes of the files agree with it."""
    remedy = "remove that folder and run the command again"
    try:
        manifest = read_json_object(folder / MANIFEST_FILE, max_bytes=MAX_MANIFEST_BYTES, unique_keys=True)
    except BrokenCheckpointError as error:
        raise CheckpointError(f"{folder} cannot be gone on with ({error}); {remedy}") from error
    files = manifest.get("files")
    if manifest.get("version") != MANIFEST_VERSION or not isinstance(manifest.get("work"), dict):
        raise CheckpointError(f"{folder} is of another version of kilotron; {remedy}")
    if not isinstance(files, dict) or not all(map(_is_note, files.values())):
        raise CheckpointError(f"{folder / MANIFEST_FILE}: files = {shown(files)} is no list of files; {remedy}")
    return manifest


def _is_note(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("num_bytes"), int)
        and isinstance(value.get("sha256"), str)
        and isinstance(value.get("facts"), dict)
    )


def _is_intact(file: Path, noted: Mapping[str, Any]) -> bool:
    """Whether a file's bytes are those that were written."""
    try:
        if not file.is_file() or file.stat().st_size != noted["num_bytes"]:
            return False
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
    except OSError:
        return False
    return bool(digest.hexdigest() == noted["sha256"])


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    part = folder / (MANIFEST_FILE + PART_SUFFIX)
    with part.open("w", encoding="utf-8") as stream:
        json.dump(manifest, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, folder / MANIFEST_FILE)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
