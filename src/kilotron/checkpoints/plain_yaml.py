"""Reads YAML of files that nobody vouches for: what a few bytes could make large is refused."""

from typing import Any

import yaml

MAX_DEPTH = 20
MAX_NUMBER_CHARACTERS = 100


class PlainLoader(yaml.SafeLoader):  # type: ignore[misc]  # the library has no types
    """Reads what YAML writers write: plain values, and aliases, which share what they name."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """As in the library, which has no limit."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.YAMLError(f"values nested deeper than {MAX_DEPTH}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def flatten_mapping(self, node: Any) -> None:
        """Refuses keys `<<`, each of which copies other mappings."""
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError("a key <<")

    def construct_yaml_int(self, node: Any) -> int:
        """Refuses numbers that are long; they may be written to base 60, and take the square of their length."""
        self._check_number(node)
        number: int = super().construct_yaml_int(node)
        return number

    def construct_yaml_float(self, node: Any) -> float:
        """As whole numbers."""
        self._check_number(node)
        number: float = super().construct_yaml_float(node)
        return number

    def _check_number(self, node: Any) -> None:
        if len(node.value) > MAX_NUMBER_CHARACTERS:
            raise yaml.YAMLError(f"a number of {len(node.value)} characters")


def load_plain_yaml(text: bytes) -> Any:
    """What the one document in `text` holds. Raises yaml.YAMLError, and what values of YAML may make Python raise."""
    loader = PlainLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


PlainLoader.add_constructor("tag:yaml.org,2002:int", PlainLoader.construct_yaml_int)
PlainLoader.add_constructor("tag:yaml.org,2002:float", PlainLoader.construct_yaml_float)
