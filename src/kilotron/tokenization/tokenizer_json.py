"""Makes tokenizers of the `tokenizers` library out of descriptions in tokenizer.json's form, for formats without it."""

import json
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kilotron.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
MAX_FILE_BYTES = 200_000_000
MAX_MERGED_LENGTH = 1000  # of a token that is made of two others
MAX_MERGES = 2_000_000

Token = TypeVar("Token", str, bytes)


def read_vocabulary(file: Path) -> bytes:
    """All of a vocabulary's file.

    Raises:
        TokenizerError: it is no file, or larger than a vocabulary can be.
        OSError: it cannot be read.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
        raise TokenizerError(f"{file} is no file of at most {MAX_FILE_BYTES} bytes, as a vocabulary must be")
    return file.read_bytes()


def list_merges(tokens: Iterable[Token], is_known: Callable[[Token], bool], file: Path) -> list[tuple[Token, Token]]:
    """Every way to make one of the tokens of two that are known, in the order of the tokens.

    Raises:
        TokenizerError: a token is too long, or there are too many ways; a small file can ask for any number.
    """
    merges: list[tuple[Token, Token]] = []
    for token in tokens:
        if len(token) > MAX_MERGED_LENGTH or len(merges) > MAX_MERGES:
            limits = f"tokens above length {MAX_MERGED_LENGTH}, or more than {MAX_MERGES} merges"
            raise TokenizerError(f"{file} has {limits}, so it is no vocabulary")
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        merges += [(first, second) for first, second in halves if is_known(first) and is_known(second)]
    return merges


def parse_description(description: Mapping[str, Any], file: Path) -> "Backend":
    """The library's tokenizer; `file` is what the description was made of.

    Raises:
        TokenizerError: the library cannot make a tokenizer of it.
    """
    from kilotron.tokenization.tokenizer_files import parse_backend

    return parse_backend(json.dumps({"version": "1.0", **description}), str(file))


def added_tokens(tokens: Iterable[tuple[int, str, bool]]) -> list[dict[str, Any]]:
    """Tokens that are found in a text before anything else: ids, spellings, and whether they are special."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [{"id": token_id, "content": text, **flags, "special": special} for token_id, text, special in tokens]
