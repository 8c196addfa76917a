"""What is to be converted: an open checkpoint, its structure, its naming style, and what lies beside its weights."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from kilotron.checkpoints.huggingface import HuggingFaceCheckpoint
from kilotron.checkpoints.megatron import MegatronCheckpoint
from kilotron.checkpoints.source_folder import CONFIG_FILE
from kilotron.checkpoints.weight_names import WeightNames
from kilotron.errors import CheckpointError
from kilotron.models.config_fields import ConfigFields
from kilotron.models.megatron_args import megatron_args
from kilotron.models.quantization.formats import find_format
from kilotron.models.registry import find_architecture
from kilotron.models.transformer_config import TransformerConfig

GENERATION_CONFIG_FILE = "generation_config.json"
KEPT_CONFIG = "hf_config_json"
KEPT_GENERATION_CONFIG = "hf_generation_config_json"
"""Where Megatron's arguments keep the text of the files that a checkpoint was converted from."""

# Everything a tokenizer may consist of.
TOKENIZER_FILES = (
    "*token*.json", "*.tiktoken", "*.model", "vocab*", "merges.txt", "spiece.model", "chat_template*", "*.jinja",
    "special_tokens_map.json",
)  # fmt: skip
MOST_TOKENIZER_FILES = 100
# A checkpoint may go on to be trained, with other lengths and types, and be the same model.
CHANGEABLE = {
    "vocab_size", "padded_vocab_size", "params_dtype", "bf16", "fp16", "seq_length", "attention_dropout",
    "hidden_dropout", "moe_grouped_gemm", "moe_router_load_balancing_type", "bias_gelu_fusion",
}  # fmt: skip

Checkpoint = HuggingFaceCheckpoint | MegatronCheckpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionSource:
    """An open checkpoint that can be converted."""

    checkpoint: Checkpoint
    config: TransformerConfig
    """`vocab_size` counts the rows that are stored."""
    names: WeightNames
    kept_config: str | None
    """The text of its config.json, or of the one it was once converted from, where that still describes it."""
    kept_generation_config: str | None
    tokenizer_files: list[Path]

    @property
    def format(self) -> str:
        """"huggingface" or "megatron"."""
        return format_of(self.checkpoint)

    def fingerprint(self) -> str:
        """Changes when files, tensors or configuration change."""
        digest = blake2b(repr(self.config).encode(), digest_size=16)
        digest.update((self.kept_config or "").encode())
        for name, info in sorted(self.checkpoint.tensors.items()):
            digest.update(f"{name} {info.dtype} {info.shape} {info.file}".encode())
        for file in sorted({info.file for info in self.checkpoint.tensors.values()}):
            status = file.stat()
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        return digest.hexdigest()


def read_source(checkpoint: Checkpoint, tokenizer: Path | None = None) -> ConversionSource:
    """Looks at an open checkpoint. `tokenizer` is the folder of its tokenizer, if that does not lie beside it.

    Raises:
        CheckpointError: it is quantized, or not one of a known architecture.
    """
    folders = [tokenizer] if tokenizer is not None else tokenizer_folders(checkpoint)
    files = next((files for folder in folders if (files := list(_tokenizer_files(folder)))), [])
    if tokenizer is not None and not files:
        raise CheckpointError(f"{tokenizer} has no tokenizer files; give the folder that holds tokenizer.json")
    if isinstance(checkpoint, HuggingFaceCheckpoint):
        return _huggingface_source(checkpoint, files)
    return _megatron_source(checkpoint, files)


def format_of(checkpoint: Checkpoint) -> str:
    """"huggingface" or "megatron"."""
    return "huggingface" if isinstance(checkpoint, HuggingFaceCheckpoint) else "megatron"


def tokenizer_folders(checkpoint: Checkpoint) -> list[Path]:
    """Where a checkpoint's tokenizer may lie, the likeliest place first."""
    folder = checkpoint.folder
    return [folder / "tokenizer", folder, folder.parent / "tokenizer", folder.parent]


def has_tokenizer(checkpoint: Checkpoint) -> bool:
    """Whether there is any tokenizer file beside it."""
    return any(True for folder in tokenizer_folders(checkpoint) for _ in _tokenizer_files(folder))


def describe_kept(args: Mapping[str, Any]) -> TransformerConfig | None:
    """The structure that the kept config.json in a Megatron checkpoint's arguments describes, if these still agree."""
    values = _kept_values(args)
    if values is None:
        return None
    try:
        config = find_architecture(values).read_config(ConfigFields(values, KEPT_CONFIG))
    except CheckpointError:
        return None
    said = {name: value for name, value in megatron_args(config).items() if name not in CHANGEABLE}
    is_same = all(_plain(args.get(name)) == _plain(value) for name, value in said.items())
    return config if is_same else None


def _huggingface_source(checkpoint: HuggingFaceCheckpoint, tokenizer_files: list[Path]) -> ConversionSource:
    if find_format(checkpoint.config) is not None:
        raise CheckpointError(
            f"{checkpoint.folder}: its weights are quantized, and Megatron has no such form: convert the plain checkpoint "
            "it was made from; kilotron quantizes that when it loads it (--quantization)"
        )
    architecture = find_architecture(checkpoint.config)
    generation_file = checkpoint.folder / GENERATION_CONFIG_FILE
    return ConversionSource(
        checkpoint=checkpoint,
        config=architecture.read_config(ConfigFields(checkpoint.config)),
        names=architecture.weight_names,
        kept_config=(checkpoint.folder / CONFIG_FILE).read_text(encoding="utf-8"),
        kept_generation_config=generation_file.read_text(encoding="utf-8") if checkpoint.generation_config else None,
        tokenizer_files=tokenizer_files,
    )


def _megatron_source(checkpoint: MegatronCheckpoint, tokenizer_files: list[Path]) -> ConversionSource:
    architecture = find_architecture(checkpoint.config)
    kept = describe_kept(checkpoint.args)
    if kept is None:
        config = architecture.read_config(ConfigFields(checkpoint.config, "Megatron's arguments"))
    else:
        rows = checkpoint.require("embedding.word_embeddings.weight").shape[0]
        config = replace(kept, vocab_size=rows)
    generation_config = checkpoint.args.get(KEPT_GENERATION_CONFIG)
    return ConversionSource(
        checkpoint=checkpoint,
        config=config,
        names=architecture.weight_names,
        kept_config=checkpoint.args[KEPT_CONFIG] if kept is not None else None,
        kept_generation_config=generation_config if isinstance(generation_config, str) else None,
        tokenizer_files=tokenizer_files,
    )


def _kept_values(args: Mapping[str, Any]) -> dict[str, Any] | None:
    text = args.get(KEPT_CONFIG)
    if not isinstance(text, str):
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _tokenizer_files(folder: Path) -> Iterator[Path]:
    found = {file for pattern in TOKENIZER_FILES for file in islice(folder.glob(pattern), MOST_TOKENIZER_FILES)}
    return (file for file in sorted(found) if file.is_file())
