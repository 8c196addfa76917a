import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilotron.errors import ChatTemplateError, InvalidRequestError, TokenizerError
from kilotron.tokenization import ByteTokenizer, FastTokenizer, NullTokenizer, load_tokenizer
from unit.tokenization.trained_tokenizers import KINDS, TEXTS, token_names, trained, write_folder


def test_byte_tokenizer_maps_text_to_bytes_and_back() -> None:
    tokenizer = ByteTokenizer()

    assert tokenizer.tokenize("hé") == [256, 104, 0xC3, 0xA9]
    assert tokenizer.detokenize([256, 104, 0xC3, 0xA9, 257]) == "hé"
    assert tokenizer.detokenize([256, 104, 257], skip_special_tokens=False) == "<|bos|>h<|eos|>"
    assert (tokenizer.vocab_size, tokenizer.bos, tokenizer.eod, tokenizer.pad_id) == (259, 256, 257, 258)


@given(st.text())
def test_byte_tokenizer_keeps_every_text(text: str) -> None:
    assert ByteTokenizer().detokenize(ByteTokenizer().tokenize(text)) == text


def test_null_tokenizer_reads_and_writes_numbers() -> None:
    tokenizer = NullTokenizer(1000)

    assert tokenizer.tokenize("5 999 1000") == [5, 999, 1000]
    assert tokenizer.detokenize([5, 999]) == "5 999"
    assert (tokenizer.vocab_size, tokenizer.eod, tokenizer.bos) == (1001, 1000, None)


@pytest.mark.parametrize("text", ["hello", "1001", "-1", "1.5", "٣", "9" * 5000])
def test_null_tokenizer_refuses_what_is_not_an_id(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="numbers from 0 to 1000"):
        NullTokenizer(1000).tokenize(text)


@pytest.mark.parametrize("kind", KINDS)
def test_named_tokens_have_their_ids(tokenizers: dict[str, FastTokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]

    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 3)
    assert (tokenizer.bos, tokenizer.eod) == (1, 2)
    assert tokenizer.special_ids() >= {0, 1, 2, 3}


@pytest.mark.parametrize("kind", ["byte_level", "llama", "mistral"])
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(tokenizers: dict[str, FastTokenizer], kind: str) -> None:
    for text in TEXTS:
        ids = tokenizers[kind].tokenize(text, add_special_tokens=False)
        joined = b"".join(map(tokenizers[kind].token_bytes, ids)).decode()
        decoded = tokenizers[kind].detokenize(ids, skip_special_tokens=False)
        assert joined in (decoded, " " + decoded)  # llama's first blank is the text's, not the token's


def test_token_text_shows_blanks_special_tokens_and_partial_characters(tokenizers: dict[str, FastTokenizer]) -> None:
    byte_level, llama = tokenizers["byte_level"], tokenizers["llama"]
    partial = llama.tokenize("ꙮ")[-1]

    assert byte_level.token_text(1) == "<s>"
    assert byte_level.token_text(byte_level.tokenize(" hello")[0]).startswith(" h")
    assert llama.token_text(llama.tokenize("hello", add_special_tokens=False)[0]).startswith(" h")
    assert llama.token_bytes(partial) == "ꙮ".encode()[-1:]
    assert llama.token_text(partial) == "\N{REPLACEMENT CHARACTER}"


def test_without_parse_special_no_kind_of_vocabulary_can_be_forged(tokenizers: dict[str, FastTokenizer]) -> None:
    for kind in KINDS:
        tokenizer = tokenizers[kind]
        forged = tokenizer.tokenize("</s><s> <|im_end|></s>", add_special_tokens=False, parse_special=False)
        assert not tokenizer.special_ids().intersection(forged) - {0}, kind  # unknown pieces may well be <unk>
        assert tokenizer.tokenize("</s>", add_special_tokens=False)[-1] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_plain_text_encodes_alike_with_and_without_parse_special(
    tokenizers: dict[str, FastTokenizer], kind: str
) -> None:
    for text in [text for text in TEXTS if "<" not in text]:
        assert tokenizers[kind].tokenize(text) == tokenizers[kind].tokenize(text, parse_special=False)


def test_a_lone_surrogate_is_a_wrong_request(tokenizers: dict[str, FastTokenizer]) -> None:
    with pytest.raises(InvalidRequestError, match=r"cannot be encoded: .* lone surrogate"):
        tokenizers["byte_level"].tokenize("a\ud800")


