"""Direct mode: the engine runs in this process, in the caller's thread or in one of its own."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from kilotron.apis.assembly import Assembly, assemble
from kilotron.apis.pending_requests import PendingRequests
from kilotron.apis.progress import RequestProgressBar
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

Params = SamplingParams | Sequence[SamplingParams] | None


class DirectMode:
    """What `MegatronLLM` does without a coordinator."""

    def __init__(
        self,
        model: str | Path | GPTModel | None,
        tokenizer: str | Path | Tokenizer | None,
        config: InferenceConfig,
        on_progress: OnProgress | None,
    ) -> None:
        self.assembly: Assembly = assemble(model, tokenizer, config, on_progress=on_progress)
        self._engine = self.assembly.engine

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The engine's."""
        return self.assembly.tokenizer

    @property
    def default_sampling_params(self) -> SamplingParams:
        """The checkpoint's."""
        return self.assembly.default_sampling_params

    def generate(
        self, prompts: Sequence[Prompt], params: Params, *, show_progress: bool | None
    ) -> list[InferenceRequest]:
        """Runs the engine until all have ended."""
        with RequestProgressBar(self._engine, show_progress) as bar:
            return self._engine.generate(prompts, params, on_step=bar.update)

    def generate_stream(self, prompt: Prompt, params: SamplingParams | None) -> Iterator[StreamItem]:
        """Runs the engine as the caller reads."""
        return self._engine.generate_stream(prompt, params)

    def close(self) -> None:
        """Idempotent."""
        self._engine.close()


class AsyncDirectMode(DirectMode):
    """What `MegatronAsyncLLM` does without a coordinator: the engine belongs to a background thread."""

    def __init__(
        self,
        model: str | Path | GPTModel | None,
        tokenizer: str | Path | Tokenizer | None,
        config: InferenceConfig,
        on_progress: OnProgress | None,
    ) -> None:
        super().__init__(model, tokenizer, config, on_progress)
        self._thread = EngineThread(self._engine)

    async def run(self, prompts: Sequence[Prompt], params: Params) -> list[InferenceRequest]:
        """Submits and waits for all; whatever interrupts the wait aborts what is left."""
        requests = self._engine.build_all(prompts, params)
        pending = PendingRequests(requests)
        try:
            for request in requests:
                self._thread.submit(request, pending.listen, pending.refuse)
            await pending.wait()
        finally:
            for request_id in pending.unfinished_ids:
                self._thread.abort(request_id)
        return requests

    async def stream(self, prompt: Prompt, params: SamplingParams | None) -> AsyncIterator[StreamItem]:
        """Yields one request's output; leaving early aborts it."""
        request = self._engine.build_streaming(prompt, params)
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

    async def shutdown(self) -> None:
        """Idempotent."""
        await asyncio.to_thread(self._thread.close)
