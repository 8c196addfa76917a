"""Makes the twin of a tokenizer in which no text can spell a special token.

The library's own switch (`encode_special_tokens`) only stops the search for special tokens in the text; a Unigram or
word-level vocabulary that lists `</s>` among its pieces still finds it. Here special tokens keep their ids and lose
their spelling.
"""

import json
import secrets
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


def without_special_spellings(backend: "Backend") -> "Backend":
    """Copies a tokenizer, giving each special token a random name.

    Tokens that are added but not special (such as runs of blanks, or `<tool_call>` in some models) are still found.

    Args:
        backend: The tokenizer; it stays as it is.

    Raises:
        TokenizerError: the vocabulary builds larger tokens out of a special one.
    """
    from kilotron.tokenization.tokenizer_files import parse_backend

    description = json.loads(backend.to_str())
    nonce = secrets.token_hex(16)
    special = [token for token in description["added_tokens"] if token["special"]]
    unknown = description["model"].get("unk_token")  # must stay, and it does no harm if a text spells it
    renamed = {token["content"]: f"{nonce}-{token['id']}" for token in special if token["content"] != unknown}
    for token in special:
        token["content"] = renamed.get(token["content"], token["content"])
        token["normalized"] = False
    _rename_vocabulary(description["model"], renamed)
    twin = parse_backend(json.dumps(description), "a tokenizer without the spelling of its special tokens")
    twin.encode_special_tokens = True
    return twin


def _rename_vocabulary(model: dict[str, Any], renamed: dict[str, str]) -> None:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {renamed.get(token, token): token_id for token, token_id in vocabulary.items()}
    else:  # Unigram: pairs of piece and score, the id is the position
        model["vocab"] = [[renamed.get(token, token), score] for token, score in vocabulary]
    if "merges" in model:
        model["merges"] = [merge for merge in model["merges"] if _product(merge) not in renamed]


def _product(merge: str | list[str]) -> str:
    return merge.replace(" ", "") if isinstance(merge, str) else "".join(merge)
