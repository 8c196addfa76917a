"""MegatronAsyncLLM: many calls in one running event loop, each ending exactly once."""

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from fakes import TINY_OPTIONS, FailingWrapper, ScriptedWrapper, assert_nothing_is_left, make_llm, make_model
from kilotron.apis.async_llm import MegatronAsyncLLM
from kilotron.errors import (
    ChatTemplateError,
    EmptyPromptError,
    EngineClosedError,
    QueueFullError,
    RequestAbortedError,
    SamplingParamsError,
    StepFailedError,
)
from kilotron.inference_request import Status
from kilotron.sampling_params import SamplingParams
from kilotron.tokenization import ByteTokenizer

GREEDY = SamplingParams(temperature=0.0, num_tokens_to_generate=6)
LONG = SamplingParams(temperature=0.0, num_tokens_to_generate=200, ignore_eos=True)
Story = Callable[[MegatronAsyncLLM], Coroutine[Any, Any, None]]


def make_async_llm(**options: Any) -> MegatronAsyncLLM:
    return MegatronAsyncLLM(make_model(), ByteTokenizer(), **TINY_OPTIONS | options)


def play(story: Story, wrapper: ScriptedWrapper | None = None, **options: Any) -> None:
    """Runs a story in an event loop of its own; whatever happens in it must not take long, nor leave anything."""

    async def run() -> None:
        llm = make_async_llm(**options)
        if wrapper is not None:
            llm.controller.inference_wrapped_model = wrapper
        async with llm:
            await asyncio.wait_for(story(llm), 30)
            await drained(llm)
        assert_nothing_is_left(llm.engine)

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for happens in another thread
        await asyncio.sleep(0.001)


async def drained(llm: MegatronAsyncLLM) -> None:
    await until(lambda: not llm.engine.has_unfinished_requests)


async def under_way(llm: MegatronAsyncLLM) -> None:
    await until(lambda: llm.engine.num_tokens_generated > 0)


def test_a_single_prompt_gives_a_request_and_a_list_a_list() -> None:
    async def story(llm: MegatronAsyncLLM) -> None:
        single, several = await llm.generate("ab", GREEDY), await llm.generate(["ab", [99, 100]], GREEDY)
        assert [request.generated_length for request in (single, *several)] == [6] * 3
        assert await llm.generate([], GREEDY) == []

    play(story)


def test_a_hundred_concurrent_calls_give_what_the_synchronous_api_gives() -> None:
    prompts = [f"prompt {number}" for number in range(100)]
    with make_llm() as llm:
        expected = [request.generated_tokens for request in llm.generate(prompts, GREEDY)]

    async def story(llm: MegatronAsyncLLM) -> None:
        requests = await asyncio.gather(*(llm.generate(prompt, GREEDY) for prompt in prompts))
        assert [request.generated_tokens for request in requests] == expected

    play(story)


def test_the_loop_stays_free_while_the_engine_works() -> None:
    async def story(llm: MegatronAsyncLLM) -> None:
        ticks, task = 0, asyncio.create_task(llm.generate(["ab"] * 8, LONG))
        while not task.done():
            await asyncio.sleep(0)
            ticks += 1
        assert ticks > 20

    play(story)


def test_cancelling_one_call_aborts_its_requests_and_no_others() -> None:
    async def story(llm: MegatronAsyncLLM) -> None:
        doomed = asyncio.create_task(llm.generate(["ab", "cd"], LONG))
        other = asyncio.create_task(llm.generate("ef", LONG))
        await under_way(llm)
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        request = await other
        assert (request.status, request.generated_length) == (Status.COMPLETED, 200)
        assert llm.engine.num_tokens_generated < 600

    play(story)


def test_a_timeout_of_the_callers_own_frees_the_blocks() -> None:
    async def story(llm: MegatronAsyncLLM) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(llm.generate(["ab"] * 16, LONG), 0.05)
        await drained(llm)
        assert_nothing_is_left(llm.engine)

    play(story)


