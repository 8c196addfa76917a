"""Bare vocabularies give the ids that the projects which own their formats give, and broken ones are refused."""

import base64
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from kilotron.errors import TokenizerError
from kilotron.tokenization import FastTokenizer, load_tokenizer
from unit.tokenization.trained_tokenizers import CORPUS, TEXTS, write_folder

DATA = Path(__file__).parents[2] / "data" / "tokenizers"
EXPECTED = json.loads((DATA / "expected.json").read_text())
FILES = list(EXPECTED["ids"])


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def gpt2_files(folder: Path, names: tuple[str, str] = ("vocab.json", "merges.txt")) -> FastTokenizer:
    """Writes GPT-2's two files of a trained tokenizer, which is given back."""
    source = write_folder(folder / "source", "byte_level")
    model = json.loads((source / "tokenizer.json").read_text())["model"]
    model["vocab"]["<|endoftext|>"] = len(model["vocab"])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / names[0]).write_text(json.dumps(model["vocab"]))
    (folder / names[1]).write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return FastTokenizer.from_folder(source)


@pytest.mark.parametrize("name", FILES)
def test_a_vocabulary_gives_the_ids_of_its_own_project(name: str) -> None:
    tokenizer = load_tokenizer(DATA / name)

    ids = [tokenizer.tokenize(text, parse_special=False) for text in EXPECTED["texts"]]
    assert ids == EXPECTED["ids"][name]


@pytest.mark.parametrize("name", FILES)
def test_a_folder_with_one_vocabulary_has_its_tokenizer(tmp_path: Path, name: str) -> None:
    shutil.copy(DATA / name, tmp_path)

    assert load_tokenizer(tmp_path).tokenize("Hello world") == EXPECTED["ids"][name][0]


@pytest.mark.parametrize(
    ("name", "named"), [("bpe.model", (1, 2, None)), ("unigram.model", (1, 2, 3)), ("tiktoken.vocab.json", (1, 2, 4))]
)
def test_a_vocabulary_names_its_special_tokens(name: str, named: tuple[int | None, ...]) -> None:
    tokenizer = load_tokenizer(DATA / name)

    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == named
    assert tokenizer.tokenize("<s>")[:1] == [1]


@pytest.mark.parametrize("name", FILES)
def test_text_comes_back(name: str) -> None:
    tokenizer = load_tokenizer(DATA / name)
    text = "The scheduler decides who runs next."

    assert tokenizer.detokenize(tokenizer.tokenize(text)) == text


def test_a_blank_is_put_before_a_text_but_not_before_its_control_tokens() -> None:
    tokenizer = load_tokenizer(DATA / "bpe.model")

    assert tokenizer.tokenize("<s>Hello world") == [1, *EXPECTED["ids"]["bpe.model"][0]]


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("gpt2-vocab.json", "gpt2-merges.txt")])
def test_gpt2s_two_files_are_enough(tmp_path: Path, names: tuple[str, str]) -> None:
    original = gpt2_files(tmp_path, names)

    tokenizer = load_tokenizer(tmp_path)

    for text in [*TEXTS, *CORPUS]:
        assert tokenizer.tokenize(text, parse_special=False) == original.tokenize(text, parse_special=False)
    assert tokenizer.eos_id == tokenizer.vocab_size - 1
    assert tokenizer.tokenize("a<|endoftext|>")[-1] == tokenizer.eos_id


def test_one_of_gpt2s_files_stands_for_both(tmp_path: Path) -> None:
    original = gpt2_files(tmp_path)

    assert load_tokenizer(tmp_path / "vocab.json").tokenize("hello") == original.tokenize("hello")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 40,
        (DATA / "bpe.model").read_bytes()[:-3],
        field(1, field(1, b"\xff")),
        field(1, field(1, 7)),
        field(1, b""[:0]) + field(2, field(3, 3)),
        field(1, field(1, b"a")) + field(2, field(24, 1)),
        field(1, field(1, b"a") + field(3, b"x")),
        field(1, field(1, b"a")) + field(2, field(3, b"x")),
        field(1, field(1, b"a")) + field(3, field(3, b"x")),
    ],
    ids=[
        "empty",
        "no buffer",
        "cut short",
        "no UTF-8",
        "no text",
        "words",
        "suffix blanks",
        "kind",
        "type",
        "prefix",
    ],
)
def test_a_file_that_is_no_sentencepiece_model_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)

    with pytest.raises(TokenizerError, match=r"tokenizer\.model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[1]", "not JSON", '[{"token_bytes": "!"}]', "7"])
