"""KVStorage: the memory of the paged KV cache. Knows sizes and layers, not who owns a block."""

from torch import Tensor

from kilotron.errors import EngineClosedError
from kilotron.kernels.interface import KernelBackend, KVLayer, KVShape


class KVStorage:
    """The tensors of the cache. `release` gives their memory back, and `allocate` takes new memory, empty."""

    def __init__(self, shape: KVShape, kernels: KernelBackend) -> None:
        self.shape = shape
        self.kernels = kernels
        self._layers: list[KVLayer] | None = None
        self.allocate()

    @property
    def device_type(self) -> str:
        """What kind of device holds the cache, in torch's words."""
        return str(self.kernels.device.type)

    def allocate(self) -> None:
        """Takes the memory, unless it is there."""
        if self._layers is None:
            self._layers = self.kernels.allocate_kv(self.shape)

    @property
    def layers(self) -> list[KVLayer]:
        """One view per layer.

        Raises:
            EngineClosedError: the memory was given back.
        """
        if self._layers is None:
            raise EngineClosedError(
                "the KV cache's memory was given back; resume a suspended engine, or build a new one after a shutdown"
            )
        return self._layers

    def clear(self, block_ids: list[int]) -> None:
        """Zeroes blocks that were granted, so that an earlier owner's NaN cannot reach the new one."""
        if block_ids:
            self.kernels.clear_kv_blocks(self.layers, block_ids)

    def read(self, block_ids: list[int]) -> Tensor:
        """What blocks hold, as bytes on the host, one row per block."""
        return self.kernels.read_kv_blocks(self.layers, block_ids)

    def write(self, block_ids: list[int], contents: Tensor) -> None:
        """Puts back what `read` gave."""
        self.kernels.write_kv_blocks(self.layers, block_ids, contents)

    def release(self) -> None:
        """Gives the memory back, contents and all. Idempotent."""
        self._layers = None
        self.kernels.release_unused_memory()
