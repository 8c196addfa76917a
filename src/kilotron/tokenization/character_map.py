"""Checks SentencePiece's map of characters, a trie in an array, whose reader in the library checks nothing.

A place outside of the map would end the whole process at the first text that leads there.
"""

import struct

MAX_UNITS = 5_000_000


def check_character_map(content: bytes) -> None:
    """The map is the number of bytes of the trie, the trie, and the texts that its leaves point into.

    Raises:
        ValueError: it is cut short, or a place in it leads outside.
    """
    if len(content) < 4:
        raise ValueError("its map of characters is cut short")
    (num_bytes,) = struct.unpack_from("<I", content)
    num_units = num_bytes // 4
    if num_bytes % 4 or not 0 < num_units <= MAX_UNITS or 4 + num_bytes > len(content):
        raise ValueError("its map of characters is cut short, or too large")
    units = struct.unpack_from(f"<{num_units}I", content, 4)
    texts = content[4 + num_bytes :]
    texts.decode("utf-8")
    for place, unit in enumerate(units):
        if unit >> 31:  # a leaf, which leads nowhere
            continue
        below = place ^ (unit >> 10 << ((unit & 1 << 9) >> 6))
        # The next byte of a text is the last byte of the place where it goes on.
        if below | 0xFF >= num_units or (unit & 1 << 8 and not _is_start(texts, units[below] & 0x7FFFFFFF)):
            raise ValueError("its map of characters leads outside of itself")


def _is_start(texts: bytes, place: int) -> bool:
    """Whether a character begins there, or the texts end."""
    return place == len(texts) or (place < len(texts) and texts[place] & 0xC0 != 0x80)
