"""Reads Megatron's legacy format, `mp_rank_TT[_PPP][_EEE]/model_optim_rng.pt`, and merges what its ranks hold.

Gives whole tensors under canonical names. Optimizer states in the same files are never read.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, Self

from kilotron.checkpoints.damage import broken, shown, unreadable
from kilotron.checkpoints.inert_values import Inert, StoredTensor, num_spanned
from kilotron.checkpoints.mapped_file import MappedFiles
from kilotron.checkpoints.megatron_args import plain_args
from kilotron.checkpoints.megatron_fused import split_fused
from kilotron.checkpoints.megatron_names import EXPERT, LAYER, canonical_name, drop_duplicates, is_weight
from kilotron.checkpoints.sharded_tensor import ShardedTensor
from kilotron.checkpoints.torch_archive import read_torch_archive
from kilotron.errors import CheckpointError

WEIGHTS_FILE = "model_optim_rng.pt"
RANK_FOLDER = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?(?:_(\d{3,}))?")

# How tensor parallelism cuts a tensor; what is not named here is whole on every rank.
ROWS = re.compile(
    r"(word_embeddings|output_layer|linear_qkv|linear_q|linear_kv|linear_q_proj|linear_q_up_proj|linear_kv_up_proj"
    r"|linear_fc1|eh_proj)\.(weight|bias)$|softmax_offset$"
)
COLUMNS = re.compile(r"(linear_proj|linear_fc2)\.weight$")
DOWN_PROJECTION = re.compile(r"linear_(q|kv)_down_proj\.weight$")  # cut by local layers, whole with others


class Rank(NamedTuple):
    """Where a file's weights belong."""

    pipeline: int
    tensor: int
    expert: int


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Over how many ranks the model was cut, as its arguments say."""

    tensor: int
    pipeline: int
    expert: int
    expert_tensor: int
    num_experts: int
    latent_rows: Mapping[str, int]
    """Rows of the down projections of multi-latent attention."""

    @classmethod
    def of(cls, args: Mapping[str, Any], file: Path) -> Self:
        def count(name: str, default: int) -> int:
            value = args.get(name)
            if value is None:
                return default
            if type(value) is not int or value < 0:
                raise broken(file, expected=f"a count as saved argument {name}", found=shown(value))
            return value or default

        tensor = count("tensor_model_parallel_size", 1)
        rows = {"q": count("q_lora_rank", 0), "kv": count("kv_lora_rank", 0) + count("qk_pos_emb_head_dim", 0)}
        pipeline, expert = count("pipeline_model_parallel_size", 1), count("expert_model_parallel_size", 1)
        return cls(
            tensor, pipeline, expert, count("expert_tensor_parallel_size", tensor), count("num_experts", 0), rows
        )

    @property
    def description(self) -> str:
        ranks = f"{self.tensor} tensor-parallel by {self.pipeline} pipeline ranks"
        experts = f", and {self.expert} of experts" if self.expert > 1 else ""
        return f"{ranks}{experts}, as the saved arguments say"


@dataclass(frozen=True, slots=True)
class _Shard:
    """What one rank holds of a tensor."""

    file: Path
    tensor: StoredTensor
    is_gated: bool
    """Whether its rows are two halves, gate and up, that are merged each on its own."""


Shards = dict[str, dict[tuple[int, int], _Shard]]
"""By canonical name, then by tensor and expert rank."""


class LegacyCheckpoint:
    """The weights and saved arguments of a folder of `mp_rank_*` folders."""

    def __init__(self, folder: Path) -> None:
        """Raises BrokenCheckpointError: a rank is missing, or ranks do not fit together."""
        self.folder = folder
        self.files = MappedFiles()
        contents = {name: self._read(name) for name in _rank_folders(folder)}
        args = next(iter(contents.values())).get("args")
        if not isinstance(args, Inert):
            file = folder / next(iter(contents)) / WEIGHTS_FILE
            raise broken(file, expected="the saved arguments, `args`", found="none, so that the model is not known")
        self.args = plain_args(args, file=folder)
        self._sizes = _Sizes.of(self.args, folder)
        ranks = {self._rank(name): name for name in contents}
        self._check_ranks(ranks)
        self.tensors = self._merge({rank: contents[name] for rank, name in sorted(ranks.items())})

    def _path(self, name: str) -> Path:
        return self.folder / name / WEIGHTS_FILE

    def _read(self, name: str) -> dict[Any, Any]:
        file = self._path(name)
        content = read_torch_archive(self.files.open(file))
        if not isinstance(content, dict):
            raise broken(file, expected="a dict with the model's weights", found=f"a {type(content).__name__}")
        return content

    def _rank(self, name: str) -> Rank:
        match = RANK_FOLDER.fullmatch(name)
        tensor, second, third = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
        is_pipeline = self._sizes.pipeline > 1 or name.count("_") > 3
        return Rank(second, tensor, third) if is_pipeline else Rank(0, tensor, second)

    def _check_ranks(self, ranks: Mapping[Rank, str]) -> None:
        sizes = self._sizes
        if missing := _first_missing({rank[:2] for rank in ranks}, sizes.pipeline, sizes.tensor):
            name = f"mp_rank_{missing[1]:02d}" + (f"_{missing[0]:03d}" if sizes.pipeline > 1 else "")
            raise broken(self._path(name), expected=sizes.description, found="no such file")
        if missing := _first_missing({(rank.pipeline, rank.expert) for rank in ranks}, sizes.pipeline, sizes.expert):
            found = f"no expert rank {missing[1]} in pipeline stage {missing[0]}"
            raise broken(self.folder, expected=sizes.description, found=found)
        for rank, name in ranks.items():
            if rank.pipeline >= sizes.pipeline or rank.tensor >= sizes.tensor or rank.expert >= sizes.expert:
                raise broken(self._path(name), expected=sizes.description, found="one more rank")

    def _merge(self, contents: Mapping[Rank, dict[Any, Any]]) -> dict[str, ShardedTensor]:
        shards: Shards = {}
        num_layers: Counter[str] = Counter()
        """Of the stages before, by the name of their stack."""
        for models in self._chunks_in_order(contents):
            first_layers = dict(num_layers)
            for rank, model in models.items():
                for name, shard in self._shards_of(rank, model, first_layers, num_layers):
                    shards.setdefault(name, {}).setdefault((rank.tensor, rank.expert), shard)
        if self._sizes.pipeline > 1 and not self.args.get("untie_embeddings_and_output_weights", False):
            shards.pop("output_layer.weight", None)  # the last stage's copy of the embedding
        tensors = {name: self._merged(name, by_rank) for name, by_rank in shards.items()}
        drop_duplicates(tensors)
        return tensors

    def _chunks_in_order(self, contents: Mapping[Rank, dict[Any, Any]]) -> Iterator[dict[Rank, dict[str, Any]]]:
        """The parts of the model in the order of its layers. With virtual stages, each rank holds several parts."""
        first = next(iter(contents.values()))
        keys = (
            ["model"]
            if "model" in first
            else [f"model{chunk}" for chunk in range(len(first)) if f"model{chunk}" in first]
        )
        if not keys:
            raise broken(self.folder, expected="the weights, `model`", found=f"only {shown(sorted(map(str, first)))}")
        for key in keys:
            for stage in range(self._sizes.pipeline):
                yield {rank: self._model(rank, key, one) for rank, one in contents.items() if rank.pipeline == stage}

    def _model(self, rank: Rank, key: str, content: dict[Any, Any]) -> dict[str, Any]:
        model = content.get(key)
        if not isinstance(model, dict) or not all(isinstance(name, str) for name in model):
            raise broken(self.folder, expected=f"the weights, `{key}`, in the files of {rank}", found="none")
        if isinstance(model.get("language_model"), dict):
            raise CheckpointError(
                f"{self.folder} holds one of Megatron's legacy models, from before Megatron Core: convert it with "
                "Megatron's tools/checkpoint/convert.py --saver core"
            )
        return model

    def _shards_of(
        self, rank: Rank, model: Mapping[str, Any], first_layers: Mapping[str, int], num_layers: Counter[str]
    ) -> Iterator[tuple[str, _Shard]]:
        """The weights of one rank's part of the model, by their names in the whole; counts its layers."""
        sizes = self._sizes
        tensors = split_fused(
            {
                canonical_name(name): value
                for name, value in model.items()
                if is_weight(name) and isinstance(value, StoredTensor)
            },
            num_experts=sizes.num_experts // sizes.expert,
            num_q_rows=sizes.latent_rows["q"],
            num_kv_rows=sizes.latent_rows["kv"],
        )
        for name, tensor in tensors.items():
            if prod(tensor.shape) > num_spanned(tensor.shape, tensor.strides):
                found = f"shape {tensor.shape} with strides {tensor.strides}"
                raise broken(tensor.path, tensor=name, expected="a value for each place", found=found)
        num_experts = _count_experts(tensors)
        for name, tensor in tensors.items():
            whole_name = name
            if match := LAYER.fullmatch(name):
                layers, number, rest = match[1], int(match[2]), match[3]
                num_layers[layers] = max(num_layers[layers], first_layers.get(layers, 0) + number + 1)
                whole_name = f"{layers}.{first_layers.get(layers, 0) + number}.{rest}"
            if match := EXPERT.fullmatch(name):
                expert = rank.expert * num_experts[match[1]] + int(match[2])
                whole_name = EXPERT.sub(rf"\g<1>.local_experts.{expert}.\g<3>", whole_name)
            yield whole_name, _Shard(tensor.path, tensor, _is_gated(name, tensors))

    def _merged(self, name: str, by_rank: Mapping[tuple[int, int], _Shard]) -> ShardedTensor:
        """One tensor out of what the ranks hold of it."""
        is_expert = EXPERT.fullmatch(name) is not None
        shards: dict[int, _Shard] = {}
        for (tensor_rank, _), shard in sorted(by_rank.items(), key=itemgetter(0)):
            shards.setdefault(tensor_rank, shard)
        first = next(iter(shards.values()))
        axis = self._axis(name, first.tensor)
        num_parts = self._sizes.expert_tensor if is_expert else self._sizes.tensor
        for shard in shards.values():
            if (shard.tensor.shape, shard.tensor.dtype) != (first.tensor.shape, first.tensor.dtype):
                expected = f"{first.tensor.dtype} {first.tensor.shape}, as in {first.file}"
                found = f"{shard.tensor.dtype} {shard.tensor.shape}"
                raise broken(shard.file, tensor=name, expected=expected, found=found)
        if axis is None or num_parts == 1:
            return ShardedTensor.whole(name, first.tensor)
        if num_parts != self._sizes.tensor:
            raise CheckpointError(
                f"{self.folder}: experts cut over {num_parts} of {self._sizes.tensor} tensor-parallel ranks are not "
                "read: save with --expert-tensor-parallel-size 1, or as torch_dist"
            )
        if len(shards) != num_parts:
            raise broken(
                first.file, tensor=name, expected=f"a part on each of {num_parts} ranks", found=f"{len(shards)}"
            )
        return _joined(name, [shards[rank] for rank in range(num_parts)], axis)

    def _axis(self, name: str, tensor: StoredTensor) -> int | None:
        """Along which axis tensor parallelism cuts it, None where each rank has all of it."""
        if ROWS.search(name):
            return 0
        if COLUMNS.search(name):
            return 1
        if match := DOWN_PROJECTION.search(name):
            return None if tensor.shape[:1] == (self._sizes.latent_rows[match[1]],) else 0
        return None


