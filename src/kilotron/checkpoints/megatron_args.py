"""The arguments that a training saved, as plain values that JSON could hold. Does not know what they mean."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kilotron.checkpoints.damage import broken, shown
from kilotron.checkpoints.inert_values import Inert

# Where the arguments keep the text of the files that a checkpoint was converted from.
KEPT_CONFIG = "hf_config_json"
KEPT_GENERATION_CONFIG = "hf_generation_config_json"

MAX_DEPTH = 12
MAX_VALUES = 200_000
CHARACTERS_OF_A_VALUE = 100  # a longer text counts as so many values
MAX_SHOWN_ARGUMENTS = 5


def plain_args(args: Inert, *, file: Path) -> dict[str, Any]:
    """The members of a saved Namespace.

    Enums and objects of unknown classes become text: "AttnBackend(5)", "signal.SIGTERM"; dtypes their name, "bfloat16".

    Raises:
        BrokenCheckpointError: it is no Namespace, or its values are nested without end.
    """
    if not isinstance(args.state, dict):
        raise broken(file, expected="a Namespace of saved arguments", found=f"{args!r} without members")
    return plain_values(args.state, file=file)


def plain_values(values: dict[Any, Any], *, file: Path) -> dict[str, Any]:
    """The same values, as JSON could hold them. Raises as `plain_args`."""
    plain: dict[str, Any] = _PlainValues(file).convert(values, 0)
    return plain


def kept_object(args: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """What the arguments keep of a JSON file; None when they keep none."""
    text = args.get(name)
    if not isinstance(text, str):
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


class _PlainValues:
    """Converts values, and counts them: a few bytes of a pickle can spell a value of any size."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._num_values = 0

    def convert(self, value: Any, depth: int) -> Any:
        self._num_values += 1 + (len(value) // CHARACTERS_OF_A_VALUE if isinstance(value, str) else 0)
        if depth > MAX_DEPTH or self._num_values > MAX_VALUES:
            found = f"values nested deeper than {MAX_DEPTH}, or more than {MAX_VALUES} of them"
            raise broken(self._file, expected="plain saved arguments", found=found)
        if value is None or isinstance(value, bool | int | float | str):
            return str(value) if isinstance(value, str) else value
        if isinstance(value, dict):
            return {self._text(key, depth): self.convert(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.convert(item, depth + 1) for item in value]
        if isinstance(value, set | frozenset):
            return sorted((self._text(item, depth) for item in value), key=str)
        return self._text(value, depth)

    def _text(self, value: Any, depth: int) -> str:
        """As a key, or in place of a value that JSON does not have."""
        self._num_values += 1
        if isinstance(value, str):
            return str(self.convert(value, depth))
        if not isinstance(value, Inert):
            return shown(value)
        if value.arguments is None:
            return value.name
        arguments = (str(self.convert(item, depth + 1)) for item in value.arguments[:MAX_SHOWN_ARGUMENTS])
        text = f"{value.name.rpartition('.')[2]}({', '.join(arguments)})"
        self._num_values += len(text) // CHARACTERS_OF_A_VALUE
        return text
