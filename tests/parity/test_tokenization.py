# ruff: noqa: RUF001  templates of real models
"""The tokenization package against transformers: ids, text and rendered chats must be the same."""

import datetime
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from kilotron.tokenization import ChatTemplate, FastTokenizer, Tokenizer, load_tokenizer
from kilotron.tokenization.hf_tokenizer import HfTokenizer
from unit.tokenization.trained_tokenizers import CORPUS, KINDS, TEXTS, token_names, write_folder

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def load_both(folder: Path) -> tuple[Tokenizer, Any]:
    return load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)


def assert_same(ours: Tokenizer, theirs: Any) -> None:
    for text in [*TEXTS, *CORPUS]:
        for add_special_tokens in (True, False):
            ids = ours.tokenize(text, add_special_tokens=add_special_tokens)
            assert ids == theirs(text, add_special_tokens=add_special_tokens)["input_ids"], text
            for skip in (True, False):
                assert ours.detokenize(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert ours.vocab_size == len(theirs)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (
        theirs.bos_token_id,
        theirs.eos_token_id,
        theirs.pad_token_id,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("add_bos", "add_eos"), [*itertools.product([True, False], repeat=2), (None, None)])
def test_ids_and_text_are_the_same(tmp_path: Path, kind: str, add_bos: bool | None, add_eos: bool | None) -> None:
    flags = {} if add_bos is None else {"add_bos_token": add_bos, "add_eos_token": add_eos}

    assert_same(*load_both(write_folder(tmp_path, kind, token_names(**flags))))


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_with_template", "llama"])
def test_special_tokens_in_the_text_can_be_taken_as_text(tmp_path: Path, kind: str) -> None:
    ours, theirs = load_both(write_folder(tmp_path, kind, token_names()))

    for text in TEXTS:
        assert ours.tokenize(text, parse_special=False) == theirs(text, split_special_tokens=True)["input_ids"]


def added(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False, **flags}


CONFIGURATIONS: dict[str, tuple[dict[str, Any] | None, dict[str, str]]] = {
    "no configuration": (None, {}),
    "no names": ({}, {}),
    "only the names' file": (
        None,
        {"special_tokens_map__json": json.dumps({"bos_token": "<s>", "eos_token": added("</s>")})},
    ),
    "a name that is not in the vocabulary": (token_names(pad_token="[PAD]"), {}),
    "a named word of the vocabulary": (token_names(eos_token="<|im_end|>", pad_token="hello"), {}),
    "old additional tokens": (token_names(additional_special_tokens=["<new>", "<s>"]), {}),
    "new extra tokens": (token_names(extra_special_tokens=["<new>", "world"]), {}),
    "extra tokens with names": (token_names(extra_special_tokens={"image_token": "<image>"}), {}),
    "a token with a name of the model's own": (token_names(image_token="<image>"), {}),
    "declared tokens": (
        token_names(
            added_tokens_decoder={
                "9": added("<late>", special=True),
                "8": added("brown", special=False),
                "1": added("<s>", special=True),
            }
        ),
        {},
    ),
    "declared tokens hide the names' file": (
        token_names(added_tokens_decoder={"1": added("<s>", special=True)}),
        {"special_tokens_map__json": json.dumps({"eos_token": "<pad>"})},
    ),
    "a declared token loses its special flag": (
        token_names(added_tokens_decoder={"0": added("<unk>", special=False), "3": added("<pad>", special=False)}),
        {},
    ),
    "the oldest layout": (
        {"eos_token": "</s>"},
        {
            "added_tokens__json": json.dumps({"<new>": 1000, "<newer>": 1001}),
            "special_tokens_map__json": json.dumps({"bos_token": "<s>", "cls_token": "<newer>"}),
        },
    ),
}


@pytest.mark.parametrize("kind", ["byte_level", "llama"])
@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_every_file_counts_as_in_transformers(tmp_path: Path, kind: str, case: str) -> None:
    config, files = CONFIGURATIONS[case]
    if config is not None:
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    folder = write_folder(tmp_path, kind, config, **files)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ours = load_tokenizer(folder)

    assert_same(ours, theirs)
    theirs_special = {token_id for token_id, token in theirs.added_tokens_decoder.items() if token.special}
    assert ours.special_ids() == theirs_special
    for text in ("a <new><newer> b", "<image>hello world<late> brown[PAD]"):
        assert ours.tokenize(text) == theirs(text)["input_ids"]


@pytest.mark.filterwarnings("ignore:This sequence already has")
def test_a_tokenizer_without_tokenizer_json_comes_through_transformers(tmp_path: Path) -> None:
    theirs = transformers.ByT5Tokenizer()
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)

    assert isinstance(ours, HfTokenizer)
    assert_same(ours, theirs)
    ids = ours.tokenize("streamed: é🎉", add_special_tokens=False)
    stream = ours.create_detokenizer(())
    assert "".join(map(stream.put, ids)) + stream.flush() == "streamed: é🎉"


