"""What is to be converted: an open checkpoint, its structure, its naming style, and what lies beside its weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from kilotron.checkpoints.huggingface import HuggingFaceCheckpoint
from kilotron.checkpoints.megatron import MegatronCheckpoint
from kilotron.checkpoints.source_folder import CONFIG_FILE
from kilotron.checkpoints.weight_names import WeightNames
from kilotron.errors import CheckpointError
from kilotron.models.config_fields import ConfigFields
from kilotron.models.kept_config import KEPT_CONFIG, KEPT_GENERATION_CONFIG, read_kept_config
from kilotron.models.quantization.formats import find_format
from kilotron.models.registry import find_architecture
from kilotron.models.transformer_config import TransformerConfig

GENERATION_CONFIG_FILE = "generation_config.json"

# Everything a tokenizer may consist of.
TOKENIZER_FILES = (
    "*token*.json", "*.tiktoken", "*.model", "vocab*", "merges.txt", "spiece.model", "chat_template*", "*.jinja",
    "special_tokens_map.json",
)  # fmt: skip
MOST_TOKENIZER_FILES = 100
AnyCheckpoint = HuggingFaceCheckpoint | MegatronCheckpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionSource:
    """An open checkpoint that can be converted."""

    checkpoint: AnyCheckpoint
    config: TransformerConfig
    """`vocab_size` counts the rows that are stored."""
    names: WeightNames
    kept_config: str | None
    """The text of its config.json, or of the one it was once converted from, where that still describes it."""
    kept_generation_config: str | None
    tokenizer_files: list[Path]

    @property
    def format(self) -> str:
        """ "huggingface" or "megatron"."""
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


def read_source(checkpoint: AnyCheckpoint, tokenizer: Path | None = None) -> ConversionSource:
    """Looks at an open checkpoint. `tokenizer` is the folder of its tokenizer, if that does not lie beside it.

    Raises:
        CheckpointError: it is quantized, or not one of a known architecture.
    """
    files = tokenizer_files_of(checkpoint, tokenizer)
    if isinstance(checkpoint, HuggingFaceCheckpoint):
        return _huggingface_source(checkpoint, files)
    return _megatron_source(checkpoint, files)


def format_of(checkpoint: AnyCheckpoint) -> str:
    """ "huggingface" or "megatron"."""
    return "huggingface" if isinstance(checkpoint, HuggingFaceCheckpoint) else "megatron"


def tokenizer_files_of(checkpoint: AnyCheckpoint, tokenizer: Path | None) -> list[Path]:
    """The files of a checkpoint's tokenizer, in the folder that is given, else where they may lie beside it.

    Raises:
        CheckpointError: the folder that is given has none.
    """
    beside = checkpoint.folder
    likely = (beside / "tokenizer", beside, beside.parent / "tokenizer", beside.parent)
    folders = likely if tokenizer is None else (tokenizer,)
    files = next((files for folder in folders if (files := list(_tokenizer_files(folder)))), [])
    if tokenizer is not None and not files:
        raise CheckpointError(f"{tokenizer} has no tokenizer files; give the folder that holds tokenizer.json")
    return files


def _huggingface_source(checkpoint: HuggingFaceCheckpoint, tokenizer_files: list[Path]) -> ConversionSource:
    if find_format(checkpoint.config) is not None:
        raise CheckpointError(
            f"{checkpoint.folder}: its weights are quantized, and Megatron has no such form: convert the plain "
            "checkpoint it was made from; kilotron quantizes that when it loads it (--quantization)"
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
    config = architecture.read_config(ConfigFields(checkpoint.config, "Megatron's arguments"))
    is_kept = read_kept_config(checkpoint.args, config) is not None
    generation_config = checkpoint.args.get(KEPT_GENERATION_CONFIG)
    return ConversionSource(
        checkpoint=checkpoint,
        config=config,
        names=architecture.weight_names,
        kept_config=checkpoint.args[KEPT_CONFIG] if is_kept else None,
        kept_generation_config=generation_config if isinstance(generation_config, str) else None,
        tokenizer_files=tokenizer_files,
    )


def _tokenizer_files(folder: Path) -> Iterator[Path]:
    found = {file for pattern in TOKENIZER_FILES for file in islice(folder.glob(pattern), MOST_TOKENIZER_FILES)}
    return (file for file in sorted(found) if file.is_file())
