"""Which model a checkpoint holds, told without reading it all: the configuration and samples of every weight file."""

import json
import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from kilotron.checkpoints.checkpoint import Checkpoint

_SAMPLES = 32
_SAMPLE_BYTES = 4096


def fingerprint(checkpoint: Checkpoint) -> str:
    """32 hex digits; equal for copies of a checkpoint wherever they lie."""
    digest = blake2b(json.dumps(checkpoint.config, sort_keys=True).encode(), digest_size=16)
    for file in checkpoint.list_files():
        digest.update(f"{file.name} {file.stat().st_size}".encode())
        for sample in samples_of(file):
            digest.update(sample)
    return digest.hexdigest()


def samples_of(file: Path) -> Iterator[bytes]:
    """Bytes from all over a file."""
    with file.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        for sample in range(_SAMPLES):
            yield os.pread(stream.fileno(), _SAMPLE_BYTES, size * sample // _SAMPLES)