def test_a_streams_parts_make_the_whole() -> None:
    async def story(llm: MegatronAsyncLLM) -> None:
        params = SamplingParams(temperature=0.8, seed=5, max_tokens=40, return_log_probs=True)
        whole = await llm.generate("ab", params)
        items = [item async for item in llm.generate_stream("ab", params)]
        assert "".join(item.text for item in items) == whole.generated_text
        assert [token for item in items for token in item.token_ids] == whole.generated_tokens
        assert [value for item in items for value in item.log_probs or ()] == whole.generated_log_probs
        assert items[-1].finish_reason == whole.finish_reason

    play(story)


def test_a_slow_reader_gets_everything_in_bigger_pieces() -> None:
    async def story(llm: MegatronAsyncLLM) -> None:
        stream, tokens = llm.generate_stream("ab", LONG), []
        async for item in stream:
            tokens += item.token_ids
            await drained(llm)
        assert tokens == (await llm.generate("ab", LONG)).generated_tokens

    play(story)


def test_leaving_a_stream_early_aborts() -> None:
    async def story(llm: MegatronAsyncLLM) -> None:
        stream = llm.generate_stream("ab", LONG)
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]
        await drained(llm)
        assert llm.engine.num_tokens_generated < 200

    play(story)


def test_cancelling_a_streams_reader_aborts() -> None:
    async def story(llm: MegatronAsyncLLM) -> None:
        async def read() -> None:
            async for _ in llm.generate_stream("ab", LONG):
                await asyncio.sleep(0)

        task = asyncio.create_task(read())
        await under_way(llm)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await drained(llm)

    play(story)


def test_many_streams_at_once_do_not_mix() -> None:
    async def story(llm: MegatronAsyncLLM) -> None:
        async def read(prompt: str) -> str:
            return "".join([item.text async for item in llm.generate_stream(prompt, GREEDY)])

        texts = await asyncio.gather(*(read(chr(97 + number)) for number in range(16)))
        assert texts == ["".join(chr(98 + number + step) for step in range(6)) for number in range(16)]

    play(story, ScriptedWrapper())


def test_bad_requests_are_refused_before_anything_starts() -> None:
    async def story(llm: MegatronAsyncLLM) -> None:
        running = asyncio.create_task(llm.generate("ab", GREEDY))
        with pytest.raises(EmptyPromptError):
            await llm.generate(["ab", []], GREEDY)
        with pytest.raises(SamplingParamsError):
            await anext(llm.generate_stream("ab", SamplingParams(n=2)))
        with pytest.raises(ChatTemplateError):
            await llm.chat([{"role": "user", "content": "hello"}])
        assert (await running).generated_length == 6

    play(story)


def test_score_is_there_too() -> None:
    async def story(llm: MegatronAsyncLLM) -> None:
        assert len((await llm.score([1, 2, 3])).prompt_log_probs) == 2
        assert len(await llm.score([[1, 2, 3], [4, 5]])) == 2

    play(story)


def test_n_choices_are_all_waited_for() -> None:
    async def story(llm: MegatronAsyncLLM) -> None:
        request = await llm.generate("ab", SamplingParams(n=4, max_tokens=5))
        assert all(choice.is_finished for choice in request.choices)
        assert len(request.choices) == 4

    play(story)


def test_a_failing_step_ends_its_requests_and_others_go_on() -> None:
    async def story(llm: MegatronAsyncLLM) -> None:
        bad = await llm.generate("!", GREEDY)
        assert isinstance(bad.error, StepFailedError)
        assert (await llm.generate("a", GREEDY)).generated_text == "bcdefg"
        with pytest.raises(StepFailedError):
            _ = [item async for item in llm.generate_stream("!", GREEDY)]

    play(story, FailingWrapper())


def test_a_full_queue_is_an_error_of_that_call() -> None:
    async def story(llm: MegatronAsyncLLM) -> None:
        running = asyncio.create_task(llm.generate("ab", LONG))
        await under_way(llm)
        with pytest.raises(QueueFullError):
            await llm.generate(["ab"] * 9, GREEDY)
        assert (await running).generated_length == 200

    play(story, max_waiting_requests=4, max_requests=1)


