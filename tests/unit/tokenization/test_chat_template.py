import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Any

import pytest

from kilotron.errors import ChatTemplateError
from kilotron.tokenization import ByteTokenizer, ChatTemplate

USER = {"role": "user", "content": "hi"}
CHATML = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"x": [value]}
    return value


def render(source: str, messages: list[dict[str, Any]] | None = None, **variables: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages or [USER], **variables)


def test_a_conversation_is_rendered() -> None:
    assert render(CHATML, add_generation_prompt=True) == "<|user|>hi<|end|><|assistant|>"


def test_special_tokens_and_variables_are_seen_and_variables_win() -> None:
    assert render("{{ bos_token }}{{ mood }}", mood="gay") == "<s>gay"
    assert render("{{ bos_token }}", bos_token="") == ""


def test_a_tokenizer_passes_everything_on() -> None:
    tokenizer = ByteTokenizer(ChatTemplate(CHATML + "{{ mood }}"))

    assert tokenizer.apply_chat_template([USER], mood="!") == "<|user|>hi<|end|><|assistant|>!"
    assert tokenizer.apply_chat_template([USER], add_generation_prompt=False) == "<|user|>hi<|end|>"


def test_blocks_leave_no_blank_lines() -> None:
    assert render("{% if true %}\n  {% if true %}\na\n  {% endif %}\n{% endif %}\n") == "a\n"


def test_tojson_keeps_html_and_unicode() -> None:
    assert render("{{ messages[0] | tojson }}", [{"content": "<é&'>"}]) == '{"content": "<é&\'>"}'
    assert render("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=True) }}") == '{\n "a": 2,\n "b": 1\n}'


def test_loop_controls_generation_and_namespace_work() -> None:
    source = (
        "{% set ns = namespace(n=0) %}{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}"
        "{% set ns.n = ns.n + i %}{% endfor %}{% generation %}{{ ns.n }}{% endgeneration %}"
    )

    assert render(source) == "3"


def test_strftime_now_gives_the_date() -> None:
    assert render("{{ strftime_now('%Y') }}").startswith("20")


def test_the_templates_own_message_is_the_error() -> None:
    with pytest.raises(ChatTemplateError, match=r"^Roles must alternate$"):
        render("{{ raise_exception('Roles must alternate') }}")


def test_what_the_template_lacks_is_told_as_such() -> None:
    with pytest.raises(ChatTemplateError, match=r"needs something that it was not given: .* 'content'"):
        ChatTemplate("{{ 'say ' + messages[0].content }}").render([{"role": "user", "content": None}])


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        "{{ nothing.at.all }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{{ 'a' | no_such_filter }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages | tojson(no_such_option=1) }}",
        "{{ '%d' % 'x' }}",
    ],
)
def test_a_template_that_fails_is_a_template_error(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ namespace({'__init__': 1}) }}",
        "{{ raise_exception.__globals__ }}{{ raise_exception.__globals__.json }}",
        "{{ dict.__class__.__init__.__globals__ }}",
        "{{ '{0.__class__.__init__.__globals__[x]}'.format(raise_exception) }}",
        "{% for i in range(100001) %}{% endfor %}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ '' }}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% set s %}{% for a in messages recursive %}{{ loop(messages) }}{{ loop(messages) }}{% endfor %}{% endset %}",
    ],
)
def test_an_endless_template_is_stopped(source: str) -> None:
    with pytest.raises(ChatTemplateError, match=r"too long|recursion"):
        ChatTemplate(source, time_limit_s=0.05).render([USER])


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{{ 'spam and eggs' }}{% endfor %}",
        "{{ 'x' * 10 ** 9 }}",
        "{{ 10 ** 9 * [1] }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% set ns = namespace(x='spam') %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    ],
)
def test_a_template_cannot_grow_without_bound(source: str) -> None:
    with pytest.raises(ChatTemplateError, match=r"more than 100000|too large"):
        ChatTemplate(source, max_output_chars=100_000).render([USER])


class Role(str, Enum):  # noqa: UP042  what requests hold; str() of it gives its name
    USER = "user"


class Picture:
    def save(self, path: str) -> str:
        return f"written to {path}"


def test_templates_see_plain_data_only() -> None:
    message = {"role": Role.USER, "content": ({"type": "image", "image": Picture()},), "n": 1, "ok": True}

    assert render("{{ messages[0].role }} {{ messages[0].content[0].image }}", [message]) == "user <Picture>"
    with pytest.raises(ChatTemplateError):
        render("{{ messages[0].content[0].image.save('/tmp/x') }}", [message])


def test_empty_fields_are_dropped_and_the_callers_messages_stay() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": []}

    assert render("{{ messages[0] | tojson }}", [message]) == '{"role": "assistant", "tool_calls": []}'
    assert message == {"role": "assistant", "content": None, "tool_calls": []}


def test_the_final_message_can_be_continued() -> None:
    conversation = [USER, {"role": "assistant", "content": "Sure, "}]
    trimming = CHATML.replace("message.content", "message.content | trim")

    assert render(CHATML, conversation, continue_final_message=True) == "<|user|>hi<|end|><|assistant|>Sure, "
    assert render(trimming, conversation, continue_final_message=True) == "<|user|>hi<|end|><|assistant|>Sure,"


@pytest.mark.parametrize(
    ("messages", "options"),
    [
        ([], {}),
        (["hi"], {}),
        ({"role": "user"}, {}),
        ("hi", {}),
        ([USER], {"tools": "search"}),
        ([USER], {"tools": [print]}),
        ([USER], {"template_name": "rag"}),
        ([USER], {"template_name": ["default"]}),
        ([nested(100_000)], {}),
        ([USER], {"anything": nested(100_000)}),
        ([USER], {"continue_final_message": True, "add_generation_prompt": True}),
        ([{"role": "assistant"}], {"continue_final_message": True}),
    ],
)
def test_wrong_arguments_are_refused(messages: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ChatTemplateError):
        ChatTemplate(CHATML).render(messages, **options)


def test_tools_choose_the_template_for_tools() -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "tools", "rag": "rag"})

    assert template.render([USER]) == "plain"
    assert template.render([USER], tools=[{"type": "function"}]) == "tools"
    assert template.render([USER], tools=[{"type": "function"}], template_name="rag") == "rag"


def test_several_templates_without_a_default_must_be_chosen_from() -> None:
    with pytest.raises(ChatTemplateError, match=r"\['a', 'b'\]"):
        ChatTemplate({"a": "", "b": ""}).render([USER])


def test_threads_share_a_template() -> None:
    template = ChatTemplate(CHATML)
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda i: template.render([{"role": "user", "content": str(i)}]), range(200)))

    assert texts == [f"<|user|>{i}<|end|>" for i in range(200)]


def test_threads_may_use_a_template_first_at_the_same_time() -> None:
    """Each round is the first use by several threads, and they change places as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            for _ in range(40):
                template, start = ChatTemplate(CHATML), threading.Barrier(4)
                texts = list(pool.map(lambda _, t=template, s=start: (s.wait(), t.render([USER]))[1], range(4)))
                assert len(set(texts)) == 1
    finally:
        sys.setswitchinterval(interval)
