from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilotron.tokenization import ByteTokenizer, FastTokenizer, NullTokenizer, Tokenizer
from kilotron.tokenization.incremental_detokenizer import WindowDetokenizer

IDS = st.lists(st.integers(min_value=0, max_value=450), max_size=30)  # beyond some vocabularies, mostly invalid UTF-8
EXACT_KINDS = ["byte_level", "byte_level_with_template", "unigram", "llama", "mistral"]


def stream(tokenizer: Tokenizer, prompt: Sequence[int], generated: Sequence[int], *, skip: bool) -> tuple[str, str]:
    detokenizer = tokenizer.create_detokenizer(prompt, skip_special_tokens=skip)
    return "".join([detokenizer.put(token_id) for token_id in generated]), detokenizer.flush()


def complete_text(tokenizer: Tokenizer, ids: Sequence[int], *, skip: bool) -> str:
    """The text of these ids without a character that is not complete at the end."""
    return tokenizer.create_detokenizer((), skip_special_tokens=skip).put_many(ids)


@pytest.mark.parametrize("kind", EXACT_KINDS)
@given(prompt=IDS, generated=IDS, skip=st.booleans())
def test_streamed_text_is_what_a_full_decode_adds_to_the_prompt(
    tokenizers: dict[str, FastTokenizer], kind: str, prompt: list[int], generated: list[int], skip: bool
) -> None:
    tokenizer = tokenizers[kind]
    text, rest = stream(tokenizer, prompt, generated, skip=skip)

    full = tokenizer.detokenize(prompt + generated, skip_special_tokens=skip)
    assert complete_text(tokenizer, prompt, skip=skip) + text + rest == full


@given(ids=IDS, skip=st.booleans())
def test_byte_level_text_is_the_librarys_for_any_ids(
    tokenizers: dict[str, FastTokenizer], ids: list[int], skip: bool
) -> None:
    tokenizer = tokenizers["byte_level"]

    expected = tokenizer._backend.decode(ids, skip_special_tokens=skip)
    assert tokenizer.detokenize(ids, skip_special_tokens=skip) == expected


@pytest.mark.parametrize("kind", ["unigram", "llama", "mistral"])
@given(ids=IDS, skip=st.booleans())
def test_sentencepiece_text_is_the_librarys_where_that_is_valid(
    tokenizers: dict[str, FastTokenizer], kind: str, ids: list[int], skip: bool
) -> None:
    tokenizer = tokenizers[kind]
    expected = tokenizer._backend.decode(ids, skip_special_tokens=skip)

    if "\N{REPLACEMENT CHARACTER}" not in expected:
        assert tokenizer.detokenize(ids, skip_special_tokens=skip) == expected


@pytest.mark.parametrize("kind", ["byte_level", "llama", "mistral"])
@given(text=st.text(), more=st.text())
def test_no_half_character_is_ever_given_out(
    tokenizers: dict[str, FastTokenizer], kind: str, text: str, more: str
) -> None:
    tokenizer = tokenizers[kind]
    ids = tokenizer.tokenize(text + more, add_special_tokens=False)
    split = len(tokenizer.tokenize(text, add_special_tokens=False))
    streamed, rest = stream(tokenizer, ids[:split], ids[split:], skip=False)

    assert rest == ""
    assert ("\N{REPLACEMENT CHARACTER}" in streamed) <= ("\N{REPLACEMENT CHARACTER}" in text + more)


@pytest.mark.parametrize("kind", EXACT_KINDS)
@given(ids=IDS, cuts=st.lists(st.integers(0, 30), max_size=4), skip=st.booleans())
def test_put_many_equals_put(
    tokenizers: dict[str, FastTokenizer], kind: str, ids: list[int], cuts: list[int], skip: bool
) -> None:
    detokenizer = tokenizers[kind].create_detokenizer((), skip_special_tokens=skip)
    bounds = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    text = "".join(detokenizer.put_many(ids[a:b]) for a, b in pairwise(bounds))

    assert (text, detokenizer.flush()) == stream(tokenizers[kind], (), ids, skip=skip)