def test_shutdown_with_requests_under_way_ends_each_once_with_the_reason() -> None:
    async def run() -> None:
        llm, reasons = make_async_llm(), []

        async def read() -> None:
            try:
                async for item in llm.generate_stream("ab", LONG):
                    reasons.append(item.finish_reason)
            except EngineClosedError as error:
                reasons.append(str(error))

        calls = [asyncio.create_task(llm.generate([f"{n}", "x"], LONG)) for n in range(20)]
        reader = asyncio.create_task(read())
        await under_way(llm)
        await llm.shutdown()
        for request in [request for call in calls for request in await asyncio.wait_for(call, 10)]:
            assert (request.status, request.finish_reason) == (Status.CANCELLED, "abort")
            assert isinstance(request.error, EngineClosedError)
        await asyncio.wait_for(reader, 10)
        assert [reason for reason in reasons if reason][:-1] == ["abort"]
        assert "shut down" in (reasons[-1] or "")

    asyncio.run(run())


def test_after_shutdown_every_call_says_so() -> None:
    async def run() -> None:
        llm = make_async_llm()
        await llm.shutdown()
        await llm.shutdown()
        for call in (llm.generate("a"), llm.score("ab"), anext(llm.generate_stream("a"))):
            with pytest.raises(EngineClosedError, match="shut down"):
                await call

    asyncio.run(run())


class BrokenScheduler:
    """Fails as no scheduler should, from the third step on."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._num_steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def plan_step(self, now: float) -> Any:
        self._num_steps += 1
        if self._num_steps > 2:
            raise AssertionError("two and two is five")
        return self._scheduler.plan_step(now)

    def abort(self, request_id: int) -> bool:
        raise AssertionError("and so is three and three")


def test_a_fault_of_the_engine_itself_leaves_nobody_waiting() -> None:
    async def run() -> None:
        llm = make_async_llm()
        llm.engine.scheduler = BrokenScheduler(llm.engine.scheduler)  # type: ignore[assignment]
        call = asyncio.create_task(llm.generate(["ab"] * 30, LONG))
        with pytest.raises((StepFailedError, EngineClosedError), match="two and two is five"):
            _ = [item async for item in llm.generate_stream("cd", LONG)]
        # Whether all thirty were in when the engine failed is a race; in or out, the caller hears why.
        try:
            errors = [request.error for request in await asyncio.wait_for(call, 10)]
        except EngineClosedError as error:
            errors = [error]
        assert all("two and two is five" in str(error) for error in errors)
        # The scheduler began anew; when it fails again, the engine gives up.
        with suppress(EngineClosedError):
            await asyncio.wait_for(llm.generate("late", GREEDY), 10)
        with pytest.raises(EngineClosedError, match="two and two is five"):
            await asyncio.wait_for(llm.generate("too late", GREEDY), 10)
        await asyncio.wait_for(llm.shutdown(), 10)

    asyncio.run(run())


def test_a_system_exit_inside_the_model_leaves_nobody_waiting() -> None:
    async def run() -> None:
        llm = make_async_llm()
        llm.controller.inference_wrapped_model = FailingWrapper(error=SystemExit(1))
        request = await asyncio.wait_for(llm.generate("!", GREEDY), 10)
        assert isinstance(request.error, EngineClosedError)
        await asyncio.wait_for(llm.shutdown(), 10)

    asyncio.run(run())


def test_a_loop_that_is_gone_does_not_hurt_the_engine() -> None:
    llm = make_async_llm()

    async def leave_behind() -> None:
        task = asyncio.create_task(llm.generate(["ab"] * 4, LONG))
        stream = llm.generate_stream("cd", LONG)
        await anext(stream)
        assert not task.done()

    for _ in range(3):
        asyncio.run(leave_behind())
        gc.collect()
    assert len(asyncio.run(llm.generate(["ab"], GREEDY))) == 1
    asyncio.run(llm.shutdown())


def test_the_thread_ends_with_shutdown() -> None:
    def engine_threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "kilotron-engine"}

    before = engine_threads()

    async def story(llm: MegatronAsyncLLM) -> None:
        assert len(engine_threads() - before) == 1

    play(story)
    assert engine_threads() <= before


def test_an_aborted_streams_reader_hears_of_it() -> None:
    async def story(llm: MegatronAsyncLLM) -> None:
        stream = llm.generate_stream("ab", LONG)
        await anext(stream)
        llm._mode._thread.abort(next(iter(llm.engine._requests)))
        with pytest.raises(RequestAbortedError):
            _ = [item async for item in stream]

    play(story)
