"""Megatron's NullTokenizer: the text of a token is its number. For tests and benchmarks without a vocabulary."""

from collections.abc import Sequence

from kilotron.errors import InvalidRequestError
from kilotron.tokenization.chat_template import ChatTemplate
from kilotron.tokenization.incremental_detokenizer import IncrementalDetokenizer, PieceDetokenizer
from kilotron.tokenization.token_pieces import TokenPieces
from kilotron.tokenization.tokenizer import Tokenizer


class NullTokenizer(Tokenizer):
    """Text is numbers separated by blanks. The end-of-document id follows the vocabulary, as in Megatron before 0.17.

    Example:
        >>> NullTokenizer(100).tokenize("7 42")
        [7, 42]
    """

    def __init__(self, vocab_size: int, eod_id: int | None = None) -> None:
        """Takes the number of ordinary ids. One more ends documents, unless `eod_id` says which of them does.

        Raises:
            InvalidRequestError: `vocab_size` is not positive, or `eod_id` is outside of it.
        """
        if vocab_size < 1:
            raise InvalidRequestError(f"NullTokenizer needs a positive vocab_size, not {vocab_size}")
        if eod_id is not None and not 0 <= eod_id < vocab_size:
            raise InvalidRequestError(f"NullTokenizer needs an eod_id from 0 to {vocab_size - 1}, not {eod_id}")
        self._eod_id = vocab_size if eod_id is None else eod_id
        self.vocab_size = vocab_size + (eod_id is None)
        self.bos_id: int | None = None
        self.eos_id: int | None = self._eod_id
        self.pad_id: int | None = None
        self.chat_template: ChatTemplate | None = None
        self._pieces = TokenPieces(self._spell, _BlankBeforeRule())

    def tokenize(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """See `Tokenizer`; there is nothing to add, and with `parse_special=False` the end-of-document id is refused.

        Raises:
            InvalidRequestError: the text is anything but known ids separated by blanks.
        """
        words = text.split()
        for word in words:
            if not (word.isascii() and word.isdigit() and len(word) < 20 and int(word) < self.vocab_size):
                last = self.vocab_size - 1
                raise InvalidRequestError(f"this tokenizer reads numbers from 0 to {last}, not {word[:40]!r}")
            if not parse_special and int(word) == self._eod_id:
                raise InvalidRequestError(f"{word} ends a document, and may not stand in a text")
        return [int(word) for word in words]

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer`."""
        return self._pieces[token_id]

    def special_ids(self) -> frozenset[int]:
        """See `Tokenizer`."""
        return frozenset({self._eod_id})

    def create_detokenizer(
        self, prompt_ids: Sequence[int], *, skip_special_tokens: bool = True
    ) -> IncrementalDetokenizer:
        """See `Tokenizer`."""
        skipped = self.special_ids() if skip_special_tokens else frozenset[int]()
        return PieceDetokenizer(self._pieces, prompt_ids, skipped)

    def _spell(self, token_id: int) -> str | None:
        return str(token_id) if 0 <= token_id < self.vocab_size else None


class _BlankBeforeRule:
    def middle(self, token: str) -> bytes:
        return b" " + token.encode("ascii")

    def first(self, token: str) -> bytes:
        return token.encode("ascii")
