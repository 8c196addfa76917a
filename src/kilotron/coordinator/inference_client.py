"""InferenceClient: a program's way to a running service: prompts in, futures and streams out, lifecycle verbs.

`CoordinatorConnection` carries it, `RemoteRequests` checks and runs the prompts.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Literal

from kilotron.config import KVMode
from kilotron.coordinator.coordinator_connection import CoordinatorConnection
from kilotron.coordinator.credentials import Credentials
from kilotron.coordinator.remote_requests import RemoteRequests
from kilotron.coordinator.wire import ServiceStatus
from kilotron.engines.request_intake import Prompt
from kilotron.errors import ServiceUnavailableError
from kilotron.inference_request import InferenceRequest
from kilotron.sampling_params import SamplingParams
from kilotron.text_generation_controllers.stream_item import StreamItem
from kilotron.tokenization import Tokenizer, load_tokenizer


class InferenceClient:
    """A client in one running event loop; any number of requests may be under way at once.

    Args:
        credentials: of the service: `MegatronLLM.credentials`, or `Credentials.from_file`.
        tokenizer: None loads the one that the engines name, which must then be on this machine.
        role: "client" may not use the lifecycle verbs.

    Example:
        >>> async def ask(credentials: Credentials) -> str:
        ...     async with InferenceClient(credentials) as client:
        ...         return (await client.add_request("Once upon a time")).generated_text
    """

    def __init__(
        self,
        credentials: Credentials,
        tokenizer: Tokenizer | None = None,
        *,
        role: Literal["client", "controller"] = "controller",
    ) -> None:
        self._connection = CoordinatorConnection(credentials, role)
        self._tokenizer = tokenizer
        self._requests: RemoteRequests | None = None

    @property
    def status(self) -> ServiceStatus:
        """The newest news of the service."""
        return self._connection.status

    async def start(self, *, connect_timeout_s: float = 60.0) -> None:
        """Connects and waits until an engine has loaded the model.

        Raises:
            TimeoutError: there is no coordinator, or no engine, by then.
            ProtocolError: the coordinator refuses this client.
        """
        await self._connection.start()
        try:
            await self._connection.wait_until(lambda _: self._connection.facts is not None, connect_timeout_s)
            self._requests = await self._prepare()
        except BaseException:
            await self._connection.close()
            raise

    def add_request(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> "asyncio.Future[InferenceRequest]":
        """Sends a prompt; the future's result is the finished request, and cancelling it aborts. A request that fails
        while it runs is a result with status FAILED and an `error`.

        Raises:
            InvalidRequestError: the prompt or its params are wrong; nothing was sent.
            ServiceUnavailableError: `start` has not been awaited.
        """
        requests = self._started()
        request = requests.build_all([prompt], sampling_params)[0]

        running = requests.start(request)

        async def finish() -> InferenceRequest:
            await running
            return request

        return asyncio.ensure_future(finish())

    def add_request_streaming(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> AsyncIterator[StreamItem]:
        """Yields the continuation as it grows; leaving early aborts it.

        Raises:
            InvalidRequestError: (when it is first read) the prompt or its params are wrong.
            KilotronError: the request failed.
        """
        return self._started().stream(prompt, sampling_params)

    async def pause_engines(self) -> None:
        """Stops all engines after the step at hand. Idempotent.

        Raises:
            LifecycleError: they are in a state that does not allow it.
        """
        await self._connection.control("pause")

    async def unpause_engines(self) -> None:
        """Lets paused engines go on. Idempotent.

        Raises:
            LifecycleError: they are suspended.
        """
        await self._connection.control("unpause")

    async def suspend_engines(self, kv_mode: KVMode = "persist") -> int:
        """Gives memory of paused engines back; returns how many bytes.

        Raises:
            LifecycleError: they are not paused.
        """
        return (await self._connection.control("suspend", kv_mode)).freed_bytes

    async def resume_engines(self) -> None:
        """Takes the memory again; the engines are paused then.

        Raises:
            LifecycleError: they are not suspended.
        """
        await self._connection.control("resume")

    async def stop(self) -> None:
        """Aborts what is under way and leaves; the service goes on. Idempotent."""
        await self._connection.close()

    async def __aenter__(self) -> "InferenceClient":
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    def _started(self) -> RemoteRequests:
        if self._requests is None:
            raise ServiceUnavailableError("the client is not connected; await start() first")
        return self._requests

    async def _prepare(self) -> RemoteRequests:
        facts = self._connection.facts
        if facts is None:
            raise ServiceUnavailableError("no engine has told what it serves")
        if self._tokenizer is None and facts.tokenizer is not None:
            self._tokenizer = await asyncio.to_thread(load_tokenizer, facts.tokenizer)
        return RemoteRequests(self._connection, facts, self._tokenizer)
