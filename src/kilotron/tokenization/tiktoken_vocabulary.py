"""Reads a vocabulary of tiktoken as Megatron's TikTokenizer keeps it: a JSON list of tokens in the order of their rank.

The special tokens come first and are in no file: their number, and the pattern that splits texts, are Megatron's
defaults, `--tiktoken-num-special-tokens 1000` and `--tiktoken-pattern v2`.
"""

import base64
import json
from pathlib import Path
from typing import Any

from kilotron.errors import TokenizerError
from kilotron.tokenization.fast_tokenizer import FastTokenizer
from kilotron.tokenization.token_pieces import byte_level_characters
from kilotron.tokenization.tokenizer_json import (
    BYTE_LEVEL,
    added_tokens,
    list_merges,
    parse_description,
    read_vocabulary,
)

NUM_SPECIAL_TOKENS = 1000
VOCAB_SIZE = 1 << 17
NAMED_TOKENS = ("<unk>", "<s>", "</s>", "<mask>", "<pad>", "<cls>", "<sep>")
# Megatron's pattern v2.
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def load_tiktoken_vocabulary(file: Path) -> FastTokenizer:
    """The tokenizer of a vocabulary file.

    Raises:
        TokenizerError: it is no such file.
    """
    try:
        entries = json.loads(read_vocabulary(file))
        ranked = [base64.b64decode(entry["token_bytes"], validate=True) for entry in entries]
    except (OSError, ValueError, RecursionError, TypeError, LookupError) as error:
        raise TokenizerError(f"{file} is no list of tokens with `token_bytes`, as tiktoken's are: {error!r}") from error
    if not ranked:
        raise TokenizerError(f"{file} holds no tokens, so it is no vocabulary of tiktoken")
    ranks = {token: rank for rank, token in enumerate(ranked[: VOCAB_SIZE - NUM_SPECIAL_TOKENS])}
    special = [*NAMED_TOKENS, *(f"<SPECIAL_{number}>" for number in range(len(NAMED_TOKENS), NUM_SPECIAL_TOKENS))]
    vocabulary = {_spell(token): rank + NUM_SPECIAL_TOKENS for token, rank in ranks.items()}
    by_pattern = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    description: dict[str, Any] = {
        "added_tokens": added_tokens((token_id, text, True) for token_id, text in enumerate(special)),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [by_pattern, BYTE_LEVEL | {"use_regex": False}]},
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "vocab": {text: token_id for token_id, text in enumerate(special)} | vocabulary,
            "merges": [[_spell(part) for part in pair] for pair in list_merges(ranks, ranks.__contains__, file)],
            "ignore_merges": True,
        },
    }
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return FastTokenizer(parse_description(description, file), names)


def _spell(token: bytes) -> str:
    characters = byte_level_characters()
    return "".join(characters[byte] for byte in token)
