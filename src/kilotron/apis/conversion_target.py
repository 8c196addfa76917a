"""What a checkpoint is converted to: how one file of it is written, and all that goes around the weights."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kilotron.apis.conversion_source import (
    GENERATION_CONFIG_FILE,
    AnyCheckpoint,
    ConversionSource,
    list_tokenizer_files,
)
from kilotron.checkpoints.huggingface import HuggingFaceCheckpoint
from kilotron.checkpoints.huggingface_writer import shard_file_name, write_safetensors, write_shard_index
from kilotron.checkpoints.megatron import MegatronCheckpoint
from kilotron.checkpoints.megatron_args import KEPT_CONFIG, KEPT_GENERATION_CONFIG
from kilotron.checkpoints.megatron_folder import RELEASE, TRACKER_FILE
from kilotron.checkpoints.megatron_keys import Place, place_tensors
from kilotron.checkpoints.megatron_writer import (
    chunk_file_name,
    write_chunks,
    write_common_state,
    write_metadata,
)
from kilotron.checkpoints.output_tensor import DigestingStream, OutputTensor
from kilotron.checkpoints.source_folder import CONFIG_FILE
from kilotron.checkpoints.unfinished_folder import UnfinishedFolder
from kilotron.checkpoints.weight_names import WeightNames
from kilotron.models.huggingface_config import write_huggingface_config
from kilotron.models.megatron_args import BOOKKEEPING, megatron_args
from kilotron.models.registry import find_architecture
from kilotron.models.transformer_config import TransformerConfig

TOKENIZER_FOLDER = "tokenizer"
COMMON_FILE = "__0_common.distcp"

Facts = Mapping[str, Any]


class ConversionTarget(Protocol):
    """One format that can be written."""

    config: TransformerConfig
    """`vocab_size` counts the rows that are written."""
    names: WeightNames
    """What the tensors are called by whoever reads the result."""
    format: str
    architecture: str

    def prepare(self, outputs: Sequence[OutputTensor]) -> None:
        """Learns of all tensors that there will be."""

    def file_name(self, index: int, count: int) -> str:
        """Name of a file of weights, below the folder."""

    def write_weights(self, stream: DigestingStream, outputs: Sequence[OutputTensor]) -> Facts:
        """Writes one file; gives what `complete` must know of it, as plain JSON values."""

    def complete(self, folder: UnfinishedFolder, files: Mapping[str, tuple[Sequence[OutputTensor], Facts]]) -> None:
        """Writes everything that is no file of weights."""

    def open_result(self, folder: Path) -> AnyCheckpoint:
        """Opens what was written."""


@dataclass(slots=True, kw_only=True)
class MegatronTarget:
    """A `torch_dist` checkpoint: SAVE/latest_checkpointed_iteration.txt and SAVE/release/."""

    source: ConversionSource
    config: TransformerConfig
    names: WeightNames
    final: Path
    transformer_impl: str
    places: dict[str, Place]
    architecture: str
    format: str = "megatron"

    @classmethod
    def of(cls, source: ConversionSource, final: Path, transformer_impl: str) -> "MegatronTarget":
        """The target for a source; the rows of its tables stay as they are."""
        name = "MegatronGPT" if source.config.encoder_decoder is None else "MegatronT5"
        kept = {KEPT_CONFIG: source.kept_config}
        return cls(
            source=source,
            config=source.config,
            names=find_architecture({"architectures": [name], **kept}).weight_names,
            architecture=name,
            final=final,
            transformer_impl=transformer_impl,
            places={},
        )

    def prepare(self, outputs: Sequence[OutputTensor]) -> None:
        """Places all tensors, which depends on whether all layers are equal."""
        self.places = place_tensors(outputs, has_fused_moe_norms=self.transformer_impl == "local")

    def file_name(self, index: int, count: int) -> str:
        """As Megatron's first rank calls it."""
        return f"{RELEASE}/{chunk_file_name(index)}"

    def write_weights(self, stream: DigestingStream, outputs: Sequence[OutputTensor]) -> Facts:
        """A file of chunks."""
        return {"entries": write_chunks(stream, outputs, self.places)}

    def complete(self, folder: UnfinishedFolder, files: Mapping[str, tuple[Sequence[OutputTensor], Facts]]) -> None:
        """Arguments, tokenizer, `.metadata`, and the tracker file last."""
        has_tokenizer = _copy_tokenizer(self.source.tokenizer, folder.path / RELEASE / TOKENIZER_FOLDER)
        args = self._args(has_tokenizer=has_tokenizer)
        common = folder.write_file(
            f"{RELEASE}/{COMMON_FILE}",
            lambda stream: {"entries": write_common_state(stream, args, self.places)},
        )
        entries = {name.removeprefix(f"{RELEASE}/"): facts["entries"] for name, (_, facts) in files.items()}
        outputs = [output for inside, _ in files.values() for output in inside]
        write_metadata(folder.path / RELEASE, entries | {COMMON_FILE: common["entries"]}, outputs, self.places)
        (folder.path / TRACKER_FILE).write_text(RELEASE, encoding="utf-8")

    def open_result(self, folder: Path) -> MegatronCheckpoint:
        """As any reader would."""
        return MegatronCheckpoint.open(folder)

    def _args(self, *, has_tokenizer: bool) -> dict[str, Any]:
        source = self.source
        kept = {KEPT_CONFIG: source.kept_config, KEPT_GENERATION_CONFIG: source.kept_generation_config}
        folder = self.final / RELEASE
        return {
            **BOOKKEEPING,
            **megatron_args(self.config),
            "transformer_impl": self.transformer_impl,
            "tokenizer_type": "HuggingFaceTokenizer",
            "tokenizer_model": str(folder / TOKENIZER_FOLDER) if has_tokenizer else None,
            "make_vocab_size_divisible_by": 128,
            "save": str(self.final),
            **{name: text for name, text in kept.items() if text is not None},
        }


