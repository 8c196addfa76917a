"""OutputTensor: a tensor that is to be written, made when its turn comes; and a stream that knows its own digest."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import IO, TYPE_CHECKING

from kilotron.checkpoints.safetensors_file import DTYPE_OF_TORCH_NAME
from kilotron.checkpoints.safetensors_header import BITS_OF_DTYPE
from kilotron.errors import CheckpointError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """Name, dtype and shape are known from the start, the values only after `read`."""

    name: str
    dtype: str
    """As safetensors calls it: "BF16"."""
    shape: tuple[int, ...]
    read: Callable[[], "torch.Tensor"]
    """Gives the values; called once, and what it gives is let go at once."""

    @property
    def num_bytes(self) -> int:
        """How many bytes its values take."""
        return prod(self.shape) * BITS_OF_DTYPE[self.dtype] // 8


class DigestingStream:
    """Passes bytes on to a file and keeps count and SHA-256 of them."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: "bytes | memoryview") -> int:
        """Writes all of `data`."""
        view = memoryview(data).cast("B")
        self._stream.write(view)
        self._digest.update(view)
        self.num_bytes += len(view)
        return len(view)

    def flush(self) -> None:
        """As a file's."""
        self._stream.flush()

    def hexdigest(self) -> str:
        """SHA-256 of all bytes so far."""
        return self._digest.hexdigest()


def bytes_of(tensor: "torch.Tensor") -> memoryview:
    """A tensor's values in order, without a copy where they lie in order."""
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data.cast("B")


def read_checked(tensor: OutputTensor) -> "torch.Tensor":
    """The values, which must be what was announced.

    Raises:
        CheckpointError: they are of another dtype or shape, so the file's header would lie.
    """
    values = tensor.read()
    dtype = DTYPE_OF_TORCH_NAME.get(str(values.dtype).removeprefix("torch."))
    if tuple(values.shape) != tensor.shape or dtype != tensor.dtype:
        raise CheckpointError(
            f"tensor {tensor.name!r}: {tensor.dtype} {tensor.shape} was announced, but {values.dtype} "
            f"{tuple(values.shape)} came: the source changed while it was converted"
        )
    return values
