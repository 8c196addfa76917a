"""A tokenizer without a vocabulary file: one id per UTF-8 byte. For tests, demonstrations and random models."""

from collections.abc import Sequence

from kilotron.tokenization.chat_template import ChatTemplate
from kilotron.tokenization.incremental_detokenizer import IncrementalDetokenizer, PieceDetokenizer
from kilotron.tokenization.token_pieces import TokenPieces
from kilotron.tokenization.tokenizer import Tokenizer

_SPECIAL_TOKENS = {256: "<|bos|>", 257: "<|eos|>", 258: "<|pad|>"}


class ByteTokenizer(Tokenizer):
    """Ids 0-255 are bytes, 256 begins a text, 257 ends it, 258 pads. No text can spell a special token.

    Example:
        >>> ByteTokenizer().tokenize("hi")
        [256, 104, 105]
    """

    def __init__(self, chat_template: ChatTemplate | None = None) -> None:
        """Needs nothing; a chat template may be given."""
        self.vocab_size = 259
        self.bos_id: int | None = 256
        self.eos_id: int | None = 257
        self.pad_id: int | None = 258
        self.chat_template = chat_template
        self._pieces = TokenPieces(_spell, _ByteRule())

    def tokenize(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """See `Tokenizer`; lone surrogates become question marks."""
        ids = list(text.encode("utf-8", "replace"))
        return [256, *ids] if add_special_tokens else ids

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer`."""
        return self._pieces[token_id]

    def special_ids(self) -> frozenset[int]:
        """See `Tokenizer`."""
        return frozenset(_SPECIAL_TOKENS)

    def create_detokenizer(
        self, prompt_ids: Sequence[int], *, skip_special_tokens: bool = True
    ) -> IncrementalDetokenizer:
        """See `Tokenizer`."""
        skipped = self.special_ids() if skip_special_tokens else frozenset[int]()
        return PieceDetokenizer(self._pieces, prompt_ids, skipped)


class _ByteRule:
    def middle(self, token: str) -> bytes:
        return token.encode("latin-1")

    def first(self, token: str) -> bytes:
        return self.middle(token)


def _spell(token_id: int) -> str | None:
    return chr(token_id) if 0 <= token_id < 256 else _SPECIAL_TOKENS.get(token_id)
