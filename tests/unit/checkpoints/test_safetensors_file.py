"""Tests of SafetensorsFile: the memory of tensors that nobody holds any more."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kilotron.checkpoints.safetensors_file import SafetensorsFile
from kilotron.checkpoints.safetensors_header import read_safetensors_header

NUM_BYTES = 8 << 20
# The pages at both ends, and what the system maps around a touch.
SLACK_BYTES = 4 << 20


@pytest.fixture
def file(tmp_path: Path) -> SafetensorsFile:
    path = tmp_path / "model.safetensors"
    save_file({name: torch.full((NUM_BYTES // 4,), value) for name, value in (("a", 1.0), ("b", 2.0))}, path)
    return SafetensorsFile(read_safetensors_header(path))


def resident_bytes(file: SafetensorsFile) -> int:
    """Of the file's map, by what the system says of this process."""
    lines = iter(Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.endswith(str(file.header.file)):
            return next(1024 * int(each.split()[1]) for each in lines if each.startswith("Rss:"))
    return 0


def test_a_tensor_that_is_held_no_more_gives_its_memory_back(file: SafetensorsFile) -> None:
    first, second = file.read("a"), file.read("b")
    assert first.sum() + second.sum() == 3 * NUM_BYTES // 4
    assert resident_bytes(file) >= 2 * NUM_BYTES

    del first
    assert resident_bytes(file) <= NUM_BYTES + SLACK_BYTES
    del second
    assert resident_bytes(file) <= SLACK_BYTES


def test_a_part_of_a_tensor_holds_all_of_it(file: SafetensorsFile) -> None:
    part = file.read("a")[5:7]
    part.fill_(3.0)
    file.read("b").sum()

    assert part.tolist() == [3.0, 3.0]


def test_what_was_written_stays_while_any_read_of_the_tensor_is_held(file: SafetensorsFile) -> None:
    first, second = file.read("a"), file.read("a")
    first.zero_()
    del first

    assert second.sum() == 0


def test_tensors_that_are_held_can_give_their_memory_back_and_read_the_same(file: SafetensorsFile) -> None:
    tensor = file.read("b")
    total = tensor.sum()

    file.drop_pages()

    assert resident_bytes(file) <= SLACK_BYTES
    assert tensor.sum() == total


def test_a_tensor_may_outlive_its_file(file: SafetensorsFile) -> None:
    tensor = file.read("a")
    file.close()

    assert tensor.sum() == NUM_BYTES // 4
    del tensor
    file.drop_pages()
