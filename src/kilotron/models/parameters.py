"""A model's parameters one by one, out of a checkpoint of any naming style, or laid out for one of another.

In between is our form: Megatron's names, all queries before all keys before all values, gate before up. Knows shapes
and names, no file formats.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kilotron.checkpoints.output_tensor import OutputTensor
from kilotron.checkpoints.weight_names import (
    Arrangement,
    TensorSource,
    WeightNames,
    arrange_back,
    rearrange,
    stored_shape,
)
from kilotron.errors import BrokenCheckpointError, CheckpointError
from kilotron.kernels.registry import choose_backend
from kilotron.models.encoder_decoder_model import EncoderDecoderModel
from kilotron.models.gpt_model import GPTModel
from kilotron.models.layers.experts import ExpertLinear
from kilotron.models.layers.linear import Linear
from kilotron.models.quantization.stored_matrix import TensorInfo
from kilotron.models.quantization.stored_weights import PLAIN_DTYPES, NamedTensors
from kilotron.models.transformer_config import TransformerConfig

VOCABULARY_TABLES = ("embedding.word_embeddings.weight", "output_layer.weight")
VOCABULARY_PARAMETERS = (*VOCABULARY_TABLES, "lm_head.bias")
MOST_PROBLEMS_SHOWN = 8
MOST_BYTES_HELD = 1 << 27

OnRead = Callable[["Parameter", Tensor], None]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One weight or bias of the model in our form; of experts, that of one expert."""

    name: str
    """As the model calls it; equal for all experts of a layer."""
    expert: int | None
    num_experts: int
    shape: tuple[int, ...]
    row_sizes: tuple[int, ...]
    """Rows of the matrices that lie one above the other in it, such as query, key and value."""

    @property
    def label(self) -> str:
        """Its name, unique among all parameters."""
        return self.name if self.expert is None else f"{self.name}[{self.expert}]"

    def stored_names(self, names: WeightNames, stored: Collection[str]) -> tuple[tuple[str, ...], Arrangement]:
        """What the tensors are called that it is made of, and how they lie.

        Raises:
            CheckpointError: the naming style has no such tensor.
        """
        try:
            source: TensorSource = names.source_of(self.name, stored, self.num_experts)
        except KeyError as error:
            raise CheckpointError(f"that architecture has no place for the tensor {self.name!r}") from error
        return source.stacks[self.expert or 0], source.arrangement


def list_parameters(config: TransformerConfig) -> Iterator[Parameter]:
    """All parameters of a model in the order of its layers. Makes no tensors."""
    model_class = GPTModel if config.encoder_decoder is None else EncoderDecoderModel
    model = model_class(config, choose_backend("reference", "cpu").backend, max_sequence_length=1)
    for path, module in model.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            shape, name = tuple(parameter.shape), f"{path}.{kind}"
            if isinstance(module, ExpertLinear):
                sizes = module.output_sizes
                yield from (Parameter(name, expert, shape[0], shape[1:], sizes) for expert in range(shape[0]))
            else:
                yield Parameter(name, None, 0, shape, module.output_sizes if isinstance(module, Linear) else shape[:1])


