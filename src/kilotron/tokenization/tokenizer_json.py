"""Makes tokenizers of the `tokenizers` library out of descriptions in tokenizer.json's form, for formats without it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


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
