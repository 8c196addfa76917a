"""Brings a checkpoint's tensors into a model: everything is checked first, then read, arranged and packed in turn.

Knows names and shapes, not file formats: a checkpoint is anything with `config`, `tensors`, `read` and `drop_pages`,
and which of its matrices are quantized is known by `StoredWeights`.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from math import prod
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kilotron.checkpoints.weight_names import TensorSource, WeightNames, rearrange
from kilotron.errors import BrokenCheckpointError
from kilotron.kernels.interface import QuantizedWeight, Weight
from kilotron.models.gpt_model import GPTModel
from kilotron.models.layers.experts import ExpertLinear, Experts
from kilotron.models.layers.layer import Layer
from kilotron.models.layers.linear import Linear
from kilotron.models.quantization.rounding import Rounding
from kilotron.models.quantization.stacking import concatenate_rows, dequantized, rearrange_rows
from kilotron.models.quantization.stored_matrix import PartSpec
from kilotron.models.quantization.stored_weights import PLAIN_DTYPES, NamedTensors, StoredWeights
from kilotron.models.registry import find_architecture

logger = logging.getLogger(__name__)

MOST_PROBLEMS_SHOWN = 8
TIED_ROWS_COMPARED = 16
# Where a linear layer takes what is no parameter.
QUANTIZED = "quantized"
# What `pack` hands to the kernels; a module's other parameters stay with it.
PACKED_KINDS = ("weight", "bias")
OUTPUT_LAYER = "output_layer"
OUTPUT_WEIGHT = f"{OUTPUT_LAYER}.weight"

OnProgress = Callable[[int, int], None]


class PlannedTensor(NamedTuple):
    """One parameter of the model and the stored tensors it is made of."""

    owner: nn.Module
    """The module that packs the parameter once all of its own are there."""
    module: nn.Module
    kind: str
    """The parameter's name in its module, `weight` or `bias` mostly."""
    source: TensorSource

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape."""
        return tuple(self.module.get_parameter(self.kind).shape)

    @property
    def is_stacked(self) -> bool:
        """Whether the first axis counts experts."""
        return isinstance(self.module, ExpertLinear)

    @property
    def can_round(self) -> bool:
        """Whether a plain one may be quantized when quantization is asked for."""
        if isinstance(self.module, Linear):
            return self.kind == "weight" and self.module.can_round
        return self.kind == "weight" and isinstance(self.module, ExpertLinear)

    @property
    def row_order(self) -> Tensor | None:
        """The stored row of each row, once those are arranged and put together."""
        return self.module.row_order if isinstance(self.module, Layer) and self.kind in PACKED_KINDS else None

    def dtype_in(self, dtype: torch.dtype) -> torch.dtype:
        """The parameter's dtype in a model of the given one."""
        keeps = isinstance(self.module, Layer) and self.kind in self.module.float32_parameters
        return torch.float32 if keeps else dtype

    def matrices(self) -> Iterator[dict[str, tuple[int, ...]]]:
        """For each expert, or once: the tensors it is made of, and what their shapes are as the model has them."""
        rows, *rest = self.shape[1:] if self.is_stacked else self.shape
        if self.source.arrangement == "single_row":
            yield {self.source.stacks[0][0]: (1, rows)}
            return
        for names in self.source.stacks:
            sizes = (rows,) if len(names) == 1 else self._output_sizes()
            yield {name: (size, *rest) for name, size in zip(names, sizes, strict=True)}

    def parts(self, stored: StoredWeights) -> dict[str, PartSpec]:
        """Each tensor that must be stored, and what it must be."""
        is_transposed = self.source.arrangement == "transposed"
        return {
            part: spec
            for matrix in self.matrices()
            for name, shape in matrix.items()
            for part, spec in stored.parts_of(name, shape, is_transposed=is_transposed).items()
        }

    def _output_sizes(self) -> tuple[int, ...]:
        return self.module.output_sizes if isinstance(self.module, Linear | ExpertLinear) else ()


