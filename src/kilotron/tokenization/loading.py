"""Chooses how a tokenizer is loaded from what names it: a model folder, a file in one, or `null:N`. Knows no format."""

import logging
import re
from pathlib import Path

from kilotron.errors import TokenizerError
from kilotron.tokenization.fast_tokenizer import FastTokenizer
from kilotron.tokenization.null_tokenizer import NullTokenizer
from kilotron.tokenization.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# A folder with none of these has no tokenizer; with any of them, what is missing is an error.
TOKENIZER_FILES = ("*token*", "*vocab*", "*merges.txt", "*.model", "sentencepiece*", "tekken*")
NULL_TOKENIZER = re.compile(r"null:(\d{1,9})(?::(\d{1,9}))?", re.ASCII)


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Loads a tokenizer.

    Args:
        source: A folder with tokenizer.json; or with GPT-2's vocabulary and merges, a model of SentencePiece, or
            Megatron's vocabulary for tiktoken, and nothing else; or with any tokenizer that transformers (extra `hf`)
            can load. Or one of these files. Or `null:N` for N ids whose text is their number; the next id ends a
            document, or the one named by `null:N:ID`.

    Returns:
        The tokenizer, with the model's chat template if there is one.

    Raises:
        TokenizerError: there is no tokenizer, its files are broken, or it needs the `hf` extra.
    """
    if match := NULL_TOKENIZER.fullmatch(str(source)):
        return _null_tokenizer(*match.groups())
    from kilotron.tokenization.vocabulary_files import load_vocabulary_file, load_vocabulary_files

    folder = Path(source).expanduser()
    if folder.is_file():
        if (tokenizer := load_vocabulary_file(folder)) is not None:
            return tokenizer
        folder = folder.parent
    if not folder.is_dir():
        raise TokenizerError(
            f"no folder or file {str(source)!r}: give the folder that holds tokenizer.json, or null:N for N bare ids"
        )
    if (folder / "tokenizer.json").is_file():
        return FastTokenizer.from_folder(folder)
    if (tokenizer := load_vocabulary_files(folder)) is not None:
        return tokenizer
    from kilotron.tokenization.hf_tokenizer import load_hf_tokenizer

    logger.info("%s has no tokenizer.json; loading its tokenizer through transformers", folder)
    return load_hf_tokenizer(folder)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has any file that belongs to a tokenizer."""
    return any(path.is_file() for pattern in TOKENIZER_FILES for path in folder.glob(pattern))


def _null_tokenizer(vocab_size: str, eod_id: str | None) -> NullTokenizer:
    size, eod = int(vocab_size), None if eod_id is None else int(eod_id)
    if size < 1 or (eod is not None and eod >= size):
        raise TokenizerError(f"null:{vocab_size}{'' if eod is None else f':{eod}'} needs N above 0, and ID below it")
    return NullTokenizer(size, eod)
