"""The exact bytes each token id stands for, worked out from a tokenizer's decoder description.

Covers the decoders that published models use: byte-level BPE, and the SentencePiece family (U+2581 for a blank,
`<0x0A>` byte tokens). Knows nothing of streams or special tokens.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_MERGED_BY_FUSE = {"Replace", "ByteFallback", "Metaspace"}


class PieceRule(Protocol):
    """How a token's spelling in the vocabulary becomes bytes."""

    def middle(self, token: str) -> bytes:
        """Bytes of a token that has others before it."""
        ...

    def first(self, token: str) -> bytes:
        """Bytes of a token that begins the text."""
        ...


class TokenPieces(dict[int, bytes]):
    """Bytes of each id, worked out on first use and then remembered. An unknown id has no bytes."""

    def __init__(self, token_of: Callable[[int], str | None], rule: PieceRule) -> None:
        """Starts empty.

        Args:
            token_of: The vocabulary's spelling of an id, `None` if there is no such id.
            rule: How a spelling becomes bytes.
        """
        super().__init__()
        self._token_of = token_of
        self._rule = rule

    def __missing__(self, token_id: int) -> bytes:
        token = self._token_of(token_id)
        if token is None:
            return b""  # not remembered: the number of wrong ids has no bound
        piece = self._rule.middle(token)
        self[token_id] = piece
        return piece

    def first(self, token_id: int) -> bytes:
        """Bytes of an id that begins the text."""
        token = self._token_of(token_id)
        return b"" if token is None else self._rule.first(token)


class ByteLevelRule:
    """Byte-level BPE: each character of the spelling is one byte; a token with any other character is plain text."""

    def middle(self, token: str) -> bytes:
        """See `PieceRule`."""
        byte_of = _byte_level_alphabet()
        try:
            return bytes([byte_of[character] for character in token])
        except KeyError:
            return token.encode("utf-8", "replace")

    def first(self, token: str) -> bytes:
        """See `PieceRule`."""
        return self.middle(token)


@dataclass(frozen=True, kw_only=True)
class SentencePieceRule:
    """The SentencePiece family."""

    replacements: tuple[tuple[str, str], ...]  # applied in this order
    has_byte_tokens: bool
    strips_first_blank: bool  # the text loses one leading blank
    mark_dropped_from_first: str | None  # Metaspace: the first token loses all its marks

    def middle(self, token: str) -> bytes:
        """See `PieceRule`."""
        if self.has_byte_tokens and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match.group(1), 16)])
        for old, new in self.replacements:
            token = token.replace(old, new)
        return token.encode("utf-8", "replace")

    def first(self, token: str) -> bytes:
        """See `PieceRule`."""
        if self.mark_dropped_from_first is not None:
            token = token.replace(self.mark_dropped_from_first, "")
        piece = self.middle(token)
        return piece.removeprefix(b" ") if self.strips_first_blank else piece


def piece_rule(decoder: Mapping[str, object] | None) -> PieceRule | None:
    """Reads a decoder description.

    Args:
        decoder: The `decoder` object of a tokenizer.json.

    Returns:
        The rule, or `None` if this decoder's text is not made of fixed bytes per token (WordPiece, CTC...).
    """
    steps = _flatten(decoder)
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return ByteLevelRule()
    strips = kinds[-2:] == ["Fuse", "Strip"] and _strips_one_blank(steps[-1])
    if strips:
        kinds, steps = kinds[:-1], steps[:-1]
    if kinds and kinds[-1] == "Fuse":
        kinds, steps = kinds[:-1], steps[:-1]
    if not kinds or not _MERGED_BY_FUSE.issuperset(map(str, kinds)) or len(set(kinds)) != len(kinds):
        return None
    replacements: list[tuple[str, str]] = []
    mark: str | None = None
    for step in steps:
        if step["type"] == "ByteFallback":
            continue
        replacement = _replacement(step)
        if replacement is None:
            return None
        replacements.append(replacement)
        if step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never":
            mark = replacement[0]
    return SentencePieceRule(
        replacements=tuple(replacements),
        has_byte_tokens="ByteFallback" in kinds,
        strips_first_blank=strips,
        mark_dropped_from_first=mark,
    )


def _flatten(decoder: Mapping[str, object] | None) -> list[Mapping[str, object]]:
    if decoder is None:
        return []
    if decoder.get("type") != "Sequence":
        return [decoder]
    steps = decoder.get("decoders")
    flat: list[Mapping[str, object]] = []
    for step in steps if isinstance(steps, Sequence) else ():
        flat.extend(_flatten(step))
    return flat


def _strips_one_blank(step: Mapping[str, object]) -> bool:
    return step.get("content") == " " and step.get("start") == 1 and step.get("stop") == 0


def _replacement(step: Mapping[str, object]) -> tuple[str, str] | None:
    """What a Replace or Metaspace step puts in the place of what, unless it is a regular expression."""
    if step["type"] == "Metaspace":
        return str(step["replacement"]), " "
    pattern = step.get("pattern")
    old = pattern.get("String") if isinstance(pattern, Mapping) else None
    return (str(old), str(step["content"])) if old else None


@cache
def _byte_level_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE: printable Latin-1 stands for itself, the other bytes for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return alphabet


@cache
def byte_level_characters() -> dict[int, str]:
    """Byte -> character of byte-level BPE."""
    return {byte: character for character, byte in _byte_level_alphabet().items()}
