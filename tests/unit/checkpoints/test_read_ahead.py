"""Tests of reading ahead: that it reads the weights, ends, and never fails where it cannot."""

import os
import threading
from pathlib import Path

from kilotron.checkpoints.read_ahead import start_reading_ahead

NUM_BYTES = 4 << 20


def wait_for_readers() -> None:
    for thread in threading.enumerate():
        if thread.name == "kilotron-read-ahead":
            thread.join(timeout=30)
            assert not thread.is_alive()


def bytes_read_ahead() -> int:
    """What this process has handed to `sendfile` and the like."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="utf-8").splitlines())
    return int(fields["rchar"])


def test_all_files_are_read_and_no_other(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors", "other.bin"):
        (tmp_path / name).write_bytes(os.urandom(NUM_BYTES))
    weights = sorted(tmp_path.glob("*.safetensors"))
    before = bytes_read_ahead()

    start_reading_ahead(weights)
    wait_for_readers()

    assert 2 * NUM_BYTES <= bytes_read_ahead() - before < 3 * NUM_BYTES


def test_where_there_are_no_weights_nothing_is_started() -> None:
    start_reading_ahead([])

    assert "kilotron-read-ahead" not in {thread.name for thread in threading.enumerate()}


def test_what_cannot_be_read_is_left_to_the_loader(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").symlink_to("nowhere")
    (tmp_path / "b.safetensors").mkdir()

    start_reading_ahead(sorted(tmp_path.iterdir()))
    wait_for_readers()
