"""RemoteRequests: prompts in, finished InferenceRequests out, when the engines are behind a ServiceClient.

The Python API's way through a coordinator; it checks prompts here, as an engine's own intake would. Knows no sockets.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence

from kilotron.coordinator.request_errors import from_wire
from kilotron.coordinator.service_client import OutputStream, ServiceClient
from kilotron.coordinator.submissions import limits_of, request_limits_of, take_in, to_submission
from kilotron.coordinator.wire import EngineFacts, Output
from kilotron.engines.request_intake import Prompt, RequestIntake, spread_params
from kilotron.errors import KilotronError, SamplingParamsError
from kilotron.inference_request import InferenceRequest, Status
from kilotron.sampling_params import SamplingParams
from kilotron.scheduling.capacity import check_capacity
from kilotron.text_generation_controllers.stream_item import StreamItem
from kilotron.text_generation_controllers.token_tables import complete_tables
from kilotron.tokenization.prompt_text import PlainPromptTokenizer
from kilotron.tokenization.tokenizer import Tokenizer


class RemoteRequests:
    """Runs requests through a client, in the client's event loop.

    Args:
        client: connected, its facts known.
        facts: of the model.
        tokenizer: None where prompts must be ids and results have no text.
        random_seed: seeds the seeds of requests that bring none.
    """

    def __init__(
        self,
        client: ServiceClient,
        facts: EngineFacts,
        tokenizer: Tokenizer | None,
        *,
        random_seed: int | None = None,
    ) -> None:
        self._client = client
        self._facts = facts
        self._tokenizer = tokenizer
        self._intake = RequestIntake(PlainPromptTokenizer(tokenizer), request_limits_of(facts), random_seed=random_seed)
        self._running: set[InferenceRequest] = set()
        self.num_tokens_generated = 0
        self.num_requests_finished = 0

    @property
    def num_unfinished_requests(self) -> int:
        """Requests of `run_all` that have not ended."""
        return len(self._running)

    def num_requests_done(self) -> float:
        """How much of them is done, in requests: nothing is known before they end."""
        return 0.0

    def build_all(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[InferenceRequest]:
        """Checks all prompts, starting none.

        Raises:
            InvalidRequestError: a prompt is wrong, or the numbers of prompts and params differ.
        """
        params = spread_params(sampling_params, prompts)
        requests = [self._intake.build(prompt, one) for prompt, one in zip(prompts, params, strict=True)]
        for request in requests:
            check_capacity(request, limits_of(self._facts), self._facts.num_blocks)
        return requests

    async def run_all(self, requests: Sequence[InferenceRequest]) -> None:
        """Returns when all have ended; one that failed has status FAILED and an `error`. Cancelling aborts them."""
        running = [self.start(request) for request in requests]
        try:
            await asyncio.gather(*running)
        finally:
            for one in running:
                one.cancel()

    def start(self, request: InferenceRequest) -> asyncio.Task[None]:
        """Sends one request, now. The task is done when it has ended, however it did; cancelling it aborts."""
        self._running.add(request)
        try:
            stream = self._submit(request)
        except KilotronError as error:
            _fail(request, error)
            self._end(request)
            return asyncio.create_task(asyncio.sleep(0))
        running = asyncio.create_task(self._collect(request, stream))

        def finish(_: asyncio.Task[None]) -> None:
            stream.leave()  # also when the task was cancelled before its first step
            self._end(request)

        running.add_done_callback(finish)
        return running

    async def stream(self, prompt: Prompt, sampling_params: SamplingParams | None) -> AsyncIterator[StreamItem]:
        """Yields one prompt's continuation as it grows; leaving early aborts it.

        Raises:
            InvalidRequestError: the prompt is wrong, or n is above 1.
            KilotronError: the request failed.
        """
        params = sampling_params or SamplingParams()
        if isinstance(params, SamplingParams) and params.n != 1:
            raise SamplingParamsError(f"a stream has one continuation, not n={params.n}; start one stream for each")
        request = self.build_all([prompt], params)[0]
        request.sampling_params.add_attributes({"streaming": True})
        stream = self._submit(request)
        try:
            async for outputs in stream:
                for output in outputs:
                    yield _to_item(output)
                    if output.finish is not None and output.finish.error is not None:
                        raise from_wire(output.finish.error)
        finally:
            await stream.aclose()

    async def _collect(self, request: InferenceRequest, stream: OutputStream) -> None:
        try:
            async for outputs in stream:
                for output in outputs:
                    take_in(request.choices[output.choice], output)
                    self.num_tokens_generated += len(output.token_ids)
        except KilotronError as error:
            _fail(request, error)

    def _submit(self, request: InferenceRequest) -> OutputStream:
        submission = to_submission(request, secrets.token_hex(16), block_size=self._facts.block_size)
        return self._client.submit(submission)

    def _end(self, request: InferenceRequest) -> None:
        self._running.discard(request)
        self.num_requests_finished += 1
        for choice in request.choices:
            if self._tokenizer is not None:  # what can be made from the ids here need not travel
                complete_tables(choice, self._tokenizer)
            if not choice.sampling_params.return_prompt_tokens:
                choice.prompt_tokens, choice.encoder_tokens = [], []


def _fail(request: InferenceRequest, error: KilotronError) -> None:
    for choice in request.choices:
        if not choice.is_finished:
            choice.status, choice.finish_reason, choice.error = Status.FAILED, "error", error


def _to_item(output: Output) -> StreamItem:
    return StreamItem(
        output.text,
        tuple(output.token_ids),
        None if output.log_probs is None else tuple(output.log_probs),
        None if output.top_n is None else tuple(output.top_n),
        None if output.finish is None else output.finish.reason,
    )
