"""Reads pickles without unpickling them: a small machine for pickle's opcodes that imports and calls nothing.

Every name in a pickle is looked up in the allow-list of `inert_values.py`; one that is not there becomes an inert
stand-in, and calling such a thing makes another one. So no pickle, whatever it holds, can run code. Python's own
`pickle` is not used: it also allocates what a damaged file asks for.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kilotron.checkpoints.damage import broken, shown
from kilotron.checkpoints.inert_values import (
    ALLOWED,
    AllowedName,
    Inert,
    RefusedPickleError,
    StorageType,
    StoredStorage,
    TorchDtype,
    as_key,
)
from kilotron.errors import BrokenCheckpointError

MAX_PICKLE_BYTES = 512_000_000
MAX_STEPS = 30_000_000  # opcodes, and items copied; half a minute, and 2 GB at worst
MAX_NAME_CHARACTERS = 500
MAX_INTEGER_BYTES = 1024

FindStorage = Callable[[StorageType, str, int], StoredStorage]


def read_pickle(data: bytes, *, file: Path, find_storage: FindStorage | None = None) -> Any:
    """The value that a pickle holds: plain values, `Inert`, and `StoredTensor` where `find_storage` is given.

    `find_storage(type, key, num_elements)` gives the storage that the pickle names by its key. `file` is for messages.

    Raises:
        BrokenCheckpointError: it is truncated, damaged, too large, or not a pickle that torch writes.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise broken(file, expected=f"a pickle of at most {MAX_PICKLE_BYTES} bytes", found=f"{len(data)} bytes")
    machine = _Machine(data, find_storage)
    try:
        return machine.run()
    except BrokenCheckpointError:
        raise
    except RefusedPickleError as error:
        found = str(error)
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, MemoryError, struct.error) as error:
        found = f"an error ({type(error).__name__}: {shown(str(error))})"
    raise broken(file, expected="a pickle of plain values", found=f"{found} at byte {machine.position} of it")


class _Machine:
    """The stack, the memo, and one method for each group of opcodes. Nothing here recurses."""

    def __init__(self, data: bytes, find_storage: FindStorage | None) -> None:
        self.data = data
        self.position = 0
        self.stack: list[Any] = []
        self.outer_stacks: list[list[Any]] = []
        """The stacks below each mark."""
        self.memo: dict[int, Any] = {}
        self.num_steps = 0
        self._find_storage = find_storage

    def run(self) -> Any:
        data, num_bytes = self.data, len(self.data)
        while self.position < num_bytes:
            opcode = data[self.position]
            self.position += 1
            self.spend(1)
            if opcode == STOP:
                return self.stack.pop()
            action = ACTIONS.get(opcode)
            if action is None:
                raise RefusedPickleError(f"opcode {bytes([opcode])!r}, which torch does not write")
            action(self)
        raise RefusedPickleError("its end")

    def take(self, count: int) -> bytes:
        start, end = self.position, self.position + count
        if count < 0 or end > len(self.data):
            raise RefusedPickleError(f"{count} more bytes announced than it has")
        self.position = end
        return self.data[start:end]

    def take_byte(self) -> int:
        value = self.data[self.position]
        self.position += 1
        return value

    def take_number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def spend(self, num_items: int) -> None:
        """Counts opcodes, and what they copy, so that few opcodes cannot make much."""
        self.num_steps += num_items
        if self.num_steps > MAX_STEPS:
            raise RefusedPickleError(f"more than {MAX_STEPS} steps")

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.outer_stacks.pop()
        return items

    def drop_mark(self) -> None:
        self.pop_mark()

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def skip(self, count: int) -> None:
        self.take(count)

    def mark(self) -> None:
        self.outer_stacks.append(self.stack)
        self.stack = []

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def integer(self, width: int) -> None:
        num_bytes = self.take_number(width)
        if num_bytes > MAX_INTEGER_BYTES:
            raise RefusedPickleError(f"an integer of {num_bytes} bytes")
        self.push(int.from_bytes(self.take(num_bytes), "little", signed=True))

    def text(self, width: int) -> None:
        self.push(self.take(self.take_number(width)).decode("utf-8", "surrogatepass"))

    def old_text(self, width: int) -> None:
        """A string of Python 2."""
        self.push(self.take(self.take_number(width)).decode("latin1"))

    def take_tuple(self, count: int) -> None:
        if count > len(self.stack):
            raise RefusedPickleError("too few values")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.push(items)

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise RefusedPickleError(f"items for a {type(target).__name__}")

    def add(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, set):
            raise RefusedPickleError(f"members for a {type(target).__name__}")
        target.update(as_key(item) for item in items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        pairs = zip(items[::2], items[1::2], strict=True)
        if isinstance(target, dict):
            target.update((as_key(key), value) for key, value in pairs)
        elif not isinstance(target, Inert):
            raise RefusedPickleError(f"entries for a {type(target).__name__}")

    def global_lines(self) -> None:
        end_of_module = self.data.index(b"\n", self.position, self.position + MAX_NAME_CHARACTERS)
        end = self.data.index(b"\n", end_of_module + 1, end_of_module + MAX_NAME_CHARACTERS)
        module, name = self.data[self.position : end].decode().split("\n")
        self.position = end + 1
        self.push_name(module, name)

    def global_from_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push_name(module, name)

    def push_name(self, module: Any, name: Any) -> None:
        for part in (module, name):
            if type(part) is not str or not 0 < len(part) <= MAX_NAME_CHARACTERS:
                raise RefusedPickleError("a class without a name")
            self.spend(len(part))
        meaning = ALLOWED.get((module, name))
        if isinstance(meaning, TorchDtype | StorageType):
            self.push(meaning)
        else:
            self.push(Inert(f"{module}.{name}") if meaning is None else AllowedName(module, name))

    def call(self) -> None:
        arguments, target = self.stack.pop(), self.stack.pop()
        if not isinstance(arguments, tuple):
            raise RefusedPickleError("a call without arguments")
        if isinstance(target, Inert):
            self.push(Inert(target.name, arguments))
            return
        constructor = ALLOWED[target] if isinstance(target, AllowedName) else None
        if constructor is None or isinstance(constructor, TorchDtype | StorageType):
            raise RefusedPickleError(f"a call of a {type(target).__name__}")
        self.spend(sum(map(_size, arguments)))
        self.push(constructor(*arguments))

    def call_with_keywords(self) -> None:
        keywords = self.stack.pop()
        if keywords:
            self.spend(len(self.stack[-1]))
            self.stack[-1] = (*self.stack[-1], keywords)
        self.call()

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, dict):  # attributes of an OrderedDict are not needed
            raise RefusedPickleError(f"a state for a {type(target).__name__}")

    def storage(self) -> None:
        match self.stack.pop():
            case ("storage", StorageType() as kind, str() as key, _, int() as num_elements) if (
                self._find_storage is not None and num_elements >= 0 and len(key) <= MAX_NAME_CHARACTERS
            ):
                self.push(self._find_storage(kind, key, num_elements))
            case _:
                raise RefusedPickleError("a reference to something outside that is not a torch storage")

    def empty_set(self) -> None:
        self.spend(3)  # it takes as much memory as four other things
        self.push(set())

    def remember(self, key: int) -> None:
        self.spend(1)
        self.memo[key] = self.stack[-1]

    def set_top(self, make: Callable[[list[Any]], Any]) -> None:
        items = self.pop_mark()
        self.push(make(items))


