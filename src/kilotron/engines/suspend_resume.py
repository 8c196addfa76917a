"""CacheSuspension: gives the KV cache's memory back while an engine is suspended, and brings it into use again.

Three ways: "persist" keeps all as it is; "offload" moves what the blocks hold to the host; "recompute" drops it and
sends running requests back to the queue. Knows scheduler and storage; who may step when is the engine's.
"""

import logging
from typing import get_args

from kilotron.config import KVMode
from kilotron.errors import ConfigError, SuspendFailedError
from kilotron.kernels.interface import KernelBackend
from kilotron.memory.host_copy import HostCopy, copy_to_host
from kilotron.memory.kv_storage import KVStorage
from kilotron.scheduling.scheduler import Scheduler

_log = logging.getLogger(__name__)

KV_MODES: tuple[KVMode, ...] = get_args(KVMode)


class CacheSuspension:
    """Whether the cache is in use, and what is kept of it while it is not."""

    def __init__(self, scheduler: Scheduler, storage: KVStorage) -> None:
        self._scheduler = scheduler
        self._storage = storage
        self._copy: HostCopy | None = None
        self.kv_mode: KVMode | None = None
        """How it is suspended; None while it is in use."""

    def suspend(self, kv_mode: KVMode) -> int:
        """Takes the cache out of use; returns the bytes of the device's memory given back. Nothing if it is already.

        Raises:
            ConfigError: there is no such mode.
            SuspendFailedError: there is no room for the contents; the cache stays in use.
        """
        if kv_mode not in KV_MODES:
            raise ConfigError(f"kv_mode must be one of {', '.join(KV_MODES)}, not {kv_mode!r}")
        if self.kv_mode is not None:
            return 0
        before = used_memory_bytes(self._storage.kernels)
        if kv_mode == "offload":
            self._copy = self._offload()
            self._storage.release()
        elif kv_mode == "recompute":
            self._forget()
            self._storage.release()
        self.kv_mode = kv_mode
        if kv_mode == "persist":
            return 0
        kept = self._copy.memory_bytes if self._copy is not None and self._storage.device_type == "cpu" else 0
        return max(before - used_memory_bytes(self._storage.kernels) - kept, 0)

    def resume(self) -> None:
        """Brings the cache into use again, with what it held unless that was dropped. Nothing if it is in use.

        Raises:
            SuspendFailedError: there is no memory for it; it stays suspended.
        """
        if self.kv_mode is None:
            return
        try:
            self._storage.allocate()
        except (MemoryError, RuntimeError) as error:
            raise SuspendFailedError(
                f"there is no memory for the KV cache of {self._storage.shape.total_bytes} bytes ({error}); free some "
                "and resume again"
            ) from error
        if self._copy is not None:
            try:
                self._copy.restore(self._storage)
            except OSError:
                _log.exception("what the KV cache held could not be read again; it is computed anew")
                self._forget()
        self.close()
        self.kv_mode = None

    def close(self) -> None:
        """Drops what is kept on the host. Idempotent."""
        if self._copy is not None:
            self._copy.close()
            self._copy = None

    def _offload(self) -> HostCopy:
        block_ids = self._scheduler.allocator.used_block_ids()
        try:
            return copy_to_host(self._storage, block_ids)
        except (OSError, MemoryError) as error:
            num_bytes = len(block_ids) * self._storage.shape.block_bytes
            raise SuspendFailedError(
                f"no room on the host for the KV cache's contents, some {num_bytes} bytes ({error}); set TMPDIR to a "
                "folder with more, or suspend with recompute"
            ) from error

    def _forget(self) -> None:
        self._scheduler.preempt_all()
        self._scheduler.clear_prefix_cache()


def used_memory_bytes(kernels: KernelBackend) -> int:
    """Memory in use where the cache lives: this process's own on a CPU, anybody's (as far as it changes) elsewhere."""
    if kernels.device.type == "cpu":
        import psutil

        return int(psutil.Process().memory_info().rss)
    return -kernels.free_memory_bytes()
