"""The tokenizers only transformers knows: the fallback behind the `hf` extra.

Most of them are converted by transformers to the `tokenizers` library on loading, and then served by `FastTokenizer`.
Knows nothing of their formats.
"""

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kilotron.errors import TokenizerError
from kilotron.tokenization.chat_template import ChatTemplate
from kilotron.tokenization.fast_tokenizer import FastTokenizer
from kilotron.tokenization.incremental_detokenizer import IncrementalDetokenizer, WindowDetokenizer
from kilotron.tokenization.tokenizer import Tokenizer


class HfTokenizer(Tokenizer):
    """A transformers tokenizer written in Python. Slow, and its text is as exact as its `decode` is."""

    def __init__(self, tokenizer: Any, chat_template: ChatTemplate | None = None) -> None:
        """Wraps a loaded transformers tokenizer.

        Args:
            tokenizer: A `PreTrainedTokenizerBase`.
            chat_template: The model's chat template.
        """
        self._tokenizer = tokenizer
        self.vocab_size = int(max(tokenizer.get_vocab().values(), default=-1)) + 1
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.pad_id: int | None = tokenizer.pad_token_id
        self.chat_template = chat_template
        self._special_ids = frozenset(map(int, tokenizer.all_special_ids))

    def tokenize(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """See `Tokenizer`."""
        ids = self._tokenizer.encode(
            text, add_special_tokens=add_special_tokens, split_special_tokens=not parse_special
        )
        return list(ids)

    def detokenize(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """See `Tokenizer`."""
        return self._decode(ids, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer`; for part of a character whatever transformers shows."""
        return self._decode([token_id], skip_special_tokens=False).encode("utf-8")

    def special_ids(self) -> frozenset[int]:
        """See `Tokenizer`."""
        return self._special_ids

    def create_detokenizer(
        self, prompt_ids: Sequence[int], *, skip_special_tokens: bool = True
    ) -> IncrementalDetokenizer:
        """See `Tokenizer`."""
        skipped = self._special_ids if skip_special_tokens else frozenset[int]()
        return WindowDetokenizer(partial(self._decode, skip_special_tokens=False), prompt_ids, skipped)

    def _decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        known = [token_id for token_id in ids if 0 <= token_id < self.vocab_size]
        return str(
            self._tokenizer.decode(known, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
        )


def load_hf_tokenizer(folder: Path) -> Tokenizer:
    """Loads a folder's tokenizer through transformers, without running any code from the folder.

    Args:
        folder: The folder.

    Raises:
        TokenizerError: transformers is not installed, or cannot load this tokenizer.
    """
    if find_spec("transformers") is None:
        raise TokenizerError(
            f'{folder} has no tokenizer.json; to read other tokenizer formats: pip install "kilotron[hf]"'
        )
    loader = import_module("transformers").AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, ImportError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise TokenizerError(
            f"{folder} has no tokenizer.json, and transformers cannot load its tokenizer: {error}"
        ) from error
    from kilotron.tokenization.tokenizer_files import named_templates

    special_tokens = dict(tokenizer.special_tokens_map)
    templates = named_templates(tokenizer.chat_template)
    template = ChatTemplate(templates, special_tokens) if templates else None
    if tokenizer.is_fast:
        return FastTokenizer(tokenizer.backend_tokenizer, special_tokens, template)
    return HfTokenizer(tokenizer, template)
