"""WeightCache: packed weights of earlier starts, each in a file that says by its name what it was made of.

Knows checkpoints and options, not what a file looks like inside (`PackedFiles`). Nothing is kept unless asked for: a
file is as large as the model.
"""

import json
import logging
import os
import re
import stat
from collections.abc import Mapping
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kilotron.apis.checkpoint_fingerprint import samples_of
from kilotron.checkpoints.checkpoint import Checkpoint
from kilotron.config import ResolvedConfig
from kilotron.errors import KernelError

if TYPE_CHECKING:
    from kilotron.kernels.interface import PackedFiles

_log = logging.getLogger(__name__)


def user_cache_folder() -> Path:
    """Where this user's caches lie; none needs to be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kilotron"


class WeightCache:
    """The file of one checkpoint with one set of options.

    Args:
        files: how the kernels keep packed weights; None where they cannot.
        checkpoint: the open checkpoint.
        config: what was decided; `weight_cache` says whether files are used, and made.
    """

    def __init__(self, files: "PackedFiles | None", checkpoint: Checkpoint, config: ResolvedConfig) -> None:
        self._files, self._mode = files, config.options.weight_cache
        self._checkpoint, self._config = checkpoint, config
        self._folder = user_cache_folder() / "packed"

    def open(self) -> Mapping[str, Any] | None:
        """The packed weights by the names of their modules, or None where there are none to use."""
        if self._mode == "off" or self._files is None or not self._folder.is_dir():
            return None
        path = self._path(self._files)
        try:
            if not all(map(_belongs_to_us_alone, (self._folder, path))):
                _log.warning("%s is not used: others than its owner may write to it", path)
                return None
            weights = self._files.open(path)
            os.utime(path)  # for whoever deletes those that nobody uses
        except FileNotFoundError:
            return None
        except (KernelError, OSError) as error:
            _log.warning("the kept weights are not used: %s", error)
            return None
        return weights

    def keep(self, weights: Mapping[str, Any]) -> None:
        """Writes packed weights where that was asked for. What goes wrong costs the file only, and is logged."""
        if self._mode != "write":
            return
        if self._files is None:
            _log.warning("weight_cache=write, but these kernels keep no weights in files")
            return
        path = self._path(self._files)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            size = self._files.write(path, weights)
        except OSError as error:
            _log.warning("the weights are not kept: %s", error)
            return
        _log.warning("kept %.2f GB of packed weights in %s; the next start maps them", size / 1e9, path)

    def _path(self, files: "PackedFiles") -> Path:
        name = re.sub(r"[^A-Za-z0-9._-]", "_", self._checkpoint.folder.name)[:64]
        return self._folder / f"{name}-{self._fingerprint(files.layout)}"

    def _fingerprint(self, layout: str) -> str:
        """Of all that packed weights depend on. Of large files, their sizes, times and some samples."""
        options = self._config.options
        facts = {
            "version": _own_version(),
            "layout": layout,
            "dtype": self._config.dtype,
            "quantization": (options.quantization, options.quantization_group_size),
            "config": self._checkpoint.config,
        }
        digest = blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=12)
        for file in self._checkpoint.list_files():
            status = file.stat()
            digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
            for sample in samples_of(file):
                digest.update(sample)
        return digest.hexdigest()


def _own_version() -> str:
    """Another one may round weights in another way."""
    try:
        return version("kilotron")
    except PackageNotFoundError:
        return "not installed"


def _belongs_to_us_alone(path: Path) -> bool:
    status = path.lstat()
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