class ParameterReader:
    """Reads parameters out of a checkpoint."""

    def __init__(self, checkpoint: NamedTensors, config: TransformerConfig, names: WeightNames) -> None:
        """`names` is the checkpoint's naming style."""
        self._checkpoint = checkpoint
        self._config = config
        self._names = names
        self._bytes_read = 0

    def stored_names(self, parameter: Parameter) -> tuple[str, ...]:
        """What a parameter is stored as."""
        return parameter.stored_names(self._names, self._checkpoint.tensors)[0]

    def dtype_of(self, parameter: Parameter) -> str:
        """The dtype that a parameter is stored in, as safetensors calls it."""
        return self._checkpoint.tensors[self.stored_names(parameter)[0]].dtype

    def check(self, parameters: Sequence[Parameter]) -> None:
        """Makes sure that all are there, by what the checkpoint says of them. Reads none.

        Raises:
            BrokenCheckpointError: some are missing, mis-shaped or mis-typed; names them.
        """
        problems = [problem for parameter in parameters for problem in self._problems(parameter)]
        if problems:
            more = len(problems) - MOST_PROBLEMS_SHOWN
            shown = problems[:MOST_PROBLEMS_SHOWN] + ([f"and {more} more"] if more > 0 else [])
            raise BrokenCheckpointError("\n".join(shown))

    def read(self, parameter: Parameter) -> Tensor:
        """A parameter in our form, in the dtype it is stored in."""
        self._drop_pages()
        stored, arrangement = parameter.stored_names(self._names, self._checkpoint.tensors)
        stack = self._config.stack_of(parameter.name)
        parts = [
            rearrange(self._checkpoint.read(name), arrangement, stack.num_query_groups, stack.kv_channels)
            for name in stored
        ]
        value = parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
        self._bytes_read += value.nbytes
        return value

    def _drop_pages(self) -> None:
        """Gives memory back now and then: what a map of a file has read counts as the process's."""
        if self._bytes_read >= MOST_BYTES_HELD:
            self._checkpoint.drop_pages()
            self._bytes_read = 0

    def _problems(self, parameter: Parameter) -> Iterator[str]:
        stored, arrangement = parameter.stored_names(self._names, self._checkpoint.tensors)
        infos: list[TensorInfo] = []
        for name, shape in zip(stored, part_shapes(parameter, len(stored)), strict=True):
            wanted = stored_shape(shape, arrangement)
            info = self._checkpoint.tensors.get(name)
            if info is None:
                yield f"tensor {name!r} of shape {wanted} is missing"
                continue
            infos.append(info)
            if tuple(info.shape) != wanted:
                yield f"{info.file}: tensor {name!r} has shape {tuple(info.shape)}, expected {wanted}"
            elif info.dtype not in PLAIN_DTYPES:
                yield f"{info.file}: tensor {name!r} has dtype {info.dtype}, expected one of {', '.join(PLAIN_DTYPES)}"
        if len({info.dtype for info in infos}) > 1:
            yield f"tensors {', '.join(map(repr, stored))} have different dtypes, though they are parts of one matrix"


class ParameterLayout:
    """How parameters are to be stored in a checkpoint of some naming style."""

    def __init__(self, config: TransformerConfig, names: WeightNames) -> None:
        """`names` is the style of the checkpoint that is to be written."""
        self._config = config
        self._names = names

    def outputs_of(self, parameter: Parameter, dtype: str, reading: "SharedRead") -> list[OutputTensor]:
        """The tensors that a parameter is stored as.

        Raises:
            CheckpointError: the style has no place for it.
        """
        stored, arrangement = parameter.stored_names(self._names, ())
        stack, outputs, start = self._config.stack_of(parameter.name), [], 0
        for name, shape in zip(stored, part_shapes(parameter, len(stored)), strict=True):
            rows = slice(start, start + shape[0])
            start = rows.stop
            outputs.append(
                OutputTensor(
                    name,
                    dtype,
                    stored_shape(shape, arrangement),
                    partial(_stored_rows, reading, rows, arrangement, stack.num_query_groups, stack.kv_channels),
                )
            )
        reading.num_uses = len(outputs)
        return outputs


class SharedRead:
    """Reads a parameter once for the several tensors it becomes, which are written one after the other."""

    def __init__(self, reader: ParameterReader, parameter: Parameter, *, num_rows: int, on_read: OnRead) -> None:
        """Only the first `num_rows` count: the rest of a vocabulary table may be padding.

        `on_read` is called with the parameter's values, once for all tensors.
        """
        self.parameter = parameter
        self.num_uses = 0
        """How many tensors there are that have not been written yet; the values are kept until it is 0."""
        self._reader = reader
        self._num_rows = num_rows
        self._on_read = on_read
        self._value: Tensor | None = None

    def read(self) -> Tensor:
        """The parameter in our form."""
        value = self._value
        if value is None:
            value = self._reader.read(self.parameter)[: self._num_rows]
            self._on_read(self.parameter, value)
        self.num_uses -= 1
        self._value = value if self.num_uses > 0 else None
        return value


def _stored_rows(
    reading: SharedRead, rows: slice, arrangement: Arrangement, num_query_groups: int, kv_channels: int
) -> Tensor:
    return arrange_back(reading.read()[rows], arrangement, num_query_groups, kv_channels)


def part_shapes(parameter: Parameter, num_parts: int) -> list[tuple[int, ...]]:
    """The shapes of the tensors that a parameter is made of, one above the other."""
    rest = parameter.shape[1:]
    sizes = parameter.shape[:1] if num_parts == 1 else parameter.row_sizes
    return [(size, *rest) for size in sizes]
