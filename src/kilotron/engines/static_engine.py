"""StaticInferenceEngine: Megatron's static engine. Batches of requests, each run out before the next one begins.

Its loop is a `DynamicInferenceEngine` with a scheduler that fills a batch and a context of contiguous rows, so that a
request has the tokens here that it has there. What is Megatron's is the front: pools, request ids, streams by id.
"""

import asyncio
import copy
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace

from kilotron.engines.abstract_engine import AbstractEngine
from kilotron.engines.default_parts import attached_context, default_limits, make_intake
from kilotron.engines.dynamic_engine import DynamicInferenceEngine
from kilotron.engines.interruption import run_uninterrupted
from kilotron.engines.prompt_pairs import pair_prompt, pair_prompts
from kilotron.engines.request_intake import Prompt, spread_params
from kilotron.engines.request_stream import RequestStream
from kilotron.errors import InvalidRequestError, RequestNotFoundError
from kilotron.inference_request import InferenceRequest, Status
from kilotron.sampling_params import SamplingParams
from kilotron.scheduling.request_pools import RequestPools
from kilotron.scheduling.static_scheduler import StaticScheduler
from kilotron.text_generation_controllers.stream_item import StreamItem
from kilotron.text_generation_controllers.text_generation_controller import TextGenerationController

Params = SamplingParams | Sequence[SamplingParams] | None


