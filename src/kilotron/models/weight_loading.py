"""Brings a checkpoint's tensors into a model: everything is checked first, then read, arranged and packed in turn.

Knows names and shapes, not file formats: a checkpoint is anything with `config`, `tensors`, `read` and `drop_pages`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from math import prod
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from kilotron.checkpoints.weight_names import TensorSource, WeightNames, rearrange
from kilotron.errors import BrokenCheckpointError
from kilotron.models.gpt_model import GPTModel
from kilotron.models.layers.linear import Linear
from kilotron.models.layers.mixture_of_experts import ExpertLinear, Experts
from kilotron.models.registry import find_architecture

logger = logging.getLogger(__name__)

READABLE_DTYPES = ("F32", "BF16", "F16", "F64")
MOST_PROBLEMS_SHOWN = 8
TIED_ROWS_COMPARED = 16
OUTPUT_WEIGHT = "output_layer.weight"

OnProgress = Callable[[int, int], None]


class TensorInfo(Protocol):
    """What is known of a stored tensor before it is read."""

    @property
    def file(self) -> Path: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


class NamedTensors(Protocol):
    """A checkpoint, as far as loading is concerned."""

    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...
    def read(self, name: str) -> Tensor: ...
    def drop_pages(self) -> None: ...


class PlannedTensor(NamedTuple):
    """One parameter of the model and the stored tensors it is made of."""

    owner: nn.Module
    """The module that packs the parameter once all of its own are there."""
    module: nn.Module
    kind: str
    """`weight` or `bias`"""
    source: TensorSource

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape."""
        return tuple(self.module.get_parameter(self.kind).shape)

    @property
    def is_stacked(self) -> bool:
        """Whether the first axis counts experts."""
        return len(self.shape) == 3

    def stored_shapes(self) -> dict[str, tuple[int, ...]]:
        """Each stored tensor's name and the shape it must have."""
        rows, *rest = self.shape[1:] if self.is_stacked else self.shape
        shapes = {}
        for names in self.source.stacks:
            sizes = (rows,) if len(names) == 1 else self._output_sizes()
            for name, size in zip(names, sizes, strict=True):
                shape = (size, *rest)
                shapes[name] = shape[::-1] if self.source.arrangement == "transposed" else shape
        return shapes

    def _output_sizes(self) -> tuple[int, ...]:
        return self.module.output_sizes if isinstance(self.module, Linear | ExpertLinear) else ()


def load_weights(
    model: GPTModel,
    checkpoint: NamedTensors,
    dtype: torch.dtype,
    *,
    weight_names: WeightNames | None = None,
    on_progress: OnProgress | None = None,
) -> list[str]:
    """Loads all weights in `dtype` and packs them. Can be called again to replace them.

    Missing and mis-shaped tensors raise BrokenCheckpointError before anything is read. `weight_names` is the
    checkpoint's naming style, that of its architecture unless given; `on_progress(bytes_done, bytes_total)` is called
    after each parameter. Returns the names of stored tensors the model has no place for, which are logged as well.
    """
    names = weight_names or find_architecture(checkpoint.config).weight_names
    plan = _plan(model, checkpoint, names)
    expected = {name: shape for planned in plan for name, shape in planned.stored_shapes().items()}
    _check_tensors(expected, checkpoint)
    tied_duplicate = _check_tied_output(model, checkpoint, names)
    bytes_done, bytes_total = 0, sum(prod(planned.shape) for planned in plan) * dtype.itemsize
    for owner, planned_tensors in groupby(plan, attrgetter("owner")):
        for planned in planned_tensors:
            tensor = _read(planned, checkpoint, model, dtype)
            setattr(planned.module, planned.kind, nn.Parameter(tensor, requires_grad=False))
            bytes_done += tensor.nbytes
            if on_progress is not None:
                on_progress(bytes_done, bytes_total)
        if isinstance(owner, Linear | Experts):
            owner.pack()
        elif owner is model.embedding.word_embeddings:
            # At once, and before all others: the table, the largest of all, is not in memory twice beside them.
            model.tie_output_layer()
            checkpoint.drop_pages()
    used = expected.keys() | tied_duplicate
    leftovers = sorted(name for name in checkpoint.tensors if name not in used and not names.is_ignored(name))
    if leftovers:
        logger.warning("%d tensors of the checkpoint are not used: %s", len(leftovers), _shortened(leftovers, ", "))
    return leftovers


