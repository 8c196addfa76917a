"""What a restricted pickle may hold: plain values, tensors that still lie in their file, and inert stand-ins.

The table at the end is the allow-list: the names in a pickle that mean something here. It leads to functions of this
file only, so that nothing a pickle names is ever imported or called.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kilotron.checkpoints.mapped_file import MappedFile
from kilotron.checkpoints.safetensors_file import DTYPE_OF_TORCH_NAME, TORCH_NAME_OF_DTYPE
from kilotron.checkpoints.safetensors_header import BITS_OF_DTYPE, MAX_COUNT, MAX_DIMENSIONS

if TYPE_CHECKING:
    import torch

MAX_PATH_CHARACTERS = 4096
MAX_MEMBER_CHARACTERS = 1000
MAX_KEY_CHARACTERS = 10_000
MAX_KEY_ITEMS = 64
MAX_KEY_INTEGER = 2**32


class RefusedPickleError(Exception):
    """A pickle is damaged, or wants something that is not done here; the message goes after "found"."""


class Inert:
    """Stands for an object of a class that is not known here: its dotted name, arguments and state, all data."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: tuple[Any, ...] | None = None) -> None:
        self.name = name
        self.arguments = arguments
        self.state: Any = None

    def __repr__(self) -> str:
        return f"<inert {self.name[:100]}>"

    def field(self, name: str) -> Any:
        """A member that the pickled object had, None where it had none."""
        return self.state.get(name) if isinstance(self.state, dict) else None


class AllowedName(NamedTuple):
    """An allowed function, as it lies among the data. Not the function itself, which data could reach into."""

    module: str
    name: str


class TorchDtype(str):
    """The name of one of torch's dtypes, such as "bfloat16"."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class StorageType:
    """The class of a torch storage, which tells the dtype of its elements."""

    dtype: TorchDtype


@dataclass(frozen=True, slots=True)
class StoredStorage:
    """A torch storage: a run of elements in a file."""

    file: MappedFile
    offset: int
    num_elements: int
    dtype: TorchDtype


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that still lies in its file. `dtype` is safetensors' name, such as "BF16"; strides count elements."""

    file: MappedFile
    offset: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def path(self) -> Path:
        return self.file.file

    def view(self) -> "torch.Tensor":
        """The tensor, as a view of its file. Raises BrokenCheckpointError when the file has changed."""
        import torch

        dtype: torch.dtype = getattr(torch, TORCH_NAME_OF_DTYPE[self.dtype])
        span = num_spanned(self.shape, self.strides)
        return self.file.read(self.offset, span * dtype.itemsize, dtype).as_strided(self.shape, self.strides)


