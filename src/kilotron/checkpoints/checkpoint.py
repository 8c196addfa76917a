"""What every checkpoint gives, whatever its format: named tensors, checked when it was opened, read one by one."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from kilotron.checkpoints.damage import broken, shown
from kilotron.checkpoints.safetensors_header import TensorInfo

if TYPE_CHECKING:
    import torch


class Checkpoint(ABC):
    """Tensors by name. A context manager, which closes it."""

    def __init__(
        self,
        folder: Path,
        config: dict[str, Any],
        generation_config: dict[str, Any],
        tensors: Mapping[str, TensorInfo],
    ) -> None:
        self.folder = folder
        self.config = config
        self.generation_config = generation_config
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(dict(tensors))
        self.total_bytes = sum(info.num_bytes for info in self.tensors.values())

    def list_files(self) -> list[Path]:
        """The files in which the tensors lie, whole or in part."""
        return sorted({info.file for info in self.tensors.values()})

    def require(
        self, name: str, *, shape: tuple[int, ...] | None = None, dtypes: Collection[str] | None = None
    ) -> TensorInfo:
        """What the header says of a tensor, once it agrees with what the model needs. Reads no data.

        Raises:
            BrokenCheckpointError: it is missing, mis-shaped or mis-typed; names file, tensor, expected and found.
        """
        info = self.tensors.get(name)
        if info is None:
            raise broken(self.folder, tensor=name, expected="to be in a shard", found=self._nearest(name))
        if shape is not None and info.shape != shape:
            raise broken(info.file, tensor=name, expected=f"shape {shape}", found=f"shape {info.shape}")
        if dtypes is not None and info.dtype not in dtypes:
            expected = f"dtype {' or '.join(sorted(dtypes))}"
            raise broken(info.file, tensor=name, expected=expected, found=f"dtype {info.dtype}")
        return info

    @abstractmethod
    def read(self, name: str) -> "torch.Tensor":
        """The whole tensor; it may be written to, which never changes the file and is forgotten with the tensor.

        Raises:
            BrokenCheckpointError: there is no such tensor, or its file changed or vanished since `open`.
            CheckpointError: the checkpoint is closed, or torch has no dtype for the tensor.
        """

    def read_slice(self, name: str, index: tuple[slice, ...]) -> "torch.Tensor":
        """A part of a tensor: only the pages it touches are ever read. Missing slices mean all of a dim.

        Raises:
            BrokenCheckpointError: as `read`, or the slice reaches outside the tensor.
        """
        info = self.require(name)
        if len(index) > len(info.shape) or not all(map(_is_inside, index, info.shape)):
            wanted = ", ".join(f"{part.start}:{part.stop}:{part.step}" for part in index)
            found = f"shape {info.shape}"
            raise broken(info.file, tensor=name, expected=f"to hold the slice [{wanted}], step 1", found=found)
        return self._read_inside(name, index)

    @abstractmethod
    def _read_inside(self, name: str, index: tuple[slice, ...]) -> "torch.Tensor":
        """A part that was found to lie inside a tensor that exists."""

    @abstractmethod
    def drop_pages(self) -> None:
        """Gives back the memory of tensors that are held as they were read; the next touch reads them again.

        What was written to them is lost. Those that are held no more took their memory with them.
        """

    @abstractmethod
    def close(self) -> None:
        """Lets go of the files. Tensors already read stay valid."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _nearest(self, name: str) -> str:
        import difflib

        last_part = name.rpartition(".")[2]
        likely = [known for known in self.tensors if known.endswith(last_part)][:2000]
        nearest = difflib.get_close_matches(name, likely, n=1)
        return f"none; the nearest is {shown(nearest[0])}" if nearest else "none"


def _is_inside(part: slice, size: int) -> bool:
    start, stop = 0 if part.start is None else part.start, size if part.stop is None else part.stop
    return part.step in (None, 1) and 0 <= start <= stop <= size