def load_weights(
    model: GPTModel,
    checkpoint: NamedTensors,
    dtype: torch.dtype,
    *,
    weight_names: WeightNames | None = None,
    rounding: Rounding | None = None,
    packed: Mapping[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> list[str]:
    """Loads all weights in `dtype` and packs them. Can be called again to replace them.

    Missing and mis-shaped tensors raise BrokenCheckpointError before anything is read. `weight_names` is the
    checkpoint's naming style, that of its architecture unless given; plain matrices are quantized with `rounding` where
    it is given; modules named in `packed` take what was packed of the same checkpoint before, and theirs is not read;
    `on_progress(bytes_done, bytes_total)` is called after each parameter, with the bytes they have or would have in
    `dtype`. Returns the names of stored tensors the model has no place for, which are logged as well.
    """
    names = weight_names or find_architecture(checkpoint.config).weight_names
    stored = StoredWeights(checkpoint)
    plan = _plan(model, stored, names)
    expected = {part: spec for planned in plan for part, spec in planned.parts(stored).items()}
    _check_tensors(expected, checkpoint)
    tied_duplicate = _check_tied_output(model, checkpoint, names)
    reader = _ParameterReader(stored, model, dtype, rounding)
    model.unpack()
    bytes_done, bytes_total = 0, sum(prod(planned.shape) for planned in plan) * dtype.itemsize
    paths = {module: path for path, module in model.named_modules()}
    packed = packed or {}
    for owner, planned_tensors in groupby(plan, attrgetter("owner")):
        is_packed = paths[owner] in packed
        for planned in planned_tensors:
            bytes_done += prod(planned.shape) * dtype.itemsize
            if not is_packed or planned.kind not in PACKED_KINDS:
                reader.read_into_module(planned)
            if on_progress is not None:
                on_progress(bytes_done, bytes_total)
        if is_packed:
            owner.packed = packed[paths[owner]]
        elif isinstance(owner, Linear | Experts):
            owner.pack()
        elif owner is model.embedding.word_embeddings:
            # At once, and before all others: the table, the largest of all, is not in memory twice beside them.
            model.tie_output_layer(rounding, packed.get(OUTPUT_LAYER))
            checkpoint.drop_pages()
    model.pack()
    stored.tell_losses(dtype)
    used = expected.keys() | tied_duplicate
    unused = (name for name in checkpoint.tensors if name not in used and not stored.is_companion(name, used))
    leftovers = sorted(name for name in unused if not names.is_ignored(name))
    if leftovers:
        logger.warning("%d tensors of the checkpoint are not used: %s", len(leftovers), _shortened(leftovers, ", "))
    return leftovers


def _plan(model: GPTModel, stored: StoredWeights, names: WeightNames) -> list[PlannedTensor]:
    """All parameters in the order of the model, those of one owner side by side."""
    plan = []
    for path, module in model.named_modules():
        owner = model.get_submodule(path.rpartition(".")[0]) if isinstance(module, ExpertLinear) else module
        for kind, parameter in module.named_parameters(recurse=False):
            num_experts = parameter.shape[0] if isinstance(module, ExpertLinear) else 0
            source = names.source_of(f"{path}.{kind}", stored.names, num_experts)
            plan.append(PlannedTensor(owner, module, kind, source))
    return plan


def _check_tensors(expected: Mapping[str, PartSpec], checkpoint: NamedTensors) -> None:
    problems = []
    for name, (dtypes, shapes) in expected.items():
        stored = checkpoint.tensors.get(name)
        wanted_shape = " or ".join(map(str, shapes))
        if stored is None:
            problems.append(f"tensor '{name}' of shape {wanted_shape} is missing from {_folder(checkpoint)}")
        elif tuple(stored.shape) not in shapes:
            problems.append(f"{stored.file}: tensor '{name}' has shape {tuple(stored.shape)}, expected {wanted_shape}")
        elif stored.dtype not in dtypes:
            wanted_dtype = f"one of {', '.join(dtypes)}" if len(dtypes) > 1 else dtypes[0]
            problems.append(f"{stored.file}: tensor '{name}' has dtype {stored.dtype}, expected {wanted_dtype}")
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
    if output not in checkpoint.tensors or checkpoint.tensors[output].dtype not in PLAIN_DTYPES:
        return set()
    step = max(model.config.vocab_size // TIED_ROWS_COMPARED, 1)
    if not torch.equal(checkpoint.read(output)[::step], checkpoint.read(table)[::step]):
        raise BrokenCheckpointError(
            f"{checkpoint.tensors[output].file}: '{output}' differs from '{table}', though config.json ties them; "
            'if the model was trained untied, set "tie_word_embeddings": false there'
        )
    return {output}


class _ParameterReader:
    """Reads parameters, one after the other, into the modules they belong to."""

    def __init__(self, stored: StoredWeights, model: GPTModel, dtype: torch.dtype, rounding: Rounding | None) -> None:
        self.stored = stored
        self.config, self.device = model.config, model.kernels.device
        self.dtype = dtype
        self.rounding = rounding

    def read_into_module(self, planned: PlannedTensor) -> None:
        """The parameter on the kernels' device: quantized, or plain and contiguous."""
        weight = self._read_experts(planned) if planned.is_stacked else self._read_one(planned)
        if isinstance(weight, Tensor):
            setattr(planned.module, planned.kind, nn.Parameter(weight, requires_grad=False))
        if planned.kind == "weight" and isinstance(planned.module, Linear | ExpertLinear):
            # Also None, so that nothing is left of a load that failed half-way.
            setattr(planned.module, QUANTIZED, None if isinstance(weight, Tensor) else weight)

    def _read_one(self, planned: PlannedTensor) -> Weight:
        (matrix,) = planned.matrices()
        weight = self._read_matrix(planned, matrix)
        order = planned.row_order
        if order is not None:
            weight = rearrange_rows(weight, lambda rows: rows.index_select(0, order.to(rows.device)))
        return weight if isinstance(planned.module, Linear) else dequantized(weight)

    def _read_experts(self, planned: PlannedTensor) -> Tensor | Sequence[Weight]:
        first = next(iter(planned.source.stacks[0]))
        is_rounded = self.rounding is not None and planned.can_round
        if is_rounded or self.stored.is_quantized(first, planned.shape[1:]):
            return [self._read_matrix(planned, matrix) for matrix in planned.matrices()]
        result = torch.empty(planned.shape, dtype=self.dtype, device=self.device)
        for part, matrix in zip(result, planned.matrices(), strict=True):
            part.copy_(dequantized(self._read_matrix(planned, matrix)))
        return result

    def _read_matrix(self, planned: PlannedTensor, matrix: Mapping[str, tuple[int, ...]]) -> Weight:
        """All of a matrix or vector, its parts one above the other. What is stored as it is needed is not copied."""
        parts = [self._read_part(planned, name, shape) for name, shape in matrix.items()]
        quantized = [part for part in parts if isinstance(part, QuantizedWeight)]
        if len(quantized) == len(parts):
            whole = concatenate_rows(quantized)
            if whole is not None:
                return whole
        for _ in quantized:
            self.stored.count_loss("side by side with matrices of other bits or groups")
        plain = [dequantized(part).to(self.device, planned.dtype_in(self.dtype)) for part in parts]
        return plain[0].contiguous() if len(plain) == 1 else torch.cat(plain)

    def _read_part(self, planned: PlannedTensor, name: str, shape: tuple[int, ...]) -> Weight:
        """One stored tensor with its rows in our order."""
        part = self.stored.read(name, shape, self.dtype, self.device)
        arrangement = planned.source.arrangement
        if isinstance(part, QuantizedWeight) and arrangement == "transposed":
            return part  # every format of quantized matrices stores them as [out, in]
        stack = self.config.stack_of(name)
        num_groups, channels = stack.num_query_groups, stack.kv_channels
        part = rearrange_rows(part, lambda stored: rearrange(stored, arrangement, num_groups, channels))
        if self.rounding is not None and planned.can_round and isinstance(part, Tensor):
            return self.rounding.quantize(part, self.dtype, self.device)
        return part


def _folder(checkpoint: NamedTensors) -> str:
    files = {info.file for info in checkpoint.tensors.values()}
    return str(files.pop()) if len(files) == 1 else str(files.pop().parent) if files else "a checkpoint without tensors"


def _shortened(lines: Sequence[str], separator: str) -> str:
    rest = len(lines) - MOST_PROBLEMS_SHOWN
    return separator.join(lines[:MOST_PROBLEMS_SHOWN]) + (f"{separator}and {rest} more" if rest > 0 else "")
