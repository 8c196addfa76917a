"""Reads a model file of SentencePiece: a protocol buffer with the pieces, and how text is prepared for them.

Only the fields that matter for encoding are read (sentencepiece_model.proto of the sentencepiece project). Control
tokens are not put around a text: neither SentencePiece nor Megatron does that, unless asked.
"""

import base64
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kilotron.errors import TokenizerError
from kilotron.tokenization.character_map import check_character_map
from kilotron.tokenization.sentencepiece_tokenizer import BLANK, SentencePieceTokenizer
from kilotron.tokenization.tokenizer_json import added_tokens, list_merges, parse_description, read_vocabulary

PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE_TEXT, PIECE_SCORE, PIECE_KIND = 1, 2, 3
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
MODEL_TYPE, BYTE_FALLBACK, UNK_ID, BOS_ID, EOS_ID, PAD_ID = 3, 35, 40, 41, 42, 43
SUFFIX_BLANKS = 24
CHARACTER_MAP, DUMMY_PREFIX, NO_EXTRA_BLANKS = 2, 3, 4
MODEL_TYPES = {1: "Unigram", 2: "BPE"}


class Piece(NamedTuple):
    """One token."""

    text: str
    score: float
    kind: int


def load_sentencepiece_model(file: Path) -> SentencePieceTokenizer:
    """The tokenizer of a model file.

    Raises:
        TokenizerError: it is no such file, or of a type that is not read.
    """
    try:
        return _read_model(file)
    except TokenizerError:
        raise
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise TokenizerError(f"{file} cannot be read as a model of SentencePiece: {error}") from error


def _read_model(file: Path) -> SentencePieceTokenizer:
    fields = list(_fields(read_vocabulary(file)))
    pieces = [_piece(value) for number, value in fields if number == PIECES and isinstance(value, bytes)]
    trainer, normalizer = _message(fields, TRAINER), _message(fields, NORMALIZER)
    kind = MODEL_TYPES.get(_number(trainer, MODEL_TYPE, 1))
    if kind is None or _number(trainer, SUFFIX_BLANKS, 0):
        raise TokenizerError(
            f"{file} is a SentencePiece model of a type that is not read (only BPE and unigram are): make a "
            "tokenizer.json of it with transformers, and give its folder as the tokenizer"
        )
    if not pieces:
        raise TokenizerError(f"{file} holds no pieces, so it is no model of SentencePiece")
    strips_blanks = bool(_number(normalizer, NO_EXTRA_BLANKS, 1))
    return SentencePieceTokenizer(
        parse_description(_describe(kind, pieces, trainer, normalizer, file), file),
        _special_tokens(pieces, trainer),
        has_prefix=bool(_number(normalizer, DUMMY_PREFIX, 1)),
        strips="" if not strips_blanks else None if normalizer.get(CHARACTER_MAP) else " ",
        control_tokens=[piece.text for piece in pieces if piece.kind == CONTROL],
    )


def _describe(
    kind: str, pieces: list[Piece], trainer: dict[int, Any], normalizer: dict[int, Any], file: Path
) -> dict[str, Any]:
    has_bytes = bool(_number(trainer, BYTE_FALLBACK, 0))
    unk_id = _number(trainer, UNK_ID, 0)
    decoders: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": BLANK}, "content": " "}]
    decoders += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    if _number(normalizer, DUMMY_PREFIX, 1):
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    named = (
        (token_id, piece.text, piece.kind == CONTROL)
        for token_id, piece in enumerate(pieces)
        if piece.kind in (CONTROL, USER_DEFINED)
    )
    return {
        "added_tokens": added_tokens(named),
        "normalizer": _describe_normalizer(normalizer),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _describe_bpe(pieces, unk_id, file, has_bytes=has_bytes)
        if kind == "BPE"
        else {
            "type": "Unigram",
            "unk_id": unk_id if 0 <= unk_id < len(pieces) else None,
            "vocab": [[piece.text, piece.score] for piece in pieces],
            "byte_fallback": has_bytes,
        },
    }


def _describe_normalizer(normalizer: dict[int, Any]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    character_map = normalizer.get(CHARACTER_MAP)
    if isinstance(character_map, bytes) and character_map:
        check_character_map(character_map)
        encoded = base64.b64encode(character_map).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": encoded})
    if _number(normalizer, NO_EXTRA_BLANKS, 1):
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": BLANK})
    return {"type": "Sequence", "normalizers": steps}


def _describe_bpe(pieces: list[Piece], unk_id: int, file: Path, *, has_bytes: bool) -> dict[str, Any]:
    """Pieces are merged by the score of what they become, greatest first."""
    vocabulary = {piece.text: token_id for token_id, piece in enumerate(pieces)}
    scores = {piece.text: piece.score for piece in pieces if piece.kind == NORMAL}
    merges = list_merges(scores, scores.__contains__, file)
    # Of pieces with the same score, and of ways to make one piece, those with the smallest ids are first.
    merges.sort(key=lambda pair: (-scores["".join(pair)], vocabulary["".join(pair)], *map(vocabulary.get, pair)))
    return {
        "type": "BPE",
        "unk_token": pieces[unk_id].text if 0 <= unk_id < len(pieces) else None,
        "fuse_unk": True,
        "byte_fallback": has_bytes,
        "vocab": vocabulary,
        "merges": merges,
    }


def _special_tokens(pieces: list[Piece], trainer: dict[int, Any]) -> dict[str, str]:
    ids = {
        "bos_token": _number(trainer, BOS_ID, 1),
        "eos_token": _number(trainer, EOS_ID, 2),
        "pad_token": _number(trainer, PAD_ID, -1),
    }
    return {name: pieces[one].text for name, one in ids.items() if 0 <= one < len(pieces)}


def _piece(content: bytes) -> Piece:
    fields = dict(_fields(content))
    score = fields.get(PIECE_SCORE, 0.0)
    text = fields.get(PIECE_TEXT, b"")
    if not isinstance(text, bytes) or not isinstance(score, float):
        raise ValueError("a piece is no text with a score")
    return Piece(text.decode("utf-8"), score, _number(fields, PIECE_KIND, NORMAL))


def _message(fields: list[tuple[int, Any]], wanted: int) -> dict[int, Any]:
    """The fields of a message inside the file, the last of each; empty when there is none."""
    contents = [value for number, value in fields if number == wanted and isinstance(value, bytes)]
    return dict(_fields(contents[-1])) if contents else {}


def _number(fields: dict[int, Any], number: int, default: int) -> int:
    value = fields.get(number, default)
    if not isinstance(value, int):
        raise ValueError(f"field {number} is no whole number")
    return value - (1 << 64) if value >= 1 << 63 else value


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """Field numbers and values: whole numbers, float32 as float, and bytes."""
    position = 0
    while position < len(content):
        key, position = _varint(content, position)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, position = _varint(content, position)
            yield number, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            size, position = _varint(content, position)
        if size is None or position + size > len(content):
            raise ValueError("it is cut short, or no protocol buffer")
        part = content[position : position + size]
        position += size
        yield number, struct.unpack("<f", part)[0] if kind == 5 else part


def _varint(content: bytes, position: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        byte = content[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise ValueError("a number has no end")