def num_spanned(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last of a strided tensor, both included."""
    return 0 if 0 in shape else 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def as_counts(value: Any) -> tuple[int, ...]:
    """A tensor's shape, offsets or strides. Raises RefusedPickleError when it is anything else."""
    is_counts = isinstance(value, tuple) and all(type(item) is int and 0 <= item < MAX_COUNT for item in value)
    if not is_counts or len(value) > MAX_DIMENSIONS:
        raise RefusedPickleError("a shape that is not a tuple of counts")
    counts: tuple[int, ...] = value
    return counts


Meaning = Callable[..., Any] | TorchDtype | StorageType
"""Of an allowed name: a function of this file that makes plain data of arguments, or a value."""


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredTensor:
    if not isinstance(storage, StoredStorage):
        raise RefusedPickleError("a tensor without a storage")
    return _tensor(storage, storage.dtype, offset, as_counts(shape), as_counts(strides))


def _rebuild_tensor_of_bytes(
    storage: Any, offset: Any, shape: Any, strides: Any, _gradient: Any, _hooks: Any, dtype: Any, *_: Any
) -> StoredTensor:
    """As torch stores dtypes that have no storage class of their own: a storage of bytes, and the dtype beside it."""
    if not isinstance(storage, StoredStorage) or not isinstance(dtype, TorchDtype) or storage.dtype != "uint8":
        raise RefusedPickleError("a tensor without a storage of bytes")
    return _tensor(storage, dtype, offset, as_counts(shape), as_counts(strides))


def _tensor(
    storage: StoredStorage, dtype: TorchDtype, offset: Any, shape: tuple[int, ...], strides: tuple[int, ...]
) -> StoredTensor:
    (start,) = as_counts((offset,))
    if len(shape) != len(strides) or prod(max(size, 1) for size in shape) >= MAX_COUNT:
        raise RefusedPickleError(f"a tensor of shape {shape} with strides {strides}")
    bits, own_bits = BITS_OF_DTYPE[DTYPE_OF_TORCH_NAME[storage.dtype]], BITS_OF_DTYPE[DTYPE_OF_TORCH_NAME[dtype]]
    num_bytes = storage.num_elements * bits // 8
    if (start + num_spanned(shape, strides)) * own_bits // 8 > num_bytes:
        raise RefusedPickleError(f"a tensor of shape {shape} in a storage of {num_bytes} bytes")
    return StoredTensor(
        storage.file, storage.offset + start * own_bits // 8, DTYPE_OF_TORCH_NAME[dtype], shape, strides
    )


def _rebuild_from_type(function: Any, _kind: Any, arguments: Any, _state: Any) -> StoredTensor:
    """A tensor with attributes of its own, which are not needed."""
    if function not in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")):
        raise RefusedPickleError("a tensor of an unknown kind")
    tensor = (_rebuild_tensor if function[1] == "_rebuild_tensor_v2" else _rebuild_parameter)(*arguments)
    if not isinstance(tensor, StoredTensor):
        raise RefusedPickleError("a tensor of an unknown kind")
    return tensor


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    if not isinstance(pairs, list | tuple):
        raise RefusedPickleError("a dict of something other than pairs")
    return {as_key(key): value for key, value in pairs}


def _default_dict(*_: Any) -> dict[Any, Any]:
    return {}


def _list(items: Any = ()) -> list[Any]:
    return list(_sequence(items))


def _set(items: Any = ()) -> set[Any]:
    return {as_key(item) for item in _sequence(items)}


def _tuple(items: Any = ()) -> tuple[Any, ...]:
    return tuple(_sequence(items))


def _sequence(items: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(items, list | tuple):
        raise RefusedPickleError("a sequence of something other than a list")
    return items


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise RefusedPickleError("bytes in an unknown encoding")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    """How protocol 2 writes bytes of length 0."""
    return b""


def _path(*parts: Any) -> str:
    if not all(isinstance(part, str) for part in parts) or sum(map(len, parts)) > MAX_PATH_CHARACTERS:
        raise RefusedPickleError("a path of something other than text")
    return "/".join(parts).replace("//", "/", 1)


def _layout(name: Any) -> str:
    if name != "torch.strided":
        raise RefusedPickleError("a tensor that is not dense")
    return "torch.strided"


def _member(owner: Any, name: Any) -> Inert:
    """How some versions of Python pickle an enum's member. Nothing is looked up."""
    if not isinstance(owner, Inert) or not isinstance(name, str):
        raise RefusedPickleError("a member of something that is not a class")
    if len(owner.name) + len(name) > MAX_MEMBER_CHARACTERS:
        raise RefusedPickleError("a member of a very long name")
    return Inert(f"{owner.name}.{name}")


def as_key(value: Any) -> Any:
    """A value as a key or member of a set: what is hashed in a moment, and to a hash that nobody can choose. Else any
    number of keys could share one. Raises RefusedPickleError for anything else.
    """
    for item in value if isinstance(value, tuple) and len(value) <= MAX_KEY_ITEMS else (value,):
        if not (item is None or isinstance(item, str | int | bytes | Inert | StorageType)):
            raise RefusedPickleError(f"a {type(item).__name__} as a key")
        if isinstance(item, str | bytes) and len(item) > MAX_KEY_CHARACTERS:
            raise RefusedPickleError(f"a key of {len(item)} characters")
        if isinstance(item, int) and abs(item) > MAX_KEY_INTEGER:
            raise RefusedPickleError(f"a key above {MAX_KEY_INTEGER}")
    return value


_STORAGE_CLASSES = {
    "BoolStorage": "bool", "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16",
    "IntStorage": "int32", "LongStorage": "int64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32", "DoubleStorage": "float64", "ComplexFloatStorage": "complex64",
    "UntypedStorage": "uint8",
}  # fmt: skip
_PATH_CLASSES = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path")

_TORCH_NAMES: dict[tuple[str, str], Meaning] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_of_bytes,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch", "Size"): _tuple,
    ("torch.serialization", "_get_layout"): _layout,
    ("torch.storage", "UntypedStorage"): StorageType(TorchDtype("uint8")),
    **{("torch", name): TorchDtype(name) for name in DTYPE_OF_TORCH_NAME},
    **{("torch", name): StorageType(TorchDtype(dtype)) for name, dtype in _STORAGE_CLASSES.items()},
}
_BUILTIN_NAMES: dict[str, Meaning] = {
    "dict": _dict, "list": _list, "set": _set, "frozenset": _set, "tuple": _tuple, "getattr": _member,
    "bytes": _empty_bytes,
}  # fmt: skip

ALLOWED: Mapping[tuple[str, str], Meaning] = {
    **_TORCH_NAMES,
    **{(module, name): meaning for module in ("builtins", "__builtin__") for name, meaning in _BUILTIN_NAMES.items()},
    **{(module, name): _path for module in ("pathlib", "pathlib._local") for name in _PATH_CLASSES},
    ("collections", "OrderedDict"): _dict,
    ("collections", "defaultdict"): _default_dict,
    ("_codecs", "encode"): _encode,
}
"""By module and name, both exact. Any other name becomes an `Inert`."""