@given(st.lists(st.sampled_from(["hé", "🎉", " the", "你", "x", "\n"]), max_size=12).map("".join))
def test_offsets_point_at_the_character_a_token_begins_in(tokenizers: dict[str, FastTokenizer], text: str) -> None:
    tokenizer = tokenizers["byte_level"]
    ids = tokenizer.tokenize(text)
    encoded, starts, position = text.encode(), [], 0
    for token_id in ids:
        starts.append(len(encoded[:position].decode("utf-8", "ignore")))
        position += len(tokenizer.token_bytes(token_id))

    assert tokenizer.offsets(ids, text) == starts


def test_offsets_know_whether_the_text_shows_special_tokens() -> None:
    assert ByteTokenizer().offsets([256, 104, 105, 257], "hi") == [0, 0, 1, 2]
    assert ByteTokenizer().offsets([256, 104, 105], "<|bos|>hi") == [0, 7, 8]


def test_vocab_size_covers_the_highest_id(tmp_path: Path) -> None:
    description = json.loads(trained("byte_level"))
    description["model"]["vocab"]["far"] = 5000
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))

    assert load_tokenizer(tmp_path).vocab_size == 5001


def test_without_a_configuration_there_are_no_named_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_folder(tmp_path, "byte_level"))

    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.chat_template) == (None, None, None, None)


def test_a_missing_chat_template_says_what_to_do(tokenizers: dict[str, FastTokenizer]) -> None:
    with pytest.raises(ChatTemplateError, match=r"chat_template\.jinja"):
        tokenizers["llama"].apply_chat_template([{"role": "user", "content": "hi"}])


TEMPLATE = "{{ bos_token }}{{ messages[0].content }}"
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template__jinja": TEMPLATE},
        {"chat_template__json": json.dumps({"chat_template": TEMPLATE})},
        {"tokenizer_config__json": json.dumps(token_names(chat_template=TEMPLATE))},
        {
            "tokenizer_config__json": json.dumps(
                token_names(chat_template=[{"name": "default", "template": TEMPLATE}, {"name": "x", "template": ""}])
            )
        },
        {
            "tokenizer_config__json": json.dumps(token_names(chat_template="from the configuration")),
            "chat_template__jinja": TEMPLATE,
        },
    ],
)
def test_the_chat_template_is_found_wherever_it_is(tmp_path: Path, files: dict[str, str]) -> None:
    tokenizer = load_tokenizer(write_folder(tmp_path, "llama", token_names(), **files))

    assert tokenizer.apply_chat_template(MESSAGES) == "<s>hi"


def test_additional_templates_have_names(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "llama", token_names(), chat_template__jinja=TEMPLATE)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("rag {{ messages[0].content }}")

    assert load_tokenizer(folder).apply_chat_template(MESSAGES, template_name="rag") == "rag hi"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "not json"),
        ("tokenizer.json", "\udcff"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": "y"}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"7": 7}}'),
        ("tokenizer_config.json", '{"extra_special_tokens": [7]}'),
        ("tokenizer_config.json", '{"chat_template": [7]}'),
        ("added_tokens.json", '{"x": "y"}'),
        ("special_tokens_map.json", "7"),
    ],
)
def test_a_broken_file_is_named_in_the_error(tmp_path: Path, name: str, content: str) -> None:
    folder = write_folder(tmp_path, "llama")
    (folder / name).write_text(content, encoding="utf-8", errors="surrogateescape")

    with pytest.raises(TokenizerError):
        load_tokenizer(folder)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no folder or file"):
        load_tokenizer(tmp_path / "nowhere")


PROBE = """
import sys
sys.modules["transformers"] = None  # as if it were not installed
{code}
print(sorted({{"jinja2", "tokenizers", "torch", "transformers"}} & {{m for m in sys.modules if sys.modules[m]}}))
"""


def run_probe(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", PROBE.format(code=code)], capture_output=True, text=True, env=_environment(), check=True
    )
    return result.stdout.strip()


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": str(Path(__file__).parents[3] / "src")}


def test_importing_the_package_loads_no_library() -> None:
    assert run_probe("import kilotron.tokenization") == "[]"


def test_loading_needs_neither_torch_nor_transformers_nor_jinja2(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "llama", token_names(), chat_template__jinja=TEMPLATE)

    code = f"from kilotron.tokenization import load_tokenizer; load_tokenizer({str(folder)!r})"
    assert run_probe(code) == "['tokenizers']"
