"""Every kind of damage to a safetensors file is found from its header and size alone, and named."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from kilotron.checkpoints.safetensors_header import TensorInfo, read_safetensors_header
from kilotron.errors import BrokenCheckpointError
from unit.checkpoints.written_files import BIAS, WEIGHT, safetensors_bytes, two_tensors


def header_of(folder: Path, content: bytes) -> dict[str, TensorInfo]:
    file = folder / "model.safetensors"
    file.write_bytes(content)
    return read_safetensors_header(file).tensors


def complaint_about(folder: Path, content: bytes) -> str:
    with pytest.raises(BrokenCheckpointError) as caught:
        header_of(folder, content)
    message = str(caught.value)
    assert str(folder / "model.safetensors") in message
    return message


def test_header_gives_dtype_shape_and_size_of_every_tensor(tmp_path: Path) -> None:
    tensors = header_of(tmp_path, two_tensors())
    file = tmp_path / "model.safetensors"
    assert tensors == {"weight": TensorInfo(file, "F32", (2, 3), 24), "bias": TensorInfo(file, "BF16", (4,), 8)}


def test_scalars_empty_tensors_and_metadata_are_in_order(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "empty": {"dtype": "F32", "shape": [0, 5], "data_offsets": [0, 0]},
        "scalar": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]},
    }
    tensors = header_of(tmp_path, safetensors_bytes(header, bytes(8)))
    assert tensors["scalar"].shape == ()
    assert tensors["empty"].num_bytes == 0
    assert len(tensors) == 2


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BrokenCheckpointError, match=r"gone\.safetensors: expected a readable file, found no such file"):
        read_safetensors_header(tmp_path / "gone.safetensors")


def test_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BrokenCheckpointError, match="expected a file, found a folder"):
        read_safetensors_header(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_named(tmp_path: Path) -> None:
    header_of(tmp_path, two_tensors())
    (tmp_path / "model.safetensors").chmod(0)
    with pytest.raises(BrokenCheckpointError, match="Permission denied"):
        read_safetensors_header(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("content", "expected", "found"),
    [
        (b"", "expected at least 8 bytes", "found 0 bytes"),
        (b"abc", "expected at least 8 bytes", "found 3 bytes"),
        (b"\xff" * 64, "expected a header of at most 100000000 bytes", "18446744073709551615"),
        (two_tensors()[:50], "expected at least 152 bytes", "found 50 bytes; the file is truncated"),
        (two_tensors() + b"xyz", "expected 184 bytes", "found 187 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "expected tensors", "run `git lfs pull`"),
        (safetensors_bytes("{]", b""), "expected valid JSON", "found an error"),
        (safetensors_bytes("[1]", b""), "expected a JSON object", "found list [1]"),
        (safetensors_bytes("[" * 200_000, b""), "expected valid JSON", "recursion"),
        (safetensors_bytes('{"__metadata__": {"a": 1}}', b""), "expected __metadata__ to map text", "{'a': 1}"),
        (safetensors_bytes({"a": WEIGHT}, bytes(24)).replace(b'"a"', b'"\xff'), "expected valid JSON", "can't decode"),
    ],
    ids=[
        "empty",
        "shorter than its length",
        "no such format",
        "cut in the header",
        "trailing bytes",
        "Git LFS pointer",
        "no JSON",
        "no object",
        "too deep",
        "bad metadata",
        "bad UTF-8",
    ],
)
def test_damaged_file_is_named_with_expected_and_found(
    tmp_path: Path, content: bytes, expected: str, found: str
) -> None:
    message = complaint_about(tmp_path, content)
    assert expected in message
    assert found in message


def test_truncation_names_the_first_tensor_that_is_cut(tmp_path: Path) -> None:
    message = complaint_about(tmp_path, two_tensors()[:-3])
    assert "tensor 'bias': expected data up to byte 184 (file of 184 bytes), found a file of 181 bytes" in message
    assert "tensor 'weight'" in complaint_about(tmp_path, two_tensors()[:-20])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"dtype": "F33"}, "expected a dtype of BOOL, "),
        ({"dtype": None}, "found None"),
        ({"dtype": ["F32"]}, "found ['F32']"),
        ({"dtype": "F32"}, "expected 16 bytes for F32 (4,), found 8 bytes (data_offsets [24, 32])"),
        ({"shape": [5]}, "expected 10 bytes for BF16 (5,), found 8 bytes"),
        ({"shape": [3], "dtype": "F4"}, "expected 12 bits for F4 (3,), found 8 bytes"),
        ({"shape": [-4]}, "expected a shape of up to 64 counts, found [-4]"),
        ({"shape": [True, 4]}, "found [True, 4]"),
        ({"shape": [4.0]}, "found [4.0]"),
        ({"shape": "4"}, "found '4'"),
        ({"shape": [1] * 65}, "expected a shape of up to 64 counts"),
        ({"shape": [0, 2**62, 2**62], "data_offsets": [24, 24]}, "expected a shape of up to 64 counts"),
        ({"data_offsets": [32, 24]}, "expected data_offsets [begin, end], found [32, 24]"),
        ({"data_offsets": [24]}, "found [24]"),
        ({"data_offsets": [24, 32, 40]}, "found [24, 32, 40]"),
        ({"data_offsets": [24.0, 32.0]}, "found [24.0, 32.0]"),
        ({"data_offsets": [20, 28]}, "expected data to begin at 24, found 20, which overlaps 'weight'"),
        ({"data_offsets": [26, 34]}, "expected data to begin at 24, found 26, which leaves a gap after 'weight'"),
    ],
)
def test_damaged_entry_is_named_with_tensor_expected_and_found(
    tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    message = complaint_about(tmp_path, two_tensors(bias=change))
    assert "tensor 'bias'" in message
    assert complaint in message


def test_entry_that_is_no_object_is_named(tmp_path: Path) -> None:
    message = complaint_about(tmp_path, safetensors_bytes({"weight": WEIGHT, "bias": 7}, bytes(24)))
    assert "tensor 'bias': expected an object with dtype, shape and data_offsets, found 7" in message


def test_tensor_named_twice_is_found(tmp_path: Path) -> None:
    twice = f'{{"weight": {json.dumps(WEIGHT)}, "weight": {json.dumps(WEIGHT)}}}'
    assert "expected every JSON key once, found 'weight' twice" in complaint_about(
        tmp_path, safetensors_bytes(twice, bytes(24))
    )


def test_message_stays_short_and_printable_whatever_a_tensor_is_called(tmp_path: Path) -> None:
    name = "\x1b[31m" + "a" * 100_000
    message = complaint_about(tmp_path, safetensors_bytes({name: {**BIAS, "dtype": "?"}}, b""))
    assert message.isprintable()
    assert len(message) < 1000


@settings(max_examples=300, deadline=None)
@given(
    flips=st.lists(
        st.tuples(st.integers(0, 183), st.sampled_from(b'0123456789BF[]{},:" ') | st.integers(0, 255)), max_size=4
    ),
    length=st.integers(0, 184) | st.just(184),
)
def test_random_damage_is_refused_or_harmless(flips: list[tuple[int, int]], length: int) -> None:
    content = bytearray(two_tensors())
    for place, value in flips:
        content[place] = value
    with tempfile.TemporaryDirectory() as folder:
        try:
            tensors = header_of(Path(folder), bytes(content[:length]))
        except BrokenCheckpointError:
            return
        assert sum(info.num_bytes for info in tensors.values()) == 32
        # What passes here must pass the format's own library too, with the same shapes.
        with safe_open(Path(folder) / "model.safetensors", "pt") as library:
            shapes = {name: tuple(library.get_slice(name).get_shape()) for name in library.keys()}  # noqa: SIM118
    assert shapes == {name: info.shape for name, info in tensors.items()}
