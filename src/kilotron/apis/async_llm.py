"""MegatronAsyncLLM: the asynchronous API. The engine runs in one background thread, or elsewhere; callers await."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kilotron.apis.base_llm import BaseLLM, Conversation, Params
from kilotron.apis.prompts import (
    chat_prompts,
    is_single_prompt,
    scoring_params,
    with_encoder_prompts,
)
from kilotron.config import InferenceConfig, KVMode, ServeConfig
from kilotron.engines.prompt_pairs import pair_prompt
from kilotron.engines.request_intake import Prompt
from kilotron.inference_request import InferenceRequest
from kilotron.sampling_params import SamplingParams
from kilotron.text_generation_controllers.stream_item import StreamItem
from kilotron.tokenization import Tokenizer

if TYPE_CHECKING:
    from kilotron.apis.coordinator_mode import CoordinatorMode
    from kilotron.apis.direct_mode import AsyncDirectMode
    from kilotron.models.gpt_model import GPTModel
    from kilotron.models.weight_loading import OnProgress


class MegatronAsyncLLM(BaseLLM):
    """Like `MegatronLLM`, for callers inside a running event loop; any number of calls may be under way at once.
    `engine`, `context` and `controller` belong to the background thread.

    Building it loads the model and blocks; all else is awaited. A single prompt gives a single request, a list of
    prompts a list. Cancelling a call aborts its requests.

    Example:
        >>> async with MegatronAsyncLLM() as llm:
        ...     request = await llm.generate("Once upon a time")
    """

    _mode: "AsyncDirectMode | CoordinatorMode"

    def _open_directly(
        self,
        model: "str | Path | GPTModel | None",
        tokenizer: str | Path | Tokenizer | None,
        config: InferenceConfig,
        on_progress: "OnProgress | None",
    ) -> "AsyncDirectMode":
        from kilotron.apis.direct_mode import AsyncDirectMode

        return AsyncDirectMode(model, tokenizer, config, on_progress)

    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None,
        sampling_params: Params = None,
        *,
        encoder_prompts: Prompt | Sequence[Prompt] | None = None,
    ) -> InferenceRequest | list[InferenceRequest]:
        """Continues one prompt (gives one request) or many (gives a list); see `MegatronLLM.generate`.

        Raises:
            InvalidRequestError: a prompt or its params are wrong; nothing was started.
            EngineClosedError: the engine was shut down.
        """
        requests = await self._mode.run(with_encoder_prompts(prompts, encoder_prompts), sampling_params)
        return requests[0] if is_single_prompt(encoder_prompts if prompts is None else prompts) else requests

    async def generate_stream(
        self,
        prompt: Prompt | None,
        sampling_params: SamplingParams | None = None,
        *,
        encoder_prompt: Prompt | None = None,
    ) -> AsyncIterator[StreamItem]:
        """Yields one prompt's continuation as it grows; leaving early aborts it. For prompts see `generate`.

        Raises:
            InvalidRequestError: the prompt or its params are wrong.
            KilotronError: the request failed.
        """
        async for item in self._mode.stream(pair_prompt(prompt, encoder_prompt), sampling_params):
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

    async def pause(self) -> None:
        """See `MegatronLLM.pause`."""
        await asyncio.to_thread(self._coordinator("pause").control, "pause")

    async def unpause(self) -> None:
        """See `MegatronLLM.unpause`."""
        await asyncio.to_thread(self._coordinator("unpause").control, "unpause")

    async def suspend(self, kv_mode: KVMode = "persist") -> int:
        """See `MegatronLLM.suspend`."""
        return await asyncio.to_thread(self._coordinator("suspend").control, "suspend", kv_mode)

    async def resume(self) -> None:
        """See `MegatronLLM.resume`."""
        await asyncio.to_thread(self._coordinator("resume").control, "resume")

    async def serve(self, config: ServeConfig | None = None, *, blocking: bool = True) -> str:
        """See `MegatronLLM.serve`."""
        return await asyncio.to_thread(self._coordinator("serve").serve, config or ServeConfig(), blocking=blocking)

    async def wait_for_shutdown(self) -> None:
        """See `MegatronLLM.wait_for_shutdown`."""
        await asyncio.to_thread(self._coordinator("wait_for_shutdown").wait)

    async def shutdown(self) -> None:
        """Aborts what runs, ends thread and processes and gives all memory back. Idempotent."""
        await self._mode.shutdown()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()
