"""Which tokenizer an engine has: the one asked for, or the one that lies with the checkpoint."""

import logging
from pathlib import Path
from typing import NamedTuple

from kilotron.checkpoints.checkpoint import Checkpoint
from kilotron.checkpoints.megatron import MegatronCheckpoint
from kilotron.errors import ConfigError
from kilotron.tokenization import Tokenizer, load_tokenizer
from kilotron.tokenization.loading import has_tokenizer
from kilotron.tokenization.megatron_tokenizer import describe_megatron_tokenizer, find_megatron_tokenizer

_log = logging.getLogger(__name__)


class ChosenTokenizer(NamedTuple):
    """A tokenizer, if there is one."""

    tokenizer: Tokenizer | None
    source: str | None
    """What `load_tokenizer` made it of, and can make it of again; None for a ready one."""


def choose_tokenizer(asked: str | Path | Tokenizer | None, checkpoint: Checkpoint | None) -> ChosenTokenizer:
    """The one asked for, else the one with the checkpoint; a warning says so where there is none.

    Raises:
        TokenizerError: its files are missing or broken.
        ConfigError: what was asked for is no tokenizer.
    """
    if asked is None:
        if checkpoint is None:
            return ChosenTokenizer(None, None)
        asked = _find_beside(checkpoint)
        if asked is None:
            return ChosenTokenizer(None, None)
    if isinstance(asked, str | Path):
        return ChosenTokenizer(load_tokenizer(asked), str(asked))
    if not hasattr(asked, "create_detokenizer"):  # such as one of transformers
        raise ConfigError(f"tokenizer must be a folder or a kilotron Tokenizer, not {type(asked).__name__}")
    return ChosenTokenizer(asked, None)


def count_tokens(checkpoint: Checkpoint, tokenizer: Tokenizer | None, num_rows: int) -> int | None:
    """How many of a model's `num_rows` logits are tokens; None where all count.

    Megatron pads its tables with rows that mean nothing. Other models' rows are all scored, as transformers does.
    """
    if not isinstance(checkpoint, MegatronCheckpoint):
        return None
    known = checkpoint.args.get("vocab_size") if tokenizer is None else tokenizer.vocab_size
    return known if isinstance(known, int) and 0 < known < num_rows else None


def find_tokenizer(checkpoint: Checkpoint) -> str | None:
    """What `load_tokenizer` makes the tokenizer of that lies with a checkpoint; None where none does."""
    if isinstance(checkpoint, MegatronCheckpoint):
        return find_megatron_tokenizer(checkpoint.args, checkpoint.folder)
    return str(checkpoint.folder) if has_tokenizer(checkpoint.folder) else None


def _find_beside(checkpoint: Checkpoint) -> str | None:
    without = "prompts must be token ids, and there will be no text"
    found = find_tokenizer(checkpoint)
    if found is None and not isinstance(checkpoint, MegatronCheckpoint):
        _log.warning("%s has no tokenizer files; %s", checkpoint.folder, without)
    elif found is None and isinstance(checkpoint, MegatronCheckpoint):
        named = describe_megatron_tokenizer(checkpoint.args)
        remedy = "give its folder with --tokenizer PATH (tokenizer= in Python)"
        _log.warning("no tokenizer lies with %s, which names %s: %s; %s", checkpoint.folder, named, remedy, without)
    return found
