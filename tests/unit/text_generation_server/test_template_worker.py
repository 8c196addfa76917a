import asyncio
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kilotron.errors import ChatTemplateError, QueueFullError
from kilotron.text_generation_server.template_worker import TemplateLimits, TemplateWorker
from kilotron.tokenization import ChatTemplate

SOURCES = Path(__file__).parents[3] / "src"
USER = {"role": "user", "content": "hi"}
CHATML = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# The message says what to do, so that one worker can be asked for good and for evil. Numbers depend on it too: what is
# constant would be computed when the template is compiled.
BY_MESSAGE = """
{%- set c = messages[0].content -%}
{%- set n = c | length -%}
{%- if c == 'loop' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}
{%- elif c == 'digits' %}{{ ('%' ~ n * 500000000 ~ 'd') | format(1) }}
{%- elif c == 'pad' %}{{ c | center(n * 1000000000) }}
{%- elif c == 'stuck' %}{{ ((c ~ ' ') * 300000) | wordwrap(1) }}
{%- elif c == 'recursion' %}{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}
{%- elif c == 'address' %}{{ raise_exception(messages.index | string) }}
{%- else %}{{ c }}{% endif -%}
"""


@asynccontextmanager
async def running(template: str | ChatTemplate, **limits: Any) -> AsyncIterator[TemplateWorker]:
    worker = TemplateWorker(
        ChatTemplate(template, {"bos_token": "<s>"}) if isinstance(template, str) else template,
        TemplateLimits(**limits),
    )
    await worker.start()
    try:
        yield worker
    finally:
        await worker.aclose()


def with_worker(template: str, use: Callable[[TemplateWorker], Awaitable[object]], **limits: Any) -> Any:
    async def main() -> object:
        async with running(template, **limits) as worker:
            return await use(worker)

    return asyncio.run(main())


def said(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


async def refusal(worker: TemplateWorker, messages: Any, **options: Any) -> str:
    with pytest.raises(ChatTemplateError) as caught:
        await worker.render(messages, **options)
    return str(caught.value)


def test_a_worker_renders_what_the_template_renders() -> None:
    messages = [USER, {"role": "assistant", "content": "é 🎉 \ud800 \x00"}]
    template = ChatTemplate(CHATML + "{{ bos_token }}{{ mood }}{{ tools }}{{ documents }}", {"bos_token": "<s>"})
    options: dict[str, Any] = {"add_generation_prompt": True, "tools": [{"a": 1}], "documents": [{"b": None}]}

    async def use(worker: TemplateWorker) -> str:
        return await worker.render(messages, variables={"mood": "gay"}, **options)

    source = template.templates["default"]
    assert with_worker(source, use) == template.render(messages, mood="gay", **options)


def test_the_final_message_is_continued_and_templates_are_chosen() -> None:
    template = ChatTemplate({"default": CHATML, "rag": "rag"})

    async def main() -> list[str]:
        async with running(template) as worker:
            return [
                await worker.render([USER], continue_final_message=True),
                await worker.render([USER], template_name="rag"),
            ]

    assert asyncio.run(main()) == ["<|user|>hi", "rag"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "^Roles must alternate$"),
        ("{% if %}", "Expected an expression"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.system('id') }}", "unsafe|undefined"),
        ("{{ '{0.__class__.__init__.__globals__}'.format(messages) }}", "unsafe|undefined"),
        ("{{ 'x' * 10 ** 9 }}", "more than"),
        ("{% for a in range(99999) %}{{ 'spam and eggs' * 99 }}{% endfor %}", "more than"),
    ],
)
def test_a_template_that_fails_is_told_so_and_the_worker_stays(source: str, expected: str) -> None:
    async def use(worker: TemplateWorker) -> str:
        pid = worker.pid
        message = await refusal(worker, [USER])
        assert worker.pid == pid
        return message

    assert re.search(expected, with_worker(source, use))


@pytest.mark.parametrize("evil", ["loop", "digits", "pad", "stuck", "recursion"])
def test_an_evil_rendering_ends_in_time_and_the_next_one_is_fine(evil: str) -> None:
    async def use(worker: TemplateWorker) -> None:
        start = time.monotonic()
        message = await refusal(worker, said(evil))
        assert time.monotonic() - start < 3.0
        assert not re.search(r'/|File "|0x[0-9a-f]{6}|Traceback', message)
        assert await worker.render([USER]) == "hi"

    with_worker(BY_MESSAGE, use)


def test_a_worker_that_is_too_slow_is_killed_and_replaced() -> None:
    async def use(worker: TemplateWorker) -> None:
        pid = worker.pid
        assert await refusal(worker, said("stuck")) == "the chat template takes longer than 1 s, and was stopped"
        assert await worker.render([USER]) == "hi"
        assert worker.pid != pid

    with_worker(BY_MESSAGE, use)


def test_a_template_that_is_folded_at_compilation_cannot_stop_the_start() -> None:
    async def use(worker: TemplateWorker) -> None:
        start = time.monotonic()
        await refusal(worker, [USER])
        assert time.monotonic() - start < 3.0

    with_worker("{{ '%1000000000d' | format(1) }}", use)


def test_memory_is_bounded() -> None:
    source = (
        "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = [ns.l, 'x' * 1000000] %}{% endfor %}"
    )

    async def use(worker: TemplateWorker) -> str:
        return await refusal(worker, [USER])

    assert "MemoryError" in with_worker(source, use, memory_bytes=64 << 20)


