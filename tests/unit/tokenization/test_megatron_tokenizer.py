"""The tokenizer of a Megatron checkpoint is looked for beside it, and never where the training machine had it."""

from pathlib import Path
from typing import Any

import pytest

from kilotron.tokenization.megatron_tokenizer import describe_megatron_tokenizer, find_megatron_tokenizer

HUGGING_FACE = {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": "/lustre/models/llama"}


@pytest.mark.parametrize(
    "place",
    [
        "save/iter_0000001/tokenizer/tokenizer.json",
        "save/tokenizer/tokenizer.json",
        "save/iter_0000001/tokenizer.model",
        "save/gpt2-merges.txt",
    ],
)
def test_it_is_found_in_the_iteration_or_beside_it(tmp_path: Path, place: str) -> None:
    file = tmp_path / place
    file.parent.mkdir(parents=True)
    file.touch()
    (tmp_path / "save/iter_0000001").mkdir(exist_ok=True)

    assert find_megatron_tokenizer(HUGGING_FACE, tmp_path / "save/iter_0000001") == str(file.parent)


def test_of_several_the_nearest_is_taken(tmp_path: Path) -> None:
    for folder in ("iter_0000001/tokenizer", "tokenizer"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "tokenizer.json").touch()

    found = find_megatron_tokenizer(HUGGING_FACE, tmp_path / "iter_0000001")
    assert found == str(tmp_path / "iter_0000001/tokenizer")


def test_nemos_lies_beside_its_weights(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "context/nemo_tokenizer").mkdir(parents=True)
    (tmp_path / "context/nemo_tokenizer/tokenizer.json").touch()

    assert find_megatron_tokenizer({}, tmp_path / "weights") == str(tmp_path / "context/nemo_tokenizer")


def test_the_path_of_the_training_machine_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/tokenizer.json").touch()
    (tmp_path / "ours/save/iter_0000001").mkdir(parents=True)
    args = {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": str(tmp_path / "theirs")}

    assert find_megatron_tokenizer(args, tmp_path / "ours/save/iter_0000001") is None


@pytest.mark.parametrize(
    ("args", "source"),
    [
        ({"vocab_size": 320}, "null:320"),
        ({"vocab_size": 320, "null_tokenizer_eod_id": None}, "null:320:319"),
        ({"vocab_size": 320, "null_tokenizer_eod_id": 7}, "null:320:7"),
        ({"vocab_size": None}, None),
    ],
)
def test_numbers_need_no_file(tmp_path: Path, args: dict[str, Any], source: str | None) -> None:
    assert find_megatron_tokenizer({"tokenizer_type": "NullTokenizer", **args}, tmp_path) == source


def test_people_are_told_what_the_checkpoint_names() -> None:
    files = {"tokenizer_type": "GPT2BPETokenizer", "vocab_file": "/a/vocab.json", "merge_file": "/a/merges.txt"}

    assert describe_megatron_tokenizer(files) == "GPT2BPETokenizer of /a/vocab.json, /a/merges.txt"
    assert describe_megatron_tokenizer({}) == "no tokenizer"
