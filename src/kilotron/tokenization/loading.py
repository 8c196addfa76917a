"""Chooses how the tokenizer of a model folder is loaded. Knows no file format."""

import logging
from pathlib import Path

from kilotron.errors import TokenizerError
from kilotron.tokenization.fast_tokenizer import FastTokenizer
from kilotron.tokenization.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads the tokenizer of a model folder.

    Args:
        path: A folder with tokenizer.json, or with any tokenizer that transformers (extra `hf`) can load.

    Returns:
        The tokenizer, with the model's chat template if there is one.

    Raises:
        TokenizerError: there is no tokenizer, its files are broken, or it needs the `hf` extra.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise TokenizerError(f"{folder} is not a folder: give the folder that holds tokenizer.json")
    if (folder / "tokenizer.json").is_file():
        return FastTokenizer.from_folder(folder)
    from kilotron.tokenization.hf_tokenizer import load_hf_tokenizer

    logger.info("%s has no tokenizer.json; loading its tokenizer through transformers", folder)
    return load_hf_tokenizer(folder)
