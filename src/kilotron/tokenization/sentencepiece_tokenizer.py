"""SentencePieceTokenizer: a model of SentencePiece, run by the `tokenizers` library. Knows nothing of its file."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kilotron.tokenization.fast_tokenizer import FastTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

BLANK = "▁"


class SentencePieceTokenizer(FastTokenizer):
    """Does itself what SentencePiece does at the ends of a text, and the library only between special tokens."""

    def __init__(
        self,
        backend: "Backend",
        special_tokens: Mapping[str, str],
        *,
        has_prefix: bool,
        strips: str | None,
        control_tokens: Sequence[str],
    ) -> None:
        """
        Args:
            backend: the library's tokenizer, without a prefix.
            special_tokens: as for `FastTokenizer`.
            has_prefix: whether a text begins with a blank that it does not have.
            strips: characters that do not count at the ends of a text; "" for none, None for all blanks there are.
            control_tokens: spellings before which there is no such blank, but after.
        """
        super().__init__(backend, special_tokens)
        self._has_prefix = has_prefix
        self._strips = strips
        self._control_tokens = tuple(control_tokens)

    def tokenize(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """See `Tokenizer`; there is nothing to add."""
        control, rest = "", text
        while parse_special and (found := next(filter(rest.startswith, self._control_tokens), None)):
            control, rest = control + found, rest[len(found) :]
        rest = rest.strip(self._strips)
        if rest and self._has_prefix:
            rest = BLANK + rest
        return super().tokenize(control + rest, add_special_tokens=add_special_tokens, parse_special=parse_special)
