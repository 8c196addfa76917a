"""What is to be converted: an open checkpoint, its structure, its naming style, and what lies beside its weights."""

from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from kilotron.apis.tokenizer_choice import find_tokenizer
from kilotron.checkpoints.huggingface import HuggingFaceCheckpoint
from kilotron.checkpoints.megatron import MegatronCheckpoint
from kilotron.checkpoints.megatron_args import KEPT_CONFIG, KEPT_GENERATION_CONFIG
from kilotron.checkpoints.source_folder import CONFIG_FILE
from kilotron.checkpoints.weight_names import WeightNames
from kilotron.errors import CheckpointError
from kilotron.models.kept_config import read_kept_config
from kilotron.models.quantization.formats import find_format
from kilotron.models.registry import find_architecture, read_transformer_config
from kilotron.models.transformer_config import TransformerConfig
from kilotron.tokenization.loading import TOKENIZER_FILES

GENERATION_CONFIG_FILE = "generation_config.json"

# What belongs to a tokenizer beside the files by which one is known.
CHAT_TEMPLATES = ("*.jinja", "chat_template*.json", "additional_chat_templates/*.jinja")
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
    tokenizer: str | None
    """What `load_tokenizer` makes its tokenizer of."""

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


def read_source(checkpoint: AnyCheckpoint, tokenizer: str | None = None) -> ConversionSource:
    """Looks at an open checkpoint. `tokenizer` is what its tokenizer is made of, if that does not lie beside it.

    Raises:
        CheckpointError: it is quantized, or of an architecture that is not converted.
    """
    architecture = find_architecture(checkpoint.config)
    config = read_transformer_config(checkpoint.config, checkpoint.tensors)
    find_kept = _kept_of_huggingface if isinstance(checkpoint, HuggingFaceCheckpoint) else _kept_of_megatron
    kept_config, kept_generation_config = find_kept(checkpoint, config)
    return ConversionSource(
        checkpoint=checkpoint,
        config=config,
        names=architecture.weight_names,
        kept_config=kept_config,
        kept_generation_config=kept_generation_config,
        tokenizer=tokenizer or find_tokenizer(checkpoint),
    )


def format_of(checkpoint: AnyCheckpoint) -> str:
    """ "huggingface" or "megatron"."""
    return "huggingface" if isinstance(checkpoint, HuggingFaceCheckpoint) else "megatron"


def list_tokenizer_files(folder: Path) -> list[Path]:
    """The files of a tokenizer, relative to their folder."""
    found = (path for pattern in (*TOKENIZER_FILES, *CHAT_TEMPLATES) for path in folder.glob(pattern))
    files = sorted({path.relative_to(folder) for path in islice(found, MOST_TOKENIZER_FILES) if path.is_file()})
    return [file for file in files if not file.name.endswith((".safetensors", ".bin", ".pt", ".distcp"))]


def _kept_of_huggingface(checkpoint: AnyCheckpoint, config: TransformerConfig) -> tuple[str | None, str | None]:
    if find_format(checkpoint.config) is not None:
        raise CheckpointError(
            f"{checkpoint.folder}: its weights are quantized, and Megatron has no such form: convert the plain "
            "checkpoint it was made from; kilotron quantizes that when it loads it (--quantization)"
        )
    text = (checkpoint.folder / CONFIG_FILE).read_text(encoding="utf-8")
    generation_file = checkpoint.folder / GENERATION_CONFIG_FILE
    return text, generation_file.read_text(encoding="utf-8") if checkpoint.generation_config else None


def _kept_of_megatron(checkpoint: AnyCheckpoint, config: TransformerConfig) -> tuple[str | None, str | None]:
    args = checkpoint.config
    is_kept = read_kept_config(args, config) is not None
    generation_config = args.get(KEPT_GENERATION_CONFIG)
    return args[KEPT_CONFIG] if is_kept else None, generation_config if isinstance(generation_config, str) else None
