"""The tokenizer of a tokenizer.json, run by the `tokenizers` library.

Owns encoding, and which way of decoding this tokenizer needs. Knows nothing of files.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from kilotron.errors import InvalidRequestError
from kilotron.tokenization.chat_template import ChatTemplate
from kilotron.tokenization.incremental_detokenizer import (
    IncrementalDetokenizer,
    PieceDetokenizer,
    WindowDetokenizer,
)
from kilotron.tokenization.plain_text import without_special_spellings
from kilotron.tokenization.token_pieces import TokenPieces, piece_rule
from kilotron.tokenization.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

# Ids from here on overflow in the library; those below that it does not know have no text.
_ID_LIMIT = 2**32


class FastTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library.

    Encodes as transformers does. Decodes to the exact bytes of the ids, read as UTF-8 with U+FFFD for what is not
    (transformers shows more U+FFFD for broken runs of `<0x0A>` tokens); it never "cleans up" blanks before
    punctuation, which transformers does for some old tokenizers.
    """

    def __init__(
        self, backend: "Backend", special_tokens: Mapping[str, str], chat_template: ChatTemplate | None = None
    ) -> None:
        """Wraps a loaded tokenizer, which must not be changed afterwards.

        Args:
            backend: The library's tokenizer.
            special_tokens: Spelling of `bos_token`, `eos_token` and `pad_token`, as far as they exist.
            chat_template: The model's chat template.
        """
        self._backend = backend
        self.bos_id = self._id_of(special_tokens.get("bos_token"))
        self.eos_id = self._id_of(special_tokens.get("eos_token"))
        self.pad_id = self._id_of(special_tokens.get("pad_token"))
        self.chat_template = chat_template
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        decoder = backend.decoder
        rule = piece_rule(json.loads(decoder.__getstate__()) if decoder is not None else None)
        self._pieces = TokenPieces(self._token_of, rule) if rule is not None else None
        self._plain_backend: Backend | None = None
        self._plain_backend_lock = threading.Lock()

    @cached_property
    def vocab_size(self) -> int:  # type: ignore[override] # of a Protocol's field; a read of it is all there is
        """See `Tokenizer`. Counted when asked for: it takes a tenth of a second for 150k tokens."""
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @classmethod
    def from_folder(cls, folder: str | Path) -> "FastTokenizer":
        """Loads the tokenizer.json of a folder and the files around it.

        Args:
            folder: The folder.

        Raises:
            TokenizerError: a file is missing, broken or of a kind that is not supported.
        """
        from kilotron.tokenization.tokenizer_files import read_tokenizer_files

        files = read_tokenizer_files(Path(folder))
        template = ChatTemplate(files.chat_templates, files.special_tokens) if files.chat_templates else None
        return cls(files.backend, files.special_tokens, template)

    def tokenize(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """See `Tokenizer`."""
        backend = self._backend if parse_special else self._backend_for_plain_text()
        try:
            return list(backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except TypeError as error:  # which is also what the library says about a lone surrogate
            if isinstance(text, str):
                reason = "it has half a character (a lone surrogate), as a file that is not UTF-8 may give"
                raise InvalidRequestError(f"this text cannot be encoded: {reason}") from error
            raise InvalidRequestError(f"this text cannot be encoded: {error}") from error

    def detokenize(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """See `Tokenizer`."""
        if self._pieces is None:
            return self._decode(ids, skip_special_tokens=skip_special_tokens)
        return super().detokenize(ids, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer`."""
        if self._pieces is None:
            return self._decode([token_id], skip_special_tokens=False).encode("utf-8")
        return self._pieces[token_id]

    def special_ids(self) -> frozenset[int]:
        """See `Tokenizer`."""
        return self._special_ids

    def create_detokenizer(
        self, prompt_ids: Sequence[int], *, skip_special_tokens: bool = True
    ) -> IncrementalDetokenizer:
        """See `Tokenizer`."""
        skipped = self._special_ids if skip_special_tokens else frozenset[int]()
        if self._pieces is None:
            return WindowDetokenizer(partial(self._decode, skip_special_tokens=False), prompt_ids, skipped)
        return PieceDetokenizer(self._pieces, prompt_ids, skipped)

    def _decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        known = [token_id for token_id in ids if 0 <= token_id < _ID_LIMIT]
        text: str = self._backend.decode(known, skip_special_tokens=skip_special_tokens)
        return text

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else self._backend.token_to_id(token)

    def _token_of(self, token_id: int) -> str | None:
        return self._backend.id_to_token(token_id) if 0 <= token_id < _ID_LIMIT else None

    def _backend_for_plain_text(self) -> "Backend":
        # A second tokenizer, made once, because the library's switch for this is global to a tokenizer.
        with self._plain_backend_lock:
            if self._plain_backend is None:
                self._plain_backend = without_special_spellings(self._backend)
            return self._plain_backend
