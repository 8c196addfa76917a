"""MegatronAsyncLLM: the asynchronous API. The engine runs in one background thread; callers await."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kilotron.apis.base_llm import BaseLLM, Conversation, Params
from kilotron.apis.pending_requests import PendingRequests
from kilotron.apis.prompts import as_prompts, chat_prompts, is_single_prompt, scoring_params
from kilotron.async_stream import AsyncStream
from kilotron.config import InferenceConfig
from kilotron.engines.engine_thread import EngineThread
from kilotron.engines.request_intake import Prompt
from kilotron.inference_request import InferenceRequest
from kilotron.models.gpt_model import GPTModel
from kilotron.models.weight_loading import OnProgress
from kilotron.sampling_params import SamplingParams
from kilotron.text_generation_controllers.stream_item import StreamItem
from kilotron.tokenization import Tokenizer


class MegatronAsyncLLM(BaseLLM):
    """Like `MegatronLLM`, for callers inside a running event loop; any number of calls may be under way at once.
    `engine`, `context` and `controller` belong to the background thread.

    Building it loads the model and blocks; all else is awaited. A single prompt gives a single request, a list of
    prompts a list. Cancelling a call aborts its requests.

    Example:
        >>> async with MegatronAsyncLLM() as llm:
        ...     request = await llm.generate("Once upon a time")
    """

    def __init__(
        self,
        model: str | Path | GPTModel | None = None,
        tokenizer: str | Path | Tokenizer | None = None,
        *,
        inference_config: InferenceConfig | None = None,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, tokenizer, inference_config=inference_config, on_progress=on_progress, **options)
        self._thread = EngineThread(self.engine)

    async def generate(
        self, prompts: Prompt | Sequence[Prompt], sampling_params: Params = None
    ) -> InferenceRequest | list[InferenceRequest]:
        """Continues one prompt (gives one request) or many (gives a list).

        Raises:
            InvalidRequestError: a prompt or its params are wrong; nothing was started.
            EngineClosedError: the engine was shut down.
        """
        requests = self.engine.build_all(as_prompts(prompts), sampling_params)
        await self._run(requests)
        return requests[0] if is_single_prompt(prompts) else requests

    async def generate_stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> AsyncIterator[StreamItem]:
        """Yields one prompt's continuation as it grows; leaving early aborts it.

        Raises:
            InvalidRequestError: the prompt or its params are wrong.
            KilotronError: the request failed.
        """
        request = self.engine.build_streaming(prompt, sampling_params)
        stream: AsyncStream[StreamItem] = AsyncStream(
            request.request_id, combine=StreamItem.followed_by, cancel=self._thread.abort
        )

        def listen(request: InferenceRequest, item: StreamItem) -> None:
            stream.put(item)
            if item.finish_reason is not None:
                stream.finish(request.error)

        self._thread.submit(request, listen, stream.finish)
        async for item in stream:
            yield item

    async def chat(
        self, messages: Conversation | Sequence[Conversation], sampling_params: Params = None, **variables: object
    ) -> InferenceRequest | list[InferenceRequest]:
        """Answers one conversation or many; `variables` go to the chat template.

        Raises:
            ChatTemplateError: the model has no chat template, or it refuses the messages.
        """
        prompts = chat_prompts(self.tokenizer, messages, variables)
        is_single = not isinstance(messages[0], Sequence)
        return await self.generate(prompts[0] if is_single else prompts, sampling_params)

    async def score(
        self, prompts: Prompt | Sequence[Prompt], *, top_n_logprobs: int = 0
    ) -> InferenceRequest | list[InferenceRequest]:
        """Log-probabilities of the prompts' own tokens, in `prompt_log_probs`."""
        return await self.generate(prompts, scoring_params(top_n_logprobs))

    async def shutdown(self) -> None:
        """Aborts what runs, ends the thread and gives the engine's memory back. Idempotent."""
        await asyncio.to_thread(self._thread.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()

    async def _run(self, requests: list[InferenceRequest]) -> None:
        """Submits and waits for all; whatever interrupts the wait aborts what is left."""
        pending = PendingRequests(requests)
        try:
            for request in requests:
                self._thread.submit(request, pending.listen, pending.refuse)
            await pending.wait()
        finally:
            for request_id in pending.unfinished_ids:
                self._thread.abort(request_id)