def _first_missing(found: Collection[tuple[int, int]], num_stages: int, num_ranks: int) -> tuple[int, int] | None:
    """Looks at no more pairs than there are files and one more, however many there should be."""
    pairs = ((stage, rank) for stage in range(num_stages) for rank in range(num_ranks))
    return next((pair for pair in pairs if pair not in found), None)


def _joined(name: str, shards: Sequence[_Shard], axis: int) -> ShardedTensor:
    """Shards of one shape, side by side along an axis; gated ones as all gates, then all ups."""
    shape = shards[0].tensor.shape
    if axis >= len(shape):
        raise broken(shards[0].file, tensor=name, expected=f"more than {axis} axes", found=f"shape {shape}")
    pieces = []
    for rank, shard in enumerate(shards):
        (piece,) = ShardedTensor.whole(name, shard.tensor).pieces
        if shard.is_gated:
            half = shape[0] // 2
            pieces.append(piece.rows(0, half).moved(0, rank * half))
            pieces.append(piece.rows(half, 2 * half).moved(0, (len(shards) + rank) * half))
        else:
            pieces.append(piece.moved(axis, rank * shape[axis]))
    whole = tuple(size * len(shards) if place == axis else size for place, size in enumerate(shape))
    return ShardedTensor.checked(name, shards[0].tensor.dtype, whole, pieces, shards[0].file)


def _is_gated(name: str, tensors: Mapping[str, StoredTensor]) -> bool:
    """Whether the first layer of an MLP makes two values for each input of the second."""
    module, separator, _ = name.rpartition(".linear_fc1.")
    second = tensors.get(f"{module}.linear_fc2.weight")
    if not separator or second is None or len(second.shape) != 2:
        return False
    return tensors[name].shape[:1] == (2 * second.shape[1],)


def _count_experts(tensors: Iterable[str]) -> Counter[str]:
    """How many experts a rank has, by the name of their layer."""
    counts: Counter[str] = Counter()
    for name in tensors:
        if match := EXPERT.fullmatch(name):
            counts[match[1]] = max(counts[match[1]], int(match[2]) + 1)
    return counts


def _rank_folders(folder: Path) -> list[str]:
    try:
        names = sorted(name for name in os.listdir(folder) if RANK_FOLDER.fullmatch(name))
    except OSError as error:
        raise unreadable(folder, error) from error
    if not names:
        raise broken(folder, expected="folders mp_rank_*", found="none")
    return names