def test_a_tokenizer_that_transformers_converts_is_a_fast_one(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\nworld\n##s\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', encoding="utf-8")
    ours = load_tokenizer(tmp_path)

    assert isinstance(ours, FastTokenizer)
    assert ours.tokenize("hello worlds") == [2, 5, 6, 7, 3]


TEMPLATES = {
    "chatml": (
        "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
        " + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama 3": (
        "{% set loop_messages = messages %}{% for message in loop_messages %}"
        "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim"
        " + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
        "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    ),
    "mistral": """
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
        "{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
    ),
    "qwen with tools": r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\n\n' }}
    {%- endif %}
    {{- "# Tools\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" and message.tool_calls %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {{- '\n<think>\n' + message.reasoning_content.strip('\n') + '\n</think>\n' }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\n<tool_call>\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
            {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}
""",
    "phi 3": (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + "
        "'<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
        "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "deepseek": (
        "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
        "{% set ns = namespace(is_first=false, is_tool=false, system_prompt='', is_first_sp=true) %}"
        "{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}"
        "{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}"
        "{%- else %}{% set ns.system_prompt = ns.system_prompt + '\n\n' + message['content'] %}{%- endif %}{%- endif %}"
        "{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}"
        "{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}"
        "{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is not none %}"
        "{% set content = message['content'] %}{% if '</think>' in content %}"
        "{% set content = content.split('</think>')[-1] %}{% endif %}"
        "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}"
        "{% if add_generation_prompt %}{{'<｜Assistant｜><think>\n'}}{% endif %}"
    ),
    "loop controls and date": """{{ bos_token }}Today is {{ strftime_now("%d %B %Y") }}.
{% macro turn(role, text) -%}
[{{ role | upper }}] {{ text | trim }}
{%- endmacro %}
{% for message in messages %}
    {% if message.role == "system" %}
        {% continue %}
    {% endif %}
    {% if loop.index > 5 %}
        {% break %}
    {% endif %}
    {% if message.role == "assistant" %}
{% generation %}{{ turn(message.role, message.content) }}{% endgeneration %}

    {% else %}
{{ turn(message.role, message.content) }}
    {% endif %}
{% endfor %}
{{ dict(a=1, b=[true, none]) | tojson(indent=2) }}
{{ (messages | map(attribute="role") | unique | list) | join(", ") }}""",
}

CALL = {"type": "function", "function": {"name": "search", "arguments": {"query": "<é & 'ü'>"}}}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi  "}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好 🎉\n\n<b>"}],
    [
        {"role": "user", "content": " one"},
        {"role": "assistant", "content": "<think>hm</think> two "},
        {"role": "user", "content": "three"},
    ],
    [
        {"role": "user", "content": "find it"},
        {"role": "assistant", "content": None, "reasoning": "so", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"found": true}'},
    ],
    [{"role": "assistant", "content": "I go first"}],
]
TOOLS = [{"type": "function", "function": {"name": "search", "description": "Finds <things>.", "parameters": {}}}]


@pytest.fixture(scope="module")
def hf_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write_folder(tmp_path_factory.mktemp("chat"), "llama", token_names(image_token="<image>"))
    return transformers.AutoTokenizer.from_pretrained(folder)


def outcome(render: Any) -> str:
    """The rendered text, or that there was none."""
    try:
        return str(render())
    except Exception as error:
        return f"refused: {str(error).rsplit(': ', 1)[-1]}"


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize(
    "options",
    [
        {"add_generation_prompt": True},
        {"add_generation_prompt": False, "tools": TOOLS},
        {"add_generation_prompt": True, "enable_thinking": False, "bos_token": "<other>"},
        {"continue_final_message": True},
    ],
)
def test_chats_are_rendered_alike(
    hf_tokenizer: Any, name: str, conversation: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    template = ChatTemplate(TEMPLATES[name], hf_tokenizer.special_tokens_map)
    ours = outcome(lambda: template.render(conversation, **options))
    theirs = outcome(
        lambda: hf_tokenizer.apply_chat_template(conversation, chat_template=TEMPLATES[name], tokenize=False, **options)
    )

    if "continue_final_message" in options:
        assert ours.startswith("refused") == theirs.startswith("refused")
        ours, theirs = ("", "") if ours.startswith("refused") else (ours, theirs)
    assert ours == theirs


def test_the_date_is_todays() -> None:
    text = ChatTemplate("{{ strftime_now('%Y') }}").render(CONVERSATIONS[0])

    assert abs(int(text) - datetime.date.today().year) <= 1


def test_templates_of_a_folder_are_the_same(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "llama", token_names(image_token="<image>"))
    (folder / "chat_template.jinja").write_text(TEMPLATES["mistral"] + "{{ image_token }}", encoding="utf-8")
    ours, theirs = load_both(folder)

    text = ours.apply_chat_template(CONVERSATIONS[0])
    assert text == theirs.apply_chat_template(CONVERSATIONS[0], tokenize=False)
    ids = theirs.apply_chat_template(CONVERSATIONS[0], return_dict=False)
    assert ours.tokenize(text, add_special_tokens=False) == ids
