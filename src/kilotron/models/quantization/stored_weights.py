"""StoredWeights: a checkpoint's tensors by the names a model asks for, whether they are stored quantized or plain."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from kilotron.errors import BrokenCheckpointError
from kilotron.kernels.interface import Weight
from kilotron.models.quantization.formats import find_format
from kilotron.models.quantization.stored_matrix import PartSpec, TensorInfo, to_device

logger = logging.getLogger(__name__)

PLAIN_DTYPES = ("F32", "BF16", "F16", "F64")


class NamedTensors(Protocol):
    """A checkpoint, as far as loading is concerned."""

    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...
    def read(self, name: str) -> Tensor: ...
    def drop_pages(self) -> None: ...


class StoredWeights:
    """A view of a checkpoint. Shapes given are those that the model needs, [out, in] for matrices."""

    def __init__(self, checkpoint: NamedTensors) -> None:
        """Raises CheckpointError when it is quantized in a way that is not read."""
        self._checkpoint = checkpoint
        self._format = find_format(checkpoint.config)
        self._losses: Counter[str] = Counter()
        if self._format is not None and self._format.uses_activations:
            logger.info("only the weights of the checkpoint are quantized here; activations stay as they are")

    @cached_property
    def names(self) -> Collection[str]:
        """All tensors there are, a quantized matrix by the name its plain weight would have."""
        suffixes = frozenset() if self._format is None else self._format.suffixes
        split = (name.rpartition(".") for name in self._checkpoint.tensors)
        weights = {f"{module}.weight" for module, _, suffix in split if suffix in suffixes}
        return self._checkpoint.tensors.keys() | weights

    def is_quantized(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a tensor is stored quantized, or what is there of it is."""
        return self._quantized_parts(name, shape) is not None

    def parts_of(self, name: str, shape: tuple[int, ...], *, is_transposed: bool) -> dict[str, PartSpec]:
        """All tensors that must be stored for this one. `is_transposed` tells how it lies if it is plain."""
        parts = self._quantized_parts(name, shape)
        if parts is None:
            return {name: PartSpec(PLAIN_DTYPES, (shape[::-1] if is_transposed else shape,))}
        module = name.rpartition(".")[0]
        return {f"{module}.{suffix}": spec for suffix, spec in parts.items()}

    def read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Weight:
        """A quantized matrix on `device`, in `dtype` if it must be dequantized; what is plain just as it is stored."""
        parts = self._quantized_parts(name, shape)
        if parts is None or self._format is None:
            return self._checkpoint.read(name)
        module = name.rpartition(".")[0]
        tensors = {suffix: self._checkpoint.read(f"{module}.{suffix}") for suffix in parts}
        try:
            weight, loss = self._format.decode(module, to_device(tensors, device), (shape[0], shape[1]), dtype)
        except BrokenCheckpointError as error:
            file = self._checkpoint.tensors[f"{module}.{next(iter(parts))}"].file
            raise BrokenCheckpointError(f"{file}: {error}") from error
        if loss is not None:
            self.count_loss(loss)
        return weight

    def count_loss(self, reason: str) -> None:
        """Notes that a matrix was dequantized."""
        self._losses[reason] += 1

    def tell_losses(self, dtype: torch.dtype) -> None:
        """Logs how many matrices were dequantized, one line for each reason."""
        for reason, count in self._losses.items():
            logger.warning("%d quantized matrices were dequantized to %s: %s", count, dtype, reason)
        self._losses.clear()

    def is_companion(self, stored_name: str, used: Collection[str]) -> bool:
        """Whether a stored tensor is told by the `used` ones, or is about activations, and may be left unread."""
        if self._format is None:
            return False
        module, _, suffix = stored_name.rpartition(".")
        if suffix in self._format.unread_suffixes:
            return True
        siblings = (f"{module}.{other}" for other in ("weight", *self._format.suffixes))
        return suffix in self._format.suffixes and any(name in used for name in siblings)

    def _quantized_parts(self, name: str, shape: tuple[int, ...]) -> dict[str, PartSpec] | None:
        module, _, kind = name.rpartition(".")
        if self._format is None or kind != "weight" or len(shape) != 2:
            return None
        return self._format.parts_of(module, (shape[0], shape[1]), self._checkpoint.tensors)