def test_addresses_do_not_leave() -> None:
    async def use(worker: TemplateWorker) -> str:
        return await refusal(worker, said("address"))

    assert with_worker(BY_MESSAGE, use) == "<built-in method index of list object at 0x...>"


def test_a_killed_worker_is_replaced_without_anybody_noticing() -> None:
    async def use(worker: TemplateWorker) -> None:
        for _ in range(2):
            pid = worker.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            assert await worker.render([USER]) == "hi"
            assert worker.pid != pid

    with_worker(BY_MESSAGE, use)


def test_a_stopped_worker_counts_as_slow() -> None:
    async def use(worker: TemplateWorker) -> None:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
        assert "takes longer than 1 s" in await refusal(worker, [USER])
        assert await worker.render([USER]) == "hi"

    with_worker(BY_MESSAGE, use)


def test_many_callers_get_each_their_own_text() -> None:
    async def use(worker: TemplateWorker) -> list[str]:
        return await asyncio.gather(*(worker.render(said(str(i) * i)) for i in range(100)))

    assert with_worker(BY_MESSAGE, use) == [str(i) * i for i in range(100)]


def test_a_caller_that_leaves_changes_nothing_for_the_others() -> None:
    async def use(worker: TemplateWorker) -> None:
        pid = worker.pid
        callers = [asyncio.create_task(worker.render(said(str(i) if i % 2 else "stuck"))) for i in range(9)]
        await asyncio.sleep(0)
        for caller in callers[::2]:
            caller.cancel()
        texts = await asyncio.gather(*callers, return_exceptions=True)
        assert texts[1::2] == ["1", "3", "5", "7"]
        assert all(isinstance(text, asyncio.CancelledError) for text in texts[::2])
        assert worker.pid == pid  # nobody rendered what nobody waits for

    with_worker(BY_MESSAGE, use)


def test_a_full_queue_refuses() -> None:
    async def use(worker: TemplateWorker) -> None:
        texts = await asyncio.gather(*(worker.render([USER]) for _ in range(9)), return_exceptions=True)
        assert texts.count("hi") == 3
        assert sum(isinstance(text, QueueFullError) for text in texts) == 6

    with_worker(BY_MESSAGE, use, max_waiting=3)


@pytest.mark.parametrize(
    ("messages", "options", "expected"),
    [
        (said("x" * 2000), {}, "2.* bytes, and a chat template is given at most 1000"),
        ([], {}, "at least one message"),
        (said(print), {}, "JSON values only"),
        ([USER], {"template_name": "rag"}, "no chat template named 'rag'"),
        ([USER], {"variables": {"tools": [], "self": 1}}, "no variables of a chat template: self, tools"),
        ([USER], {"continue_final_message": True, "add_generation_prompt": True}, "exclude each other"),
    ],
)
def test_wrong_arguments_are_refused(messages: Any, options: dict[str, Any], expected: str) -> None:
    async def use(worker: TemplateWorker) -> str:
        return await refusal(worker, messages, **options)

    assert re.search(expected, with_worker(CHATML, use, max_request_bytes=1000))


@pytest.mark.parametrize("depth", [5_000, 100_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    deep: list[Any] = []
    for _ in range(depth):
        deep = [deep]

    async def use(worker: TemplateWorker) -> str:
        await refusal(worker, said(deep))
        return await worker.render([USER])

    assert with_worker("ok", use) == "ok"


def test_a_closed_worker_refuses_and_leaves_no_process() -> None:
    async def main() -> None:
        worker = TemplateWorker(ChatTemplate(CHATML))
        await refusal(worker, [USER])
        await worker.start()
        pid = worker.pid
        waiting = [asyncio.create_task(worker.render([USER])) for _ in range(3)]
        await asyncio.sleep(0)
        await worker.aclose()
        assert all(
            isinstance(text, ChatTemplateError) for text in await asyncio.gather(*waiting, return_exceptions=True)
        )
        await refusal(worker, [USER])
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        await worker.aclose()  # again is no error

    asyncio.run(main())


PARENT = """
import asyncio
from kilotron.text_generation_server.template_worker import TemplateWorker
from kilotron.tokenization.chat_template import ChatTemplate
async def main():
    worker = TemplateWorker(ChatTemplate("hi"))
    await worker.start()
    print(worker.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_a_worker_dies_with_its_parent_and_holds_no_secret() -> None:
    environment = {"PYTHONPATH": str(SOURCES), "KILOTRON_API_KEY": "canary"}
    with subprocess.Popen([sys.executable, "-c", PARENT], env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        fd = os.pidfd_open(pid)
        files = Path(f"/proc/{pid}")
        secrets_seen = [b"canary" in (files / name).read_bytes() for name in ("environ", "cmdline")]
        limits = (files / "limits").read_text()
        os.kill(pid, signal.SIGSTOP)  # so that it cannot notice by itself
        parent.kill()

    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(2000)
    os.close(fd)
    assert secrets_seen == [False, False]
    assert re.search(r"Max core file size +0 +0", limits)
    assert re.search(r"Max file size +0 +0", limits)


def test_the_process_imports_no_torch() -> None:
    code = "import sys, kilotron.text_generation_server.template_worker_process; print(*sys.modules)"
    environment = {"PYTHONPATH": str(SOURCES)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert not {"torch", "zmq", "starlette", "asyncio", "tokenizers"} & set(done.stdout.split())