@dataclass(slots=True, kw_only=True)
class HuggingFaceTarget:
    """A folder as transformers saves it."""

    source: ConversionSource
    config: TransformerConfig
    names: WeightNames
    config_text: str
    architecture: str
    format: str = "huggingface"

    @classmethod
    def of(cls, source: ConversionSource, config: TransformerConfig, architecture: str | None) -> "HuggingFaceTarget":
        """The target for a source; `config` is its structure with the vocabulary and dtype that are written.

        Raises:
            CheckpointError: no architecture, or not the one asked for, expresses the model.
        """
        text = _kept_text(source, config, architecture)
        if text is None:
            text = json.dumps(write_huggingface_config(config, architecture), indent=2) + "\n"
        values = json.loads(text)
        return cls(
            source=source,
            config=config,
            names=find_architecture(values).weight_names,
            config_text=text,
            architecture=values["architectures"][0],
        )

    def prepare(self, outputs: Sequence[OutputTensor]) -> None:
        """Nothing to learn: each tensor has a name of its own."""

    def file_name(self, index: int, count: int) -> str:
        """As transformers calls it."""
        return shard_file_name(index, count)

    def write_weights(self, stream: DigestingStream, outputs: Sequence[OutputTensor]) -> Facts:
        """A safetensors file."""
        write_safetensors(stream, outputs)
        return {}

    def complete(self, folder: UnfinishedFolder, files: Mapping[str, tuple[Sequence[OutputTensor], Facts]]) -> None:
        """Index, configuration and tokenizer."""
        if len(files) > 1:
            write_shard_index(folder.path, {name: outputs for name, (outputs, _) in files.items()})
        _copy_tokenizer(self.source.tokenizer, folder.path)
        if self.source.kept_generation_config is not None:
            text = self.source.kept_generation_config
            (folder.path / GENERATION_CONFIG_FILE).write_text(text, encoding="utf-8")
        (folder.path / CONFIG_FILE).write_text(self.config_text, encoding="utf-8")

    def open_result(self, folder: Path) -> HuggingFaceCheckpoint:
        """As any reader would."""
        return HuggingFaceCheckpoint.open(folder)


def _kept_text(source: ConversionSource, config: TransformerConfig, architecture: str | None) -> str | None:
    """The kept config.json, word for word where nothing in it has to change."""
    if source.kept_config is None:
        return None
    values = json.loads(source.kept_config)
    if architecture not in (None, values["architectures"][0]):
        return None
    written: dict[str, Any] = {"vocab_size": config.vocab_size}
    dtype = str(config.params_dtype).removeprefix("torch.")
    written |= {key: dtype for key in ("dtype", "torch_dtype") if key in values}
    if all(values.get(name, value) == value for name, value in written.items()):
        return source.kept_config
    return json.dumps(values | written, indent=2) + "\n"


def _copy_tokenizer(source: str | None, folder: Path) -> bool:
    """Copies a tokenizer's files into a folder; whether there were any."""
    origin = None if source is None else Path(source)
    if origin is None or not origin.exists():  # none, or one that needs no files
        return False
    origin = origin if origin.is_dir() else origin.parent
    files = list_tokenizer_files(origin)
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(origin / file, folder / file)
    return bool(files)
