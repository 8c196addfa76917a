"""What is in a checkpoint, told from its headers and configuration alone: no weight is read."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from kilotron.apis.conversion_source import AnyCheckpoint
from kilotron.apis.tokenizer_choice import find_tokenizer
from kilotron.checkpoints.huggingface import HuggingFaceCheckpoint
from kilotron.checkpoints.megatron import MegatronCheckpoint
from kilotron.checkpoints.megatron_args import KEPT_CONFIG, KEPT_GENERATION_CONFIG, kept_object
from kilotron.checkpoints.open_checkpoint import open_checkpoint
from kilotron.checkpoints.safetensors_file import TORCH_NAME_OF_DTYPE
from kilotron.checkpoints.weight_names import WeightNames
from kilotron.errors import CheckpointError, TokenizerError
from kilotron.models.kept_config import read_kept_config
from kilotron.models.megatron_args import find_megatron_gaps
from kilotron.models.parameters import Parameter, list_parameters, part_shapes
from kilotron.models.quantization.formats import find_format
from kilotron.models.quantization.stored_weights import StoredWeights
from kilotron.models.registry import find_architecture, read_transformer_config
from kilotron.models.transformer_config import TransformerConfig
from kilotron.tokenization import load_tokenizer

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
MOST_NAMED = 5
# Bytes of a parameter; rounded matrices have scales, one for 128 values.
BYTES_OF_DTYPE = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.03, "int4": 0.53}
# Arguments that are places on the machine that trained.
PATH_ARGUMENTS = (
    "save", "load", "tokenizer_model", "vocab_file", "merge_file", "data_path", "data_cache_path", "tensorboard_dir",
)  # fmt: skip
KEPT_TEXTS = {KEPT_CONFIG, KEPT_GENERATION_CONFIG}
# Told elsewhere, or of no interest but to whoever converts.
HIDDEN_FIELDS = {"params_dtype", "eos_token_ids", "bos_token_id"}


class TensorGroup(NamedTuple):
    """Tensors of equal shape and dtype whose names differ in numbers only."""

    name: str
    """With * where the numbers are."""
    num_tensors: int
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    """Of all together."""


class InspectedTensor(NamedTuple):
    """One stored tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    file: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What is known of a checkpoint."""

    folder: Path
    format: str
    """huggingface, or Megatron's name for its own: torch_dist, torch, torch_dcp."""
    iteration: int | None
    architecture: str
    quantization: str | None
    structure: Mapping[str, Any]
    """Fields of TransformerConfig; empty where the architecture is not known."""
    config: Mapping[str, Any]
    """config.json, or Megatron's saved arguments, as they are."""
    tensors: Sequence[InspectedTensor]
    num_parameters: int
    """Of the model where that is known, else all stored values."""
    num_bytes: int
    num_files: int
    memory_bytes: Mapping[str, int]
    """For weights, by the dtype they could be held in."""
    kv_bytes_per_token: int | None
    """In the checkpoint's dtype."""
    tokenizer: str | None
    """What `load_tokenizer` makes it of."""
    vocab_size: int | None
    """The tokenizer's."""
    oddities: Sequence[str]

    def groups(self) -> list[TensorGroup]:
        """The tensors in the order of their first, equal ones together."""
        groups: dict[tuple[str, tuple[int, ...], str], TensorGroup] = {}
        for tensor in self.tensors:
            key = (NUMBER.sub("*", tensor.name), tensor.shape, tensor.dtype)
            before = groups.get(key)
            groups[key] = TensorGroup(
                tensor.name if before is None else key[0],
                1 if before is None else before.num_tensors + 1,
                tensor.shape,
                tensor.dtype,
                tensor.num_bytes + (0 if before is None else before.num_bytes),
            )
        return list(groups.values())

    def describe(self) -> dict[str, Any]:
        """As plain values that JSON can hold."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = [tensor._asdict() | {"shape": list(tensor.shape)} for tensor in self.tensors]
        return values | {"folder": str(self.folder), "tensors": tensors, "oddities": list(self.oddities)}


def inspect_checkpoint(source: str | Path, *, tokenizer: str | None = None) -> Inspection:
    """Looks at a checkpoint of any format that is read. `tokenizer` is what its tokenizer is made of, if not beside it.

    Raises:
        CheckpointError: there is none, or its files are damaged.
    """
    with open_checkpoint(source) as checkpoint:
        structure, trouble = _read_structure(checkpoint)
        parameters = [] if structure is None else list(list_parameters(structure))
        found = tokenizer or find_tokenizer(checkpoint)
        vocab_size, tokenizer_trouble = _read_vocab_size(found)
        oddities = [
            *trouble,
            *tokenizer_trouble,
            *([] if structure is None else _tensor_oddities(checkpoint, structure, parameters)),
            *_file_oddities(checkpoint),
            *([] if structure is None else _vocabulary_oddities(structure, vocab_size)),
            *(_megatron_oddities(checkpoint, structure) if isinstance(checkpoint, MegatronCheckpoint) else []),
        ]
        num_parameters = sum(prod(parameter.shape) for parameter in parameters)
        num_parameters = num_parameters or sum(prod(info.shape) for info in checkpoint.tensors.values())
        return Inspection(
            folder=checkpoint.folder,
            format=checkpoint.format if isinstance(checkpoint, MegatronCheckpoint) else "huggingface",
            iteration=checkpoint.iteration if isinstance(checkpoint, MegatronCheckpoint) else None,
            architecture=_architecture_name(checkpoint),
            quantization=_quantization(checkpoint),
            structure={} if structure is None else _describe_structure(structure),
            config={name: value for name, value in checkpoint.config.items() if name not in KEPT_TEXTS},
            tensors=[
                InspectedTensor(name, tuple(info.shape), info.dtype, info.num_bytes, info.file.name)
                for name, info in checkpoint.tensors.items()
            ],
            num_parameters=num_parameters,
            num_bytes=checkpoint.total_bytes,
            num_files=len({info.file for info in checkpoint.tensors.values()}),
            memory_bytes={name: int(num_parameters * size) for name, size in BYTES_OF_DTYPE.items()},
            kv_bytes_per_token=None if structure is None else _kv_bytes(structure),
            tokenizer=found,
            vocab_size=vocab_size,
            oddities=oddities,
        )


def _read_structure(checkpoint: AnyCheckpoint) -> tuple[TransformerConfig | None, list[str]]:
    try:
        return read_transformer_config(checkpoint.config, checkpoint.tensors), []
    except CheckpointError as error:
        return None, [f"kilotron cannot run it: {error}"]


def _architecture_name(checkpoint: AnyCheckpoint) -> str:
    names = checkpoint.config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else "unknown"


def _quantization(checkpoint: AnyCheckpoint) -> str | None:
    try:
        stored = find_format(checkpoint.config)
    except CheckpointError as error:
        return str(error)
    return None if stored is None else stored.description


def _describe_structure(config: TransformerConfig) -> dict[str, Any]:
    """What is not as usual, and the sizes."""
    told = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in HIDDEN_FIELDS and (field.default is not value) and value != field.default:
            told[field.name] = _plain(value)
    return told | {"params_dtype": str(config.params_dtype).removeprefix("torch.")}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if hasattr(value, "__dataclass_fields__"):
        members = {field.name: getattr(value, field.name) for field in fields(value)}
        return {name: _plain(member) for name, member in members.items() if member not in (None, ())}
    return value


def _kv_bytes(config: TransformerConfig) -> int:
    return 2 * config.num_layers * config.num_query_groups * config.kv_channels * config.params_dtype.itemsize


def _read_vocab_size(source: str | None) -> tuple[int | None, list[str]]:
    if source is None:
        return None, ["no tokenizer was found, so that prompts must be token ids; --tokenizer FOLDER names one"]
    try:
        return load_tokenizer(source).vocab_size, []
    except TokenizerError as error:
        return None, [f"its tokenizer cannot be loaded: {error}"]


def _tensor_oddities(
    checkpoint: AnyCheckpoint, config: TransformerConfig, parameters: Sequence[Parameter]
) -> Iterator[str]:
    names = find_architecture(checkpoint.config).weight_names
    try:
        stored = StoredWeights(checkpoint)
    except CheckpointError as error:
        yield f"kilotron cannot run it: {error}"
        return
    expected, problems = _expected_tensors(checkpoint, stored, names, parameters)
    missing = [name for name in expected if name not in checkpoint.tensors]
    if missing:
        yield f"missing: {_listed(missing)}"
    yield from problems
    used = expected.keys()
    unused = [
        name
        for name in checkpoint.tensors
        if name not in used and not names.is_ignored(name) and not stored.is_companion(name, used)
    ]
    output = _stored_name(names, stored.names, "output_layer.weight")
    if not config.untie_embeddings_and_output_weights and output in unused:
        unused.remove(output)
        yield f"{output} is stored although it is tied to the embedding; it should be a copy of that"
    if unused:
        yield f"not used by the model: {_listed(sorted(unused))}"


def _expected_tensors(
    checkpoint: AnyCheckpoint, stored: StoredWeights, names: WeightNames, parameters: Iterable[Parameter]
) -> tuple[dict[str, None], list[str]]:
    """Every tensor the model needs, and what is wrong with those that are there."""
    expected: dict[str, None] = {}
    problems = []
    for parameter in parameters:
        try:
            wanted, arrangement = parameter.stored_names(names, stored.names)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for name, shape in zip(wanted, part_shapes(parameter, len(wanted)), strict=True):
            for part, spec in stored.parts_of(name, shape, is_transposed=arrangement == "transposed").items():
                expected[part] = None
                info = checkpoint.tensors.get(part)
                if info is not None and tuple(info.shape) not in spec.shapes:
                    problems.append(f"{part} has shape {tuple(info.shape)}, not {' or '.join(map(str, spec.shapes))}")
                elif info is not None and info.dtype not in spec.dtypes:
                    problems.append(f"{part} has dtype {info.dtype}, not {' or '.join(spec.dtypes)}")
    more = len(problems) - MOST_NAMED
    return expected, problems[:MOST_NAMED] + ([f"and {more} tensors more of a wrong shape or dtype"] * (more > 0))


def _stored_name(names: WeightNames, stored: Collection[str], name: str) -> str:
    """What a parameter that is one tensor is stored as."""
    return names.source_of(name, stored).stacks[0][0]


def _file_oddities(checkpoint: AnyCheckpoint) -> Iterator[str]:
    dtypes = Counter(info.dtype for info in checkpoint.tensors.values())
    if len(dtypes) > 1 and _quantization(checkpoint) is None:
        yield "tensors of several dtypes: " + ", ".join(f"{count} of {dtype}" for dtype, count in dtypes.most_common())
    if isinstance(checkpoint, HuggingFaceCheckpoint):
        said = str(checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype") or "")
        most = TORCH_NAME_OF_DTYPE.get(dtypes.most_common(1)[0][0]) if dtypes else None
        if said and most in ("float32", "bfloat16", "float16") and said.removeprefix("torch.") != most:
            yield f"config.json says {said}, but the weights are {most}"
        used = {info.file for info in checkpoint.tensors.values()}
        extra = sorted(file.name for file in checkpoint.folder.glob("*.safetensors") if file not in used)
        if extra:
            yield f"files of weights that the index does not name: {_listed(extra)}"
    empty = [name for name, info in checkpoint.tensors.items() if 0 in info.shape]
    if empty:
        yield f"tensors without values: {_listed(empty)}"


def _vocabulary_oddities(config: TransformerConfig, vocab_size: int | None) -> Iterator[str]:
    rows = config.vocab_size
    if vocab_size is not None and vocab_size < rows:
        yield f"the vocabulary is padded: {rows} rows for the tokenizer's {vocab_size} tokens"
    if vocab_size is not None and vocab_size > rows:
        yield f"the tokenizer has {vocab_size} tokens, more than the vocabulary's {rows} rows: is it the right one?"


def _megatron_oddities(checkpoint: MegatronCheckpoint, config: TransformerConfig | None) -> Iterator[str]:
    args = checkpoint.args
    for name in PATH_ARGUMENTS:
        value = args.get(name)
        path = value[0] if isinstance(value, list) and value else value
        if isinstance(path, str) and os.path.isabs(path) and not os.path.lexists(path):
            yield f"{name} = {path}: a path of the machine that trained, which is not there; it is not needed"
    if config is None:
        return
    if gaps := find_megatron_gaps(config):
        yield f"megatron-core has no option for {', '.join(gaps)}: kilotron runs it, megatron-core does not"
    if kept_object(args, KEPT_CONFIG) is not None and read_kept_config(args, config) is None:
        yield f"{KEPT_CONFIG} contradicts the arguments, which count"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