def test_a_file_that_is_no_tiktoken_vocabulary_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "small.vocab.json").write_text(content)

    with pytest.raises(TokenizerError, match=r"small\.vocab\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{", '{"a": "b"}'])
def test_a_broken_gpt2_vocabulary_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "vocab.json").write_text(content)
    (tmp_path / "merges.txt").write_text("a b\n")

    with pytest.raises(TokenizerError, match=r"vocab\.json"):
        load_tokenizer(tmp_path)


def test_a_numbered_vocabulary_needs_no_file() -> None:
    old, new = load_tokenizer("null:99"), load_tokenizer("null:99:98")

    assert (old.vocab_size, old.eos_id) == (100, 99)
    assert (new.vocab_size, new.eos_id) == (99, 98)
    assert new.tokenize("7 98") == [7, 98]


@pytest.mark.parametrize("source", ["null:0", "null:5:5"])
def test_an_impossible_numbered_vocabulary_is_refused(source: str) -> None:
    with pytest.raises(TokenizerError, match=source):
        load_tokenizer(source)


def nested_words(length: int) -> list[str]:
    """All parts of a text without repetition: each can be made in as many ways as it has characters, less one."""
    text = "".join(chr(0x4E00 + number) for number in range(length))
    return [text[start:stop] for start in range(length) for stop in range(start + 1, length + 1)]


def write_sentencepiece(file: Path, words: list[str]) -> None:
    file.write_bytes(b"".join(field(1, field(1, word.encode())) for word in words) + field(2, field(3, 2)))


def write_tiktoken(file: Path, words: list[str]) -> None:
    file.write_text(json.dumps([{"token_bytes": base64.b64encode(word.encode()).decode()} for word in words]))


@pytest.mark.parametrize("words", [["a" * 1_000_000], pytest.param(nested_words(240), marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "write"), [("a.model", write_sentencepiece), ("a.json", write_tiktoken)])
def test_words_that_ask_for_endless_merges_are_refused(
    tmp_path: Path, name: str, write: Callable[[Path, list[str]], None], words: list[str]
) -> None:
    write(tmp_path / name, words)
    with pytest.raises(TokenizerError, match=f"{name} has tokens above length 1000, or more than"):
        load_tokenizer(tmp_path / name)


@pytest.mark.parametrize("name", ["a.model", "vocab.json"])
def test_a_pipe_is_no_vocabulary(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(TokenizerError, match=f"{name} is no file of at most"):
        load_tokenizer(tmp_path)


def character_map(unit: int = 0x63 << 10 | 1 << 8 | ord("b"), leaf: int = 1 << 31, texts: bytes = b"a\0") -> bytes:
    """That of SentencePiece which makes b an a: place b of the trie leads to the leaf in place 1, that to the text."""
    units = [0] * 256
    units[ord("b")], units[1] = unit, leaf
    return struct.pack("<257I", 1024, *units) + texts


def write_with_map(file: Path, content: bytes) -> None:
    pieces = [field(1, field(1, b"<unk>") + field(3, 2)), field(1, field(1, b"a")), field(1, field(1, b"b"))]
    file.write_bytes(b"".join(pieces) + field(3, field(2, content) + field(3, 0)))


def test_a_map_of_characters_is_followed(tmp_path: Path) -> None:
    write_with_map(tmp_path / "a.model", character_map())
    assert load_tokenizer(tmp_path / "a.model").tokenize("ab") == [1, 1]


@pytest.mark.parametrize(
    "content",
    [
        character_map()[:3],
        character_map()[:500],
        character_map(unit=0x163 << 10 | 1 << 8 | ord("b")),  # the next place is outside
        character_map(leaf=1 << 31 | 3),  # the text is outside
        character_map(leaf=1 << 31 | 1, texts="é\0".encode()),  # within a character
        character_map(texts=b"\xff\0"),
    ],
)
def test_a_map_of_characters_that_leads_outside_is_refused(tmp_path: Path, content: bytes) -> None:
    write_with_map(tmp_path / "a.model", content)
    with pytest.raises(TokenizerError, match=r"a\.model cannot be read as a model of SentencePiece"):
        load_tokenizer(tmp_path / "a.model")