def _size(value: Any) -> int:
    """What a function may copy of it."""
    if isinstance(value, Inert):
        return len(value.name)
    return len(value) if isinstance(value, str | bytes | list | tuple | dict | set | frozenset) else 1


def _as_dict(items: list[Any]) -> dict[Any, Any]:
    return {as_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _as_set(items: list[Any]) -> frozenset[Any]:
    return frozenset(as_key(item) for item in items)


STOP = ord(".")
ACTIONS: dict[int, Callable[[_Machine], None]] = {
    0x80: lambda machine: machine.skip(1),  # protocol
    0x95: lambda machine: machine.skip(8),  # frame
    ord("("): _Machine.mark,
    ord("0"): _Machine.pop,
    ord("1"): _Machine.drop_mark,
    ord("2"): lambda machine: machine.push(machine.stack[-1]),
    ord("N"): lambda machine: machine.push(None),
    0x88: lambda machine: machine.push(True),
    0x89: lambda machine: machine.push(False),
    ord("J"): lambda machine: machine.push(int.from_bytes(machine.take(4), "little", signed=True)),
    ord("K"): lambda machine: machine.push(machine.take_byte()),
    ord("M"): lambda machine: machine.push(machine.take_number(2)),
    0x8A: lambda machine: machine.integer(1),
    0x8B: lambda machine: machine.integer(4),
    ord("G"): lambda machine: machine.push(struct.unpack(">d", machine.take(8))[0]),
    0x8C: lambda machine: machine.text(1),
    ord("X"): lambda machine: machine.text(4),
    0x8D: lambda machine: machine.text(8),
    ord("U"): lambda machine: machine.old_text(1),
    ord("T"): lambda machine: machine.old_text(4),
    ord("C"): lambda machine: machine.push(machine.take(machine.take_byte())),
    ord("B"): lambda machine: machine.push(machine.take(machine.take_number(4))),
    0x8E: lambda machine: machine.push(machine.take(machine.take_number(8))),
    0x96: lambda machine: machine.push(machine.take(machine.take_number(8))),  # a bytearray
    ord(")"): lambda machine: machine.push(()),
    0x85: lambda machine: machine.take_tuple(1),
    0x86: lambda machine: machine.take_tuple(2),
    0x87: lambda machine: machine.take_tuple(3),
    ord("t"): lambda machine: machine.set_top(tuple),
    ord("]"): lambda machine: machine.push([]),
    ord("l"): lambda machine: machine.set_top(list),
    ord("a"): lambda machine: machine.extend([machine.stack.pop()]),
    ord("e"): lambda machine: machine.extend(machine.pop_mark()),
    ord("}"): lambda machine: machine.push({}),
    ord("d"): lambda machine: machine.set_top(_as_dict),
    ord("s"): lambda machine: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    ord("u"): lambda machine: machine.set_items(machine.pop_mark()),
    0x8F: _Machine.empty_set,
    0x90: lambda machine: machine.add(machine.pop_mark()),
    0x91: lambda machine: machine.set_top(_as_set),
    ord("c"): _Machine.global_lines,
    0x93: _Machine.global_from_stack,
    ord("R"): _Machine.call,
    0x81: _Machine.call,  # a new object
    0x92: _Machine.call_with_keywords,
    ord("b"): _Machine.build,
    ord("Q"): _Machine.storage,
    ord("q"): lambda machine: machine.remember(machine.take_byte()),
    ord("r"): lambda machine: machine.remember(machine.take_number(4)),
    0x94: lambda machine: machine.remember(len(machine.memo)),
    ord("h"): lambda machine: machine.push(machine.memo[machine.take_byte()]),
    ord("j"): lambda machine: machine.push(machine.memo[machine.take_number(4)]),
}
"""What each opcode does. Of the textual ones of protocol 0 none is here, nor are extensions and buffers outside."""