def _plan(model: GPTModel, checkpoint: NamedTensors, names: WeightNames) -> list[PlannedTensor]:
    """All parameters in the order of the model, those of one owner side by side."""
    plan = []
    for path, module in model.named_modules():
        owner = model.get_submodule(path.rpartition(".")[0]) if isinstance(module, ExpertLinear) else module
        for kind, parameter in module.named_parameters(recurse=False):
            num_experts = parameter.shape[0] if parameter.ndim == 3 else 0
            source = names.source_of(f"{path}.{kind}", checkpoint.tensors, num_experts)
            plan.append(PlannedTensor(owner, module, kind, source))
    return plan


def _check_tensors(expected: Mapping[str, tuple[int, ...]], checkpoint: NamedTensors) -> None:
    problems = []
    for name, shape in expected.items():
        stored = checkpoint.tensors.get(name)
        if stored is None:
            problems.append(f"tensor '{name}' of shape {shape} is missing from {_folder(checkpoint)}")
        elif tuple(stored.shape) != shape:
            problems.append(f"{stored.file}: tensor '{name}' has shape {tuple(stored.shape)}, expected {shape}")
        elif stored.dtype not in READABLE_DTYPES:
            readable = ", ".join(READABLE_DTYPES)
            problems.append(f"{stored.file}: tensor '{name}' has dtype {stored.dtype}, expected one of {readable}")
    if problems:
        raise BrokenCheckpointError(_shortened(problems, "\n"))


def _check_tied_output(model: GPTModel, checkpoint: NamedTensors, names: WeightNames) -> set[str]:
    """The stored output weight that is a mere copy of the tied embedding table, if there is one.

    Compares some rows: a file that holds another output weight contradicts its config, and either choice could be
    wrong.
    """
    if model.config.untie_embeddings_and_output_weights:
        return set()
    output = names.source_of(OUTPUT_WEIGHT, checkpoint.tensors).stacks[0][0]
    table = names.source_of("embedding.word_embeddings.weight", checkpoint.tensors).stacks[0][0]
    if output not in checkpoint.tensors:
        return set()
    step = max(model.config.vocab_size // TIED_ROWS_COMPARED, 1)
    if not torch.equal(checkpoint.read(output)[::step], checkpoint.read(table)[::step]):
        raise BrokenCheckpointError(
            f"{checkpoint.tensors[output].file}: '{output}' differs from '{table}', though config.json ties them; "
            'if the model was trained untied, set "tie_word_embeddings": false there'
        )
    return {output}


def _read(planned: PlannedTensor, checkpoint: NamedTensors, model: GPTModel, dtype: torch.dtype) -> Tensor:
    """One parameter, contiguous on the kernels' device. What is stored as it is needed is not copied."""
    config, device = model.config, model.kernels.device

    def arranged(name: str) -> Tensor:
        stored = checkpoint.read(name)
        return rearrange(stored, planned.source.arrangement, config.num_query_groups, config.kv_channels)

    if not planned.is_stacked and len(planned.source.stacks[0]) == 1:
        return arranged(planned.source.stacks[0][0]).to(device, dtype).contiguous()
    result = torch.empty(planned.shape, dtype=dtype, device=device)
    for part, names in zip(result if planned.is_stacked else (result,), planned.source.stacks, strict=True):
        row = 0
        for name in names:
            stored = arranged(name)
            part[row : row + len(stored)] = stored
            row += len(stored)
    return result


def _folder(checkpoint: NamedTensors) -> str:
    files = {info.file for info in checkpoint.tensors.values()}
    return str(files.pop()) if len(files) == 1 else str(files.pop().parent) if files else "a checkpoint without tensors"


def _shortened(lines: Sequence[str], separator: str) -> str:
    rest = len(lines) - MOST_PROBLEMS_SHOWN
    return separator.join(lines[:MOST_PROBLEMS_SHOWN]) + (f"{separator}and {rest} more" if rest > 0 else "")
