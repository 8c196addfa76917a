"""How results and notes are written: tables, JSON lines, dimmed text. Knows no command."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

_DIM, _RESET = "\x1b[2m", "\x1b[0m"


def note(message: str) -> None:
    """One line for the user that is not a result."""
    print(f"kilotron: {message}", file=sys.stderr)


def dim(text: str, stream: TextIO) -> str:
    """Text in the background, where the stream shows colour and NO_COLOR does not forbid it."""
    has_colour = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"{_DIM}{text}{_RESET}" if has_colour and text else text


def print_json(value: Any) -> None:
    """One JSON value on one line of standard output."""
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(value, ensure_ascii=not is_unicode), flush=True)


def format_table(rows: Iterable[Sequence[object]], header: Sequence[str] = (), *, right: Sequence[int] = ()) -> str:
    """Columns aligned with blanks; `right` are the columns aligned on the right, and numbers belong there."""
    cells = [[str(cell) for cell in row] for row in ([header] if header else [])] + [
        list(map(str, row)) for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    if header:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def format_bytes(count: float) -> str:
    """Bytes for people, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
