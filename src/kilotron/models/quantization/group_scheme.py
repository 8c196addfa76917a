"""Bits and groups as GPTQ and AWQ settings give them, and how a packed matrix is told from a plain one."""

from typing import NamedTuple

from kilotron.errors import CheckpointError
from kilotron.models.config_fields import ConfigFields
from kilotron.models.quantization.stored_matrix import StoredTensors


class GroupScheme(NamedTuple):
    """Bits, and input columns that share a scale; -1 is all of them."""

    bits: int
    group_size: int

    def columns_of(self, num_columns: int) -> int:
        """The group size in a matrix of so many columns."""
        return num_columns if self.group_size == -1 else self.group_size

    def groups_of(self, num_columns: int) -> int:
        """The number of groups, a last one that is not full included."""
        return -(-num_columns // self.columns_of(num_columns))

    def describe(self) -> str:
        """For people."""
        return f"{self.bits} bits " + ("per channel" if self.group_size == -1 else f"in groups of {self.group_size}")


def is_packed(module: str, suffixes: frozenset[str], stored: StoredTensors) -> bool:
    """Whether any of the packed parts of a module's weight is stored, and not the plain weight."""
    return f"{module}.weight" not in stored and any(f"{module}.{suffix}" in stored for suffix in suffixes)


def read_group_scheme(fields: ConfigFields, defaults: ConfigFields, known_bits: tuple[int, ...]) -> GroupScheme:
    """`bits` and `group_size` of a section, where it lacks them those of `defaults`."""

    def integer(*names: str) -> int:
        places = [(place, name) for place in (fields, defaults) for name in names if name in place]
        place, name = places[0] if places else (fields, names[0])
        return place.integer(name)

    scheme = GroupScheme(integer("bits", "w_bit"), integer("group_size", "q_group_size"))
    if scheme.bits not in known_bits:
        raise CheckpointError(
            f"{fields.source}: {scheme.bits} bits are not read, only {' and '.join(map(str, known_bits))}"
        )
    if scheme.group_size != -1 and scheme.group_size < 1:
        raise CheckpointError(f"{fields.source}: group_size = {scheme.group_size}: a count or -1 is needed")
    return scheme
