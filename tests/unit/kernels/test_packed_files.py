"""Packed weights in files: the bits of those in memory, and nothing but a clear error from what is no such file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kilotron.errors import KernelError
from kilotron.kernels.interface import Activation, ExpertWeights, Weight
from kilotron.models.quantization.rounding import Rounding
from unit.kernels.cpu_backends import draw, has_same_bits, make_cpu, needs_native

pytestmark = needs_native

KINDS = ["float32", "bfloat16", "float16", "int8", "int4"]
PREFIX = 16  # magic and length of the header


def make_weight(kind: str, outputs: int, inputs: int, seed: int = 0) -> Weight:
    weight = draw(outputs, inputs, seed=seed)
    if kind.startswith("int"):
        bits = int(kind[3:])
        rounding = Rounding(bits=bits, group_size=32 if bits == 4 else None)
        return rounding.quantize(weight, torch.bfloat16, torch.device("cpu"))
    return weight.to(getattr(torch, kind))


def activations(weight: Weight, rows: int) -> Tensor:
    return draw(rows, weight.shape[1], seed=7).to(weight.dtype)


@pytest.mark.parametrize(
    "activation",
    [None, Activation("silu", is_gated=True), Activation("quick_gelu", is_gated=True, clamp=7.1, linear_offset=1.0)],
    ids=["plain", "gated", "clamped"],
)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mapped_matrix_gives_the_bits_of_the_packed_one(
    kind: str, has_bias: bool, activation: Activation | None, tmp_path: Path
) -> None:
    cpu = make_cpu()
    weights = {f"layers.{n}": make_weight(kind, outputs, 96, seed=n) for n, outputs in enumerate((2, 34, 130))}
    packed = {
        name: cpu.pack_linear(weight, draw(weight.shape[0], seed=3) if has_bias else None, activation)
        for name, weight in weights.items()
    }
    size = cpu.packed_files.write(tmp_path / "packed", packed)
    assert size == (tmp_path / "packed").stat().st_size
    mapped = cpu.packed_files.open(tmp_path / "packed")
    assert list(mapped) == list(packed)
    for name, weight in weights.items():
        assert mapped[name].describe() == packed[name].describe()
        for rows in (1, 5, 40):
            x = activations(weight, rows)
            assert has_same_bits(cpu.linear(x, mapped[name]), cpu.linear(x, packed[name]))


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_mapped_experts_give_the_bits_of_the_packed_ones(kind: str, tmp_path: Path) -> None:
    cpu = make_cpu()
    gate_up = [make_weight(kind, 64, 96, seed=n) for n in range(3)]
    down = [make_weight(kind, 96, 32, seed=n + 3) for n in range(3)]
    packed = cpu.pack_experts(ExpertWeights(gate_up, down), Activation("silu", is_gated=True))
    cpu.packed_files.write(tmp_path / "packed", {"experts": packed})
    mapped = cpu.packed_files.open(tmp_path / "packed")["experts"]
    x, ids = activations(gate_up[0], 4), torch.tensor([[0, 1], [2, 0], [1, 2], [2, 1]])
    chosen = torch.full((4, 2), 0.5)
    assert has_same_bits(cpu.mix_experts(x, mapped, ids, chosen), cpu.mix_experts(x, packed, ids, chosen))


def test_mapped_weights_outlive_their_file_and_its_name(tmp_path: Path) -> None:
    cpu = make_cpu()
    weight = make_weight("bfloat16", 48, 64)
    cpu.packed_files.write(tmp_path / "packed", {"w": cpu.pack_linear(weight, None)})
    (mapped,) = cpu.packed_files.open(tmp_path / "packed").values()
    (tmp_path / "packed").unlink()
    x = activations(weight, 3)
    assert has_same_bits(cpu.linear(x, mapped), cpu.linear(x, cpu.pack_linear(weight, None)))


def test_a_file_is_whole_and_private_or_absent(tmp_path: Path) -> None:
    cpu = make_cpu()
    good = cpu.pack_linear(make_weight("int8", 32, 32), None)

    class Breaking:
        stored_bytes = 64

        def describe(self) -> dict[str, Any]:
            return good.describe()

        def write_to(self, file: int) -> None:
            raise OSError(28, "No space left on device")

    cpu.packed_files.write(tmp_path / "packed", {"w": good})
    before = (tmp_path / "packed").read_bytes()
    assert (tmp_path / "packed").stat().st_mode & 0o777 == 0o600
    with pytest.raises(OSError, match="No space"):
        cpu.packed_files.write(tmp_path / "packed", {"w": good, "x": Breaking()})
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]
    assert (tmp_path / "packed").read_bytes() == before


def read_header(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    header: dict[str, Any] = json.loads(content[PREFIX : PREFIX + int.from_bytes(content[8:PREFIX], "little")])
    return header


def write_header(file: Path, header: object) -> None:
    """Puts another header, of any length, before the same weights."""
    content = file.read_bytes()
    first = -(-(PREFIX + int.from_bytes(content[8:PREFIX], "little")) // 4096) * 4096
    encoded = json.dumps(header).encode()
    start = content[:8] + len(encoded).to_bytes(8, "little") + encoded
    file.write_bytes(start.ljust(-(-len(start) // 4096) * 4096, b"\0") + content[first:])


@pytest.fixture
def written(tmp_path: Path) -> Path:
    cpu = make_cpu()
    cpu.packed_files.write(tmp_path / "packed", {"w": cpu.pack_linear(make_weight("int4", 48, 64), None)})
    return tmp_path / "packed"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("offset", 4096),
        ("offset", -4096),
        ("offset", 1 << 70),
        ("offset", 3),
        ("offset", "0"),
        ("outputs", 4900),
        ("outputs", -1),
        ("outputs", (1 << 31) - 1),
        ("outputs", 1 << 40),
        ("inputs", 0),
        ("inputs", 12800),
        ("inputs", 1.5),
        ("num_groups", 0),
        ("num_groups", 64),
        ("num_groups", 1 << 40),
        ("format", "int3"),
        ("format", None),
        ("activation", "sine"),
        ("clamp", -1.0),
        ("clamp", "seven"),
        ("linear_offset", None),
        ("has_bias", 2),
        ("has_bias", None),
        ("more", 1),
    ],
)
def test_a_header_that_does_not_fit_the_file_is_refused(written: Path, field: str, value: object) -> None:
    header = read_header(written)
    header["weights"]["w"][0][field] = value
    write_header(written, header)
    with pytest.raises(KernelError, match=r"(?s)packed is no file of packed weights: .*; delete it"):
        make_cpu().packed_files.open(written)


@pytest.mark.parametrize("header", [[], {}, {"num_bytes": 0}, {"num_bytes": None, "weights": {}}, "text"])
def test_a_header_of_another_shape_is_refused(written: Path, header: object) -> None:
    write_header(written, header)
    with pytest.raises(KernelError, match="no file of packed weights"):
        make_cpu().packed_files.open(written)


@pytest.mark.parametrize("weights", [[], 3, {"w": 3}, {"w": [3]}, {"w": {}}, {"w": [{}]}, {"w": []}])
def test_weights_of_another_shape_are_refused(written: Path, weights: object) -> None:
    write_header(written, read_header(written) | {"weights": weights})
    with pytest.raises(KernelError, match="no file of packed weights"):
        make_cpu().packed_files.open(written)


def test_what_was_cut_off_or_is_something_else_is_refused(written: Path) -> None:
    content = written.read_bytes()
    huge = content[:8] + (1 << 60).to_bytes(8, "little") + content[16:]
    for wrong in (content[:-1], content[:100], content[:10], content + b"x", b"\0" * 8192, huge, content[:16]):
        written.write_bytes(wrong)
        with pytest.raises(KernelError, match="no file of packed weights"):
            make_cpu().packed_files.open(written)


def test_a_missing_file_and_a_folder_are_errors_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        make_cpu().packed_files.open(tmp_path / "none")
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for unusable, message in (
        (tmp_path, "device|directory|Invalid"),
        (tmp_path / "empty", "Invalid"),
        (tmp_path / "link", "links"),
    ):
        with pytest.raises(OSError, match=message):
            make_cpu().packed_files.open(unusable)
