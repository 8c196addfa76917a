"""The openai client, unmodified, against the application in a real HTTP server."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import uvicorn

from kilotron.apis.assembly import assemble
from kilotron.apis.engine_facts import read_engine_facts
from kilotron.config import InferenceConfig
from kilotron.coordinator.local_client import LocalClient
from serving import Service

HELLO = [{"role": "user", "content": "hi there"}]
STORY = "Once upon a time, there was a"


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    assembly = assemble(None, None, InferenceConfig(num_threads=1))
    assert assembly.tokenizer is not None
    facts = read_engine_facts(assembly)
    service = Service(LocalClient(assembly.engine, facts), facts, assembly.tokenizer)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(service.app(), log_level="warning", lifespan="off", access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        server.should_exit = True
        thread.join()
    asyncio.run(service.client.close())


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        yield client


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["kilotron-tiny"]
    assert client.models.retrieve("kilotron-tiny").owned_by == "kilotron"
    with pytest.raises(openai.NotFoundError, match="kilotron-tiny"):
        client.models.retrieve("other")


def test_a_streamed_chat_is_the_whole_chat(client: openai.OpenAI) -> None:
    options = {"model": "kilotron-tiny", "messages": HELLO, "seed": 3, "max_completion_tokens": 30, "n": 2}
    whole = client.chat.completions.create(**options)
    texts, usage = ["", ""], None
    for chunk in client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert usage == whole.usage


def test_a_streamed_completion_is_the_whole_completion(client: openai.OpenAI) -> None:
    options = {"model": "kilotron-tiny", "prompt": [STORY, "The cat"], "seed": 3, "max_tokens": 20, "logprobs": 2}
    whole = client.completions.create(**options, echo=True)
    texts = ["", ""]
    for chunk in client.completions.create(**options, echo=True, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert whole.choices[0].logprobs is not None
    assert whole.choices[0].logprobs.tokens is not None
    assert "".join(whole.choices[0].logprobs.tokens).startswith(STORY)


def test_many_streams_at_once_are_kept_apart(base_url: str) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none") as client:

            async def ask(seed: int, *, is_stream: bool) -> str:
                options = {"model": "kilotron-tiny", "messages": HELLO, "seed": seed, "max_tokens": 24}
                if not is_stream:
                    answer = await client.chat.completions.create(**options)
                    return answer.choices[0].message.content or ""
                chunks = await client.chat.completions.create(**options, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

            streamed = await asyncio.gather(*(ask(seed, is_stream=True) for seed in range(16)))
            assert streamed == await asyncio.gather(*(ask(seed, is_stream=False) for seed in range(16)))

    asyncio.run(main())


def test_mistakes_become_the_clients_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="kilotron-tiny", prompt="a", max_tokens=5000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="kilotron-tiny", messages=HELLO, temperature=5)
    assert caught.value.param == "temperature"
    assert caught.value.request_id
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-4", prompt="a")


def test_beams_come_with_their_scores(client: openai.OpenAI) -> None:
    extra: dict[str, Any] = {"use_beam_search": True, "length_penalty": 0.0}
    found = client.completions.create(model="", prompt=STORY, max_tokens=8, n=2, best_of=4, extra_body=extra)
    scores = [choice.model_extra["score"] for choice in found.choices if choice.model_extra]
    assert scores == sorted(scores, reverse=True)
    assert scores == [choice.model_extra["cumulative_logprob"] for choice in found.choices if choice.model_extra]
    chat = client.chat.completions.create(model="", messages=HELLO, max_tokens=6, n=2, extra_body=extra)
    assert len({choice.message.content for choice in chat.choices}) == 2
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="", prompt=STORY, n=2, stream=True, extra_body=extra)
    assert caught.value.param == "stream"


def test_leaving_a_stream_early_leaves_the_server_usable(client: openai.OpenAI) -> None:
    extra = {"ignore_eos": True}
    with client.completions.create(model="", prompt="a", max_tokens=900, stream=True, extra_body=extra) as chunks:
        next(iter(chunks))
    assert client.completions.create(model="", prompt="a", max_tokens=2, extra_body=extra).usage.completion_tokens == 2


def test_the_clients_stream_helper_collects_a_chat(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="kilotron-tiny", messages=HELLO, seed=1, stop=["!", "."]) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "stop"
