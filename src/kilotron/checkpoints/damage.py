"""How a damaged checkpoint is reported: file, tensor, expected, found, in one form everywhere."""

import reprlib
from pathlib import Path

from kilotron.errors import BrokenCheckpointError

MAX_SHOWN_CHARACTERS = 200  # a damaged file may hold a name of megabytes; nobody wants to read it


def broken(file: Path, *, expected: str, found: str, tensor: str | None = None) -> BrokenCheckpointError:
    """The error for one file, or one tensor of it, that is not as it must be."""
    place = str(file) if tensor is None else f"{file}: tensor {shown(tensor)}"
    return BrokenCheckpointError(f"{place}: expected {expected}, found {found}")


def unreadable(file: Path, error: OSError, *, tensor: str | None = None) -> BrokenCheckpointError:
    """The error for a file that the operating system does not hand over."""
    found = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
    return broken(file, tensor=tensor, expected="a readable file", found=found)


def shown(value: object) -> str:
    """The value as Python writes it, cut to a readable length, control characters escaped."""
    text = repr(value[: MAX_SHOWN_CHARACTERS + 1]) if isinstance(value, str) else _BRIEF.repr(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[:MAX_SHOWN_CHARACTERS] + "..."


class _Brief(reprlib.Repr):
    """Looks at no more of a value than is shown: a few bytes of a file can spell a value of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = 20
        self.maxstring = self.maxother = self.maxlong = 2 * MAX_SHOWN_CHARACTERS


_BRIEF = _Brief()
