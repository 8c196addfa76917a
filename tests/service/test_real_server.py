"""The openai client, unmodified, against the process tree of `kilotron serve`: answers, errors, quotas and retries."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest

from service.running_service import RunningService, running, wait_for

MODEL = "kilotron-tiny"
STORY = "Once upon a time, there was a"
HELLO: list[Any] = [{"role": "user", "content": "hi there"}]
KEY, OTHER_KEY, ADMIN_KEY = "sk-one", "sk-two", "sk-admin"
KEYS = {"KILOTRON_API_KEY": f"{KEY},{OTHER_KEY}", "KILOTRON_ADMIN_KEY": ADMIN_KEY}
MOST_PER_KEY = 4
ENDLESS = {"max_tokens": 900, "stream": True, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    options = ("--num-threads", "1", "--max-concurrent-per-key", str(MOST_PER_KEY))
    with running(*options, key=ADMIN_KEY, environment=KEYS) as service:
        yield service


class Attempts:
    """Counts what a client sends, with the status of each answer."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.times: list[float] = []

    def see(self, response: httpx2.Response) -> None:
        self.statuses.append(response.status_code)
        self.times.append(time.monotonic())


@pytest.fixture
def attempts() -> Attempts:
    return Attempts()


@pytest.fixture
def client(service: RunningService, attempts: Attempts) -> Iterator[openai.OpenAI]:
    hooks: Any = {"response": [attempts.see]}
    with (
        httpx2.Client(event_hooks=hooks) as http,
        openai.OpenAI(base_url=f"http://127.0.0.1:{service.port}/v1", api_key=KEY, http_client=http) as client,
    ):
        yield client


def test_a_chat_streams_what_it_answers_whole(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": MODEL, "messages": HELLO, "seed": 3, "max_completion_tokens": 24, "n": 3}
    options |= {"logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**options)
    texts, scores, usage = ["", "", ""], [[], [], []], None
    for chunk in client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            scores[choice.index] += choice.logprobs.content if choice.logprobs and choice.logprobs.content else []
    assert texts == [choice.message.content for choice in whole.choices]
    assert scores == [choice.logprobs.content for choice in whole.choices if choice.logprobs]
    assert usage == whole.usage
    assert usage is not None
    assert usage.completion_tokens == sum(map(len, scores))


def test_a_completion_streams_what_it_answers_whole(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": MODEL, "prompt": [STORY, "The cat"], "seed": 3, "max_tokens": 20, "logprobs": 3}
    whole = client.completions.create(**options, stop=["."])
    texts = ["", ""]
    for chunk in client.completions.create(**options, stop=["."], stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]


def test_many_asynchronous_calls_are_kept_apart(service: RunningService) -> None:
    async def main() -> None:
        url = f"http://127.0.0.1:{service.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=ADMIN_KEY, max_retries=20) as client:

            async def ask(seed: int, *, is_stream: bool) -> str:
                options: dict[str, Any] = {"model": MODEL, "messages": HELLO, "seed": seed, "max_tokens": 16}
                if not is_stream:
                    return (await client.chat.completions.create(**options)).choices[0].message.content or ""
                chunks = await client.chat.completions.create(**options, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

            seeds = range(MOST_PER_KEY)
            streamed = await asyncio.gather(*(ask(seed, is_stream=True) for seed in seeds))
            assert streamed == await asyncio.gather(*(ask(seed, is_stream=False) for seed in seeds))

    asyncio.run(main())


def test_a_mistake_is_sent_once(client: openai.OpenAI, attempts: Attempts) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=HELLO, temperature=5)
    assert (caught.value.param, attempts.statuses) == ("temperature", [400])
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-nobody").models.list()
    with pytest.raises(openai.NotFoundError, match=MODEL):
        client.completions.create(model="gpt-4", prompt="a")


def test_a_deadline_is_not_tried_again(client: openai.OpenAI, attempts: Attempts) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(
            model=MODEL, prompt=STORY, max_tokens=900, extra_body={"ignore_eos": True, "timeout": 0.01}
        )
    assert (caught.value.code, attempts.statuses) == ("deadline_exceeded", [504])
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_key_over_its_quota_waits_as_long_as_it_is_told_and_others_do_not(
    client: openai.OpenAI, attempts: Attempts
) -> None:
    running = [client.completions.create(model=MODEL, prompt="a", **ENDLESS) for _ in range(MOST_PER_KEY)]
    with pytest.raises(openai.RateLimitError) as caught:
        client.with_options(max_retries=0).completions.create(model=MODEL, prompt="a", max_tokens=1)
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30
    other = client.with_options(api_key=OTHER_KEY).completions.create(model=MODEL, prompt="a", max_tokens=1)
    assert other.usage is not None

    del attempts.statuses[:], attempts.times[:]
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(client.completions.create, model=MODEL, prompt="a", max_tokens=1)
        wait_for(lambda: attempts.statuses, what="a refusal")
        for stream in running:
            stream.close()
        assert waiting.result().usage.completion_tokens == 1
    assert attempts.statuses == [429, 200]
    assert attempts.times[1] - attempts.times[0] >= 1.0  # as Retry-After said


def test_more_prompts_in_one_call_than_a_key_may_have_under_way_are_refused_for_good(
    client: openai.OpenAI, attempts: Attempts
) -> None:
    with pytest.raises(openai.BadRequestError, match=f"{MOST_PER_KEY + 1} prompts"):
        client.completions.create(model=MODEL, prompt=["a"] * (MOST_PER_KEY + 1), max_tokens=1)
    assert attempts.statuses == [400]


def test_while_the_engines_are_suspended_clients_come_back_later(
    service: RunningService, client: openai.OpenAI, attempts: Attempts
) -> None:
    for verb in ("pause", "suspend"):
        assert service.ask("POST", f"/admin/{verb}").status == 200
    with pytest.raises(openai.InternalServerError) as caught:
        client.with_options(max_retries=0).completions.create(model=MODEL, prompt="a", max_tokens=1)
    assert (caught.value.status_code, attempts.statuses) == (503, [503])
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30
    for verb in ("resume", "unpause"):
        assert service.ask("POST", f"/admin/{verb}").status == 200
    assert client.completions.create(model=MODEL, prompt="a", max_tokens=1).choices


def test_a_client_that_leaves_early_leaves_nothing(service: RunningService, client: openai.OpenAI) -> None:
    with client.completions.create(model=MODEL, prompt="a", **ENDLESS) as chunks:
        next(iter(chunks))
        assert service.metrics()["num_requests_in_flight"] == 1
    assert service.wait_idle() < 5.0
