"""`kilotron inspect`: what is in a checkpoint, as a page of plain text or as JSON."""

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from kilotron.cli.options import OUTPUT_GROUP, Model, flag, switch
from kilotron.cli.output import dim, format_bytes, format_table, print_json

if TYPE_CHECKING:
    from kilotron.apis.inspection import Inspection

_FORMATS = {
    "huggingface": "Hugging Face (safetensors)",
    "torch_dist": "Megatron torch_dist",
    "torch": "Megatron torch (one file per rank)",
    "torch_dcp": "Megatron torch_dcp",
}
_TENSOR_HEADER = ("tensor", "count", "shape", "dtype", "size")
_LEAST_NAME = 24
_MOST_VALUE = 100


def inspect(
    checkpoint: Model = None,
    /,
    *,
    tokenizer: Annotated[
        str | None, flag("Folder or file of the tokenizer; by default that beside the checkpoint.")
    ] = None,
    all: Annotated[  # noqa: A002 - the flag's name
        bool, switch("Every tensor and every saved argument on a line of its own.", group=OUTPUT_GROUP)
    ] = False,
    json: Annotated[bool, switch("One JSON object, with all tensors.", group=OUTPUT_GROUP)] = False,
) -> int:
    """What is in a checkpoint: no weight is read.

    Format, structure, tensors and sizes, of Hugging Face folders and of every
    Megatron layout that is read; and what is odd about it.

    Try:
      kilotron inspect Qwen/Qwen3-0.6B
      kilotron inspect ./megatron/iter_0001000 --json
    """
    from kilotron.apis.assembly import BUNDLED_MODEL
    from kilotron.apis.inspection import inspect_checkpoint

    source = str(BUNDLED_MODEL) if checkpoint is None else checkpoint
    found = inspect_checkpoint(source, tokenizer=tokenizer)
    if json:
        print_json(found.describe())
        return 0
    _print_page(found, is_all=all)
    return 0


def _print_page(found: "Inspection", *, is_all: bool) -> None:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(format_table(_summary(found)))
    structure = {name: value for name, value in found.structure.items() if name != "vocab_size"}
    _print_section("structure", _pairs(structure, width))
    if is_all:
        _print_section(
            "saved arguments" if found.format != "huggingface" else "config.json", _pairs(found.config, None)
        )
    rows = _tensor_rows(found, is_all=is_all)
    title = f"tensors, {len(found.tensors)} in all"
    _print_section(title, _fitted(rows, _TENSOR_HEADER, width, right=(1, 4)))
    if found.oddities:
        print(f"\n{dim('what is odd', sys.stdout)}")
        for oddity in found.oddities:
            print(f"  - {oddity}")


def _summary(found: "Inspection") -> list[tuple[str, str]]:
    iteration = "" if found.iteration is None else f", iteration {found.iteration}"
    memory = ", ".join(f"{format_bytes(size)} {name}" for name, size in found.memory_bytes.items())
    tokenizer = found.tokenizer or "none found"
    tokens = "" if found.vocab_size is None else f" ({found.vocab_size} tokens)"
    files = f"{found.num_files} file{'s' if found.num_files != 1 else ''}"
    rows = [
        ("folder", str(found.folder)),
        ("format", f"{_FORMATS[found.format]}{iteration}"),
        ("architecture", found.architecture),
        ("parameters", f"{_count(found.num_parameters)} ({found.num_parameters})"),
        ("stored", f"{format_bytes(found.num_bytes)} in {files}"),
        ("quantization", found.quantization or "none"),
        ("memory for weights", memory),
    ]
    if found.kv_bytes_per_token is not None:
        rows.append(("KV cache", f"{format_bytes(found.kv_bytes_per_token)} per token"))
    return [*rows, ("tokenizer", f"{tokenizer}{tokens}")]


def _print_section(title: str, text: str) -> None:
    if text:
        print(f"\n{dim(title, sys.stdout)}\n{text}")


def _pairs(values: Mapping[str, Any], width: int | None) -> str:
    rows = [(name, _shown(value)) for name, value in values.items()]
    most = max((len(name) for name, _ in rows), default=0)
    room = _MOST_VALUE if width is None else max(width - most - 2, _LEAST_NAME)
    return format_table((name, _cut(value, room)) for name, value in rows) if rows else ""


def _shown(value: Any) -> str:
    """A value as it fits on a line; lists that repeat one value as such."""
    if isinstance(value, list) and len(value) > 1 and all(one == value[0] for one in value):
        return f"{len(value)} x {value[0]}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items())
    return str(value).replace("\n", " ")


def _tensor_rows(found: "Inspection", *, is_all: bool) -> list[tuple[str, str, str, str, str]]:
    if is_all:
        return [(one.name, "1", _shape(one.shape), one.dtype, format_bytes(one.num_bytes)) for one in found.tensors]
    return [
        (one.name, str(one.num_tensors), _shape(one.shape), one.dtype, format_bytes(one.num_bytes))
        for one in found.groups()
    ]


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _fitted(
    rows: Sequence[tuple[str, ...]], header: tuple[str, ...], width: int | None, *, right: tuple[int, ...]
) -> str:
    """The table, with names shortened in the middle so that a line fits the terminal."""
    if not rows:
        return ""
    if width is not None:
        others = [max(len(cell) for cell in column) + 2 for column in list(zip(header, *rows, strict=True))[1:]]
        room = max(width - sum(others), _LEAST_NAME)
        rows = [(_cut_middle(row[0], room), *row[1:]) for row in rows]
    return format_table(rows, header, right=right)


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 3] + "..."


def _cut_middle(text: str, room: int) -> str:
    if len(text) <= room:
        return text
    head = (room - 3) // 3
    return f"{text[:head]}...{text[-(room - 3 - head) :]}"


def _count(number: int) -> str:
    for limit, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= limit:
            return f"{number / limit:.2f} {unit}"
    return str(number)
