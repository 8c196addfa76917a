from typing import Any

import pytest

from kilotron.tokenization.token_pieces import TokenPieces, piece_rule

REPLACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
FUSE = {"type": "Fuse"}
BYTES = {"type": "ByteFallback"}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "decoders": list(steps)}


@pytest.mark.parametrize(
    ("decoder", "token", "first", "middle"),
    [
        ({"type": "ByteLevel"}, "Ġhi", b" hi", b" hi"),
        ({"type": "ByteLevel"}, "Ã", b"\xc3", b"\xc3"),
        ({"type": "ByteLevel"}, "你", "你".encode(), "你".encode()),
        (sequence(REPLACE, BYTES, FUSE, STRIP), "▁▁hi", b" hi", b"  hi"),
        (sequence(REPLACE, BYTES, FUSE), "▁hi", b" hi", b" hi"),
        (sequence(REPLACE, BYTES, FUSE), "<0x0A>", b"\n", b"\n"),
        (sequence(REPLACE, FUSE), "<0x0A>", b"<0x0A>", b"<0x0A>"),
        (METASPACE, "▁▁hi", b"hi", b"  hi"),
        ({**METASPACE, "prepend_scheme": "never"}, "▁hi", b" hi", b" hi"),
        (sequence(BYTES, METASPACE), "<0xE4>", b"\xe4", b"\xe4"),
        (sequence(sequence(REPLACE), FUSE), "▁hi", b" hi", b" hi"),
    ],
)
def test_spelling_becomes_bytes(decoder: dict[str, Any], token: str, first: bytes, middle: bytes) -> None:
    rule = piece_rule(decoder)

    assert rule is not None
    assert (rule.first(token), rule.middle(token)) == (first, middle)


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "BPEDecoder", "suffix": "</w>"},
        {"type": "CTC"},
        sequence(REPLACE, STRIP),  # strips every token, not the text
        sequence(FUSE, REPLACE),
        sequence(REPLACE, FUSE, {**STRIP, "start": 2}),
        sequence({**REPLACE, "pattern": {"Regex": "a+"}}, FUSE),
        sequence({"type": "ByteLevel"}, FUSE),
        sequence(),
    ],
)
def test_other_decoders_are_left_to_the_library(decoder: dict[str, Any] | None) -> None:
    assert piece_rule(decoder) is None


def test_unknown_ids_are_not_remembered() -> None:
    rule = piece_rule({"type": "ByteLevel"})
    assert rule is not None
    pieces = TokenPieces({1: "a"}.get, rule)

    assert [pieces[1], pieces[2], pieces.first(2)] == [b"a", b"", b""]
    assert list(pieces) == [1]
