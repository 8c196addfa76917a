"""KVStorage: the memory of the paged KV cache. Knows sizes and layers, not who owns a block."""

from kilotron.errors import EngineClosedError
from kilotron.kernels.interface import KernelBackend, KVLayer, KVShape


class KVStorage:
    """The tensors of the cache, given back by `close`."""

    def __init__(self, shape: KVShape, kernels: KernelBackend) -> None:
        self.shape = shape
        self._kernels = kernels
        self._layers: list[KVLayer] | None = kernels.allocate_kv(shape)

    @property
    def layers(self) -> list[KVLayer]:
        """One view per layer.

        Raises:
            EngineClosedError: the memory was given back.
        """
        if self._layers is None:
            raise EngineClosedError("the KV cache was given back when the engine was shut down; build a new one")
        return self._layers

    def clear(self, block_ids: list[int]) -> None:
        """Zeroes blocks that were granted, so that an earlier owner's NaN cannot reach the new one."""
        if block_ids:
            self._kernels.clear_kv_blocks(self.layers, block_ids)

    def close(self) -> None:
        """Gives the memory back. Idempotent."""
        self._layers = None
