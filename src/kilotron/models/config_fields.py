"""ConfigFields: typed access to a config.json, with errors that name the field and its value."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from kilotron.checkpoints.damage import shown
from kilotron.errors import CheckpointError

MAX_LAYERS = 100_000  # what is told of each layer takes memory, before any weight is looked for


class ConfigFields:
    """A config.json's dictionary. null counts as absent; a field without default must be there."""

    def __init__(self, values: Mapping[str, Any], source: str = "config.json") -> None:
        self.values = values
        self.source = source

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number."""
        value = self._value(name, default)
        if not _is_integer(value):
            raise self.wrong(name, "a whole number")
        if value > MAX_LAYERS and "layer" in name:
            raise self.wrong(name, f"a number up to {MAX_LAYERS}")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number above 0; for what others are computed from, so that nothing is divided by 0."""
        value = self.integer(name, default)
        if value <= 0:
            raise self.wrong(name, "a whole number above 0")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number."""
        value = self._value(name, default)
        if not _is_number(value):
            raise self.wrong(name, "a number")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        """A number, or None when absent."""
        return self.number(name) if name in self else None

    def flag(self, name: str, default: bool | None = None) -> bool:  # noqa: FBT001 - as the others
        """true or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers, empty when absent."""
        value = self.values.get(name) or []
        if not isinstance(value, list) or not all(map(_is_number, value)):
            raise self.wrong(name, "a list of numbers")
        return tuple(float(one) for one in value)

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers, or a single one; empty when absent."""
        value = self.values.get(name)
        value = [] if value is None else value if isinstance(value, list) else [value]
        if not all(map(_is_integer, value)):
            raise self.wrong(name, "a whole number or a list of them")
        return tuple(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings, empty when absent."""
        value = self.values.get(name) or []
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.wrong(name, "a list of strings")
        return tuple(value)

    def section(self, name: str) -> "ConfigFields":
        """A dictionary inside this one, empty when absent."""
        value = self.values.get(name) or {}
        if not isinstance(value, Mapping):
            raise self.wrong(name, "a dictionary")
        return ConfigFields(value, f"{self.source}: {name}")

    def wrong(self, name: str, wanted: str) -> CheckpointError:
        """The error for a field that is not as it should be."""
        return CheckpointError(f"{self.source}: {name} = {shown(self.values.get(name))}: {wanted} is needed")

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self.source} has no '{name}'")
        return value


def _is_integer(value: Any) -> TypeGuard[int]:
    """Larger ones than 64 bits hold are no sizes, and overflow in arithmetic."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_number(value: Any) -> TypeGuard[float]:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))