@given(prompt=st.text(), generated=st.text(), skip=st.booleans())
def test_word_piece_streams_what_a_full_decode_adds(
    tokenizers: dict[str, FastTokenizer], prompt: str, generated: str, skip: bool
) -> None:
    tokenizer = tokenizers["word_piece"]
    before, after = tokenizer.tokenize(prompt), tokenizer.tokenize(generated)
    text, rest = stream(tokenizer, before, after, skip=skip)

    full = tokenizer.detokenize(before + after, skip_special_tokens=skip)
    assert tokenizer.detokenize(before, skip_special_tokens=skip) + text + rest == full


@given(ids=st.lists(st.integers(0, 260), max_size=40), prompt=st.lists(st.integers(0, 260), max_size=6))
def test_byte_tokenizer_streams_any_bytes(ids: list[int], prompt: list[int]) -> None:
    text, rest = stream(ByteTokenizer(), prompt, ids, skip=True)

    expected = bytes(token_id for token_id in prompt + ids if token_id < 256).decode("utf-8", "replace")
    assert complete_text(ByteTokenizer(), prompt, skip=True) + text + rest == expected


def test_a_character_begun_in_the_prompt_comes_out_whole() -> None:
    party = list("🎉".encode())

    assert stream(ByteTokenizer(), [104, *party[:3]], [party[3], 33], skip=True) == ("🎉!", "")


def test_an_unfinished_character_becomes_a_replacement_character_at_the_end() -> None:
    assert stream(ByteTokenizer(), [], [104, 0xF0, 0x9F], skip=True) == ("h", "\N{REPLACEMENT CHARACTER}")


def test_the_first_blank_is_kept_after_a_prompt_and_stripped_without(tokenizers: dict[str, FastTokenizer]) -> None:
    llama = tokenizers["llama"]
    ids = llama.tokenize("Hello", add_special_tokens=False)

    assert stream(llama, [1], ids, skip=True) == ("Hello", "")
    assert stream(llama, ids, ids, skip=True) == (" Hello", "")


def test_null_tokenizer_separates_numbers() -> None:
    assert stream(NullTokenizer(100), [], [7, 42], skip=True) == ("7 42", "")
    assert stream(NullTokenizer(100), [1], [7, 42, 100], skip=True) == (" 7 42", "")


@pytest.mark.parametrize("token_id", [-1, 10**6, 2**40])
@pytest.mark.parametrize("kind", ["byte_level", "word_piece"])
def test_an_unknown_id_has_no_text(tokenizers: dict[str, FastTokenizer], kind: str, token_id: int) -> None:
    ids = tokenizers[kind].tokenize("hello world", add_special_tokens=False)

    assert "".join(stream(tokenizers[kind], ids, [token_id], skip=False)) == ""
    assert tokenizers[kind].detokenize([token_id]) == ""


class ForgetfulBytes:
    """A decoder like a slow tokenizer's: text of bytes; counts how many ids it is asked to decode."""

    def __init__(self) -> None:
        self.num_decoded = 0

    def __call__(self, ids: Sequence[int]) -> str:
        self.num_decoded += len(ids)
        return bytes(ids).decode("utf-8", "replace")


@given(prompt=st.text(), generated=st.text())
def test_a_window_streams_whole_characters(prompt: str, generated: str) -> None:
    # U+FFFD of the text's own at the end of the prompt cannot be told from an unfinished character.
    prompt = prompt.rstrip("\N{REPLACEMENT CHARACTER}")
    detokenizer = WindowDetokenizer(ForgetfulBytes(), prompt.encode(), frozenset())

    assert detokenizer.put_many(generated.encode()) + detokenizer.flush() == generated


@given(st.lists(st.integers(0, 255), max_size=40), st.integers(0, 40))
def test_a_window_never_fails_whatever_the_bytes(ids: list[int], split: int) -> None:
    detokenizer = WindowDetokenizer(ForgetfulBytes(), ids[:split], frozenset())

    assert isinstance(detokenizer.put_many(ids[split:]) + detokenizer.flush(), str)


@pytest.mark.parametrize("garbage", [0xFF, 0xE4, 0x80])
def test_a_window_stays_small_on_a_run_of_garbage(garbage: int) -> None:
    decode = ForgetfulBytes()
    detokenizer = WindowDetokenizer(decode, [], frozenset())
    text = detokenizer.put_many([garbage] * 1000) + detokenizer.flush()

    assert text == "\N{REPLACEMENT CHARACTER}" * 1000
    assert decode.num_decoded < 40_000