class StaticInferenceEngine(AbstractEngine):
    """A model behind Megatron's static interface. `MCoreEngine` is another name of it.

    Args:
        text_generation_controller: runs the model and samples. It belongs to this engine from now on.
        max_batch_size: most requests in a batch; None takes what the wrapper's context or config says, or 8.
        random_seed: seeds the draw of seeds for requests that bring none; None takes the system's randomness.
        max_sequence_length: most tokens of prompt and output; None takes what the wrapper's context or config says,
            or else the model's, as far as `buffer_size_gb` allows.
        buffer_size_gb: most memory of the KV cache when nobody says a length; half of the free memory if that is less.
        legacy: Megatron's choice between two loops; without effect here, where there is one.

    Raises:
        ConfigError: the sizes contradict the model, the wrapper's context or the memory.
    """

    def __init__(
        self,
        text_generation_controller: TextGenerationController,
        max_batch_size: int | None = None,
        random_seed: int | None = None,
        *,
        max_sequence_length: int | None = None,
        buffer_size_gb: float | None = None,
        legacy: bool = False,
    ) -> None:
        self.controller = text_generation_controller
        model = text_generation_controller.inference_wrapped_model
        self.context = attached_context(model, max_batch_size, max_sequence_length, buffer_size_gb)
        limits = replace(default_limits(self.context), enable_prefix_caching=False)
        self.loop = DynamicInferenceEngine(
            text_generation_controller,
            self.context,
            scheduler=StaticScheduler(limits, self.context.blocks_per_row),
            intake=make_intake(text_generation_controller, self.context, random_seed),
        )
        """The engine that runs the steps."""
        self.scheduler = RequestPools(
            self.context.max_batch_size, on_abort=self._abort, new_id=self.loop.intake.get_new_request_id
        )
        self._streams: dict[int, RequestStream] = {}
        self._running = threading.RLock()

    @property
    def text_generation_controller(self) -> TextGenerationController:
        """Megatron's name of `controller`."""
        return self.controller

    def add_request(
        self,
        prompt: Prompt | None = None,
        *,
        add_BOS: bool = False,  # noqa: N803 - Megatron's spelling
        encoder_prompt: str | Sequence[int] | None = None,
        sampling_params: SamplingParams | None = None,
        streaming: bool = False,
        inference_request: InferenceRequest | None = None,
    ) -> int:
        """Checks a request, puts it into the pools and returns its id; `run_engine` computes it.

        Args:
            prompt: text or token ids. An encoder-decoder model's encoder reads it, unless there is an `encoder_prompt`.
            add_BOS: put the begin-of-sequence id in front of a text that does not start with it.
            encoder_prompt: what the encoder reads; then the decoder begins with `prompt`, which may be left out.
            sampling_params: None takes the defaults.
            streaming: `get_stream_generator(id)` will be read; needs a running event loop.
            inference_request: a request of your own making, instead of the other arguments; it is filled in.

        Raises:
            InvalidRequestError: the request is wrong or can never run.
        """
        if encoder_prompt is not None:
            prompt = pair_prompt(prompt, encoder_prompt)
        request = self._build(prompt, sampling_params, inference_request, add_BOS=add_BOS, streaming=streaming)
        if streaming:
            self._streams[request.request_id] = RequestStream(request.request_id, self._leave_stream)
        return self.scheduler.add_request(inference_request=request)

    async def get_stream_generator(self, request_id: int) -> AsyncGenerator[InferenceRequest, None]:
        """The request as it grows, token by token: copies of it, the last one finished. For one reader, once.

        Leaving early aborts the request.

        Raises:
            RequestNotFoundError: (from the iteration) it was not added with `streaming=True`, or was read to its end.
            KilotronError: (from the iteration) what the request failed with.
        """
        stream = self._streams.get(request_id)
        if stream is None:
            raise RequestNotFoundError(f"request {request_id} has no stream; add it with streaming=True, read it once")
        try:
            async with aclosing(stream.generator()) as snapshots:
                async for snapshot in snapshots:
                    yield snapshot
        finally:
            self._streams.pop(request_id, None)

    def abort_request(self, request_id: int) -> None:
        """Ends a request now, whatever it is doing.

        Raises:
            RequestNotFoundError: it ended before, or never was.
        """
        self._end_stream(self.scheduler.abort_request(request_id))

    def generate(
        self,
        prompts: Sequence[Prompt] = (),
        sampling_params: Params = None,
        *,
        add_BOS: bool = False,  # noqa: N803
        encoder_prompts: Sequence[str | Sequence[int]] | None = None,
        common_inference_params: Params = None,
        inference_requests: Sequence[InferenceRequest] | None = None,
    ) -> list[InferenceRequest]:
        """Generates for all prompts and returns one request per prompt, in order.

        Every prompt is checked before the first is started. A request that fails while running is returned with
        status FAILED and its `error`. Interrupting aborts what is left. Other requests in the pools are run too.

        Args:
            prompts: texts or token ids.
            sampling_params: one for all, or one per prompt.
            add_BOS: put the begin-of-sequence id in front of texts that do not start with it.
            encoder_prompts: one for each prompt, or without prompts; see `add_request`.
            common_inference_params: Megatron's older name of `sampling_params`.
            inference_requests: requests of your own making, instead of the other arguments; they are filled in.

        Raises:
            InvalidRequestError: a prompt is wrong; nothing was started.
        """
        if encoder_prompts is not None:
            prompts = pair_prompts(prompts, encoder_prompts)
        if inference_requests is not None:
            requests = [self._build(None, None, request, add_BOS=add_BOS) for request in inference_requests]
        else:
            params = spread_params(common_inference_params if sampling_params is None else sampling_params, prompts)
            pairs = zip(prompts, params, strict=True)
            requests = [self._build(prompt, one, None, add_BOS=add_BOS) for prompt, one in pairs]
        for request in requests:
            self.scheduler.add_request(inference_request=request)
        try:
            self.run_engine()
        finally:
            for request in requests:
                self._leave_stream(request.request_id)
                self.scheduler.completed_request_pool.pop(request.request_id, None)
        return requests

    def run_engine(self) -> None:
        """Runs batch after batch until no request is pending. The results are in `scheduler.completed_request_pool`.

        Interrupted, it aborts the batch at hand.
        """
        with self._running:
            while self.scheduler.have_requests_pending():
                self._run_batch(list(self.scheduler.active_request_pool.values()))

    async def run_engine_async(self) -> None:
        """The same in a thread of its own, for streams to be read meanwhile."""
        await asyncio.to_thread(self.run_engine)

    def close(self, reason: str = "it was shut down") -> None:
        """Ends all requests and gives the KV cache back. Idempotent."""
        self.loop.close(reason)

    def _build(
        self,
        prompt: Prompt | None,
        sampling_params: SamplingParams | None,
        given: InferenceRequest | None,
        *,
        add_BOS: bool,  # noqa: N803
        streaming: bool = False,
    ) -> InferenceRequest:
        """A request that is checked and numbered."""
        if given is not None:
            encoder_prompt = given.encoder_tokens or given.encoder_prompt
            prompt = pair_prompt(given.prompt_tokens or given.prompt, encoder_prompt)
            sampling_params = given.sampling_params
        if prompt is None:
            raise InvalidRequestError("give a prompt or an inference_request")
        params = copy.copy(sampling_params) if sampling_params is not None else SamplingParams()
        if isinstance(params, SamplingParams):
            params.add_attributes({"add_BOS": add_BOS or params.add_BOS, "streaming": streaming or params.streaming})
        request = self.loop.build_all([prompt], params)[0]
        if given is None:
            return request
        # Ids of others' making could clash.
        given.request_id = request.request_id
        return _filled_in(given, request)

    def _run_batch(self, batch: list[InferenceRequest]) -> None:
        started: list[InferenceRequest] = []
        try:
            for request in batch:
                self._start(request)
                started += request.choices
            while any(not choice.is_finished for choice in started):
                run_uninterrupted(self.loop.step)
        finally:
            for request in batch:
                self._abort(request)
                self._end_stream(request)
            self.scheduler.update_requests_pools({request.request_id: request for request in batch})

    def _start(self, request: InferenceRequest) -> None:
        """Hands a request over to the loop; one that was put into the pools unchecked may fail."""
        try:
            if not request.choices:
                _filled_in(request, self._build(None, None, copy.copy(request), add_BOS=False))
            self.loop.add_request(request, listener=self._listen)
        except InvalidRequestError as error:
            if request.is_finished:  # an abort was quicker
                return
            for choice in request.choices or [request]:
                choice.status, choice.finish_reason, choice.error = Status.FAILED, "error", error

    def _abort(self, request: InferenceRequest) -> None:
        """Stops computing a request; nothing if it has ended."""
        for choice in request.choices:
            with suppress(RequestNotFoundError):
                self.loop.abort(choice.request_id)

    def _listen(self, request: InferenceRequest, item: StreamItem) -> None:
        stream = self._streams.get(request.request_id)
        if stream is not None:
            stream.put(request, item)

    def _end_stream(self, request: InferenceRequest) -> None:
        stream = self._streams.get(request.request_id)
        if stream is not None:
            stream.finish(request)

    def _leave_stream(self, request_id: int) -> None:
        """The reader has gone, maybe just as the request ended."""
        with suppress(RequestNotFoundError):
            self.scheduler.abort_request(request_id)


MCoreEngine = StaticInferenceEngine
"""Megatron's older name."""


def _filled_in(given: InferenceRequest, built: InferenceRequest) -> InferenceRequest:
    """A caller's request with what the checked one has."""
    for name in (
        "prompt_tokens",
        "encoder_tokens",
        "sampling_params",
        "max_generated",
        "seed",
        "end_ids",
        "bad_word_ids",
    ):
        setattr(given, name, getattr(built, name))
    given.choices = built.choices
    given.choices[0] = given
    return given
