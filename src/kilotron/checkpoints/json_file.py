"""Reads JSON objects from checkpoint files, bounded in size. Knows nothing of what they mean."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from kilotron.checkpoints.bounded_file import read_bounded
from kilotron.checkpoints.damage import broken, shown

MAX_CONFIG_BYTES = 16_000_000


def read_json_object(file: Path, *, max_bytes: int = MAX_CONFIG_BYTES, unique_keys: bool = False) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        BrokenCheckpointError: the file is missing, too large, not JSON, or its top level is not an object.
    """
    text = read_bounded(file, max_bytes, content="JSON")
    return parse_json_object(text, file=file, unique_keys=unique_keys)


def parse_json_object(text: bytes, *, file: Path, unique_keys: bool) -> dict[str, Any]:
    """The JSON object that `text`, which came from `file`, spells.

    Raises:
        BrokenCheckpointError: not JSON, not an object, or (with `unique_keys`) a key stands twice in one object.
    """
    try:
        value = json.loads(text.decode(), object_pairs_hook=_unique if unique_keys else None)
    except _DuplicateKeyError as error:
        raise broken(file, expected="every JSON key once", found=f"{error} twice") from error
    except (ValueError, RecursionError) as error:
        raise broken(file, expected="valid JSON", found=f"an error ({error})") from error
    if not isinstance(value, dict):
        raise broken(file, expected="a JSON object", found=f"{type(value).__name__} {shown(value)}")
    return value


class _DuplicateKeyError(Exception):
    """Not a ValueError, so that the reader can tell it from bad JSON."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _DuplicateKeyError(shown(counts.most_common(1)[0][0]))
    return members
