"""Tests of the lock on a folder that is being written."""

import subprocess
import sys
from pathlib import Path

import pytest

from kilotron.checkpoints.folder_lock import LOCK_FILE, FolderLock
from kilotron.errors import CheckpointError


def test_it_keeps_others_out_until_it_is_released(tmp_path: Path) -> None:
    lock = FolderLock.take(tmp_path)
    with pytest.raises(CheckpointError, match="another process is converting"):
        FolderLock.take(tmp_path)
    lock.release()
    lock.release()

    FolderLock.take(tmp_path).release()


def test_another_process_is_kept_out_and_takes_its_lock_along(tmp_path: Path) -> None:
    script = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'a')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / LOCK_FILE)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(CheckpointError, match="wait for it"):
            FolderLock.take(tmp_path)
        other.kill()

    FolderLock.take(tmp_path).release()


def test_a_folder_that_is_gone_was_finished_by_another(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="another process"):
        FolderLock.take(tmp_path / "renamed")
