"""Coordinator mode: engines in processes of their own behind a coordinator; this process is a client of theirs.

A ready model, which cannot be sent anywhere, gets an engine in a thread of this process instead.
"""

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kilotron.apis.background_service import BackgroundService
from kilotron.apis.client_thread import ClientThread
from kilotron.apis.listening_socket import open_listening_socket, url_of
from kilotron.apis.process_configs import LogConfig
from kilotron.apis.progress import RequestProgressBar
from kilotron.apis.server_extra import require_server_extra
from kilotron.apis.service_specs import coordinator_spec, engine_specs, frontend_specs
from kilotron.async_stream import AsyncStream
from kilotron.config import InferenceConfig, KVMode, ServeConfig
from kilotron.coordinator.credentials import Credentials
from kilotron.coordinator.remote_requests import RemoteRequests
from kilotron.coordinator.supervision.run_folder import RunFolder
from kilotron.coordinator.wire import EngineFacts, Verb
from kilotron.engines.request_intake import Prompt
from kilotron.errors import ConfigError, EngineClosedError, KilotronError
from kilotron.inference_request import InferenceRequest
from kilotron.sampling_params import SamplingParams
from kilotron.text_generation_controllers.stream_item import StreamItem
from kilotron.tokenization import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from concurrent.futures import Future

    from kilotron.apis.assembly import Assembly
    from kilotron.apis.local_replica import LocalReplica
    from kilotron.models.gpt_model import GPTModel

Params = SamplingParams | Sequence[SamplingParams] | None
T = TypeVar("T")

_POLL_S = 0.05
# The processes belong to a program that has its own way to log.
_QUIET = LogConfig(level="WARNING")


class CoordinatorMode:
    """Starts coordinator and engines and waits until they take requests; `close` ends them all.

    Args:
        model: as for `MegatronLLM`.
        tokenizer: as for `MegatronLLM`.
        config: of each engine.
        serve: number of replicas, routing, queue limits.
        address: where the coordinator listens; None keeps it inside this machine.

    Raises:
        KilotronError: the service cannot be started; says why.
    """

    def __init__(
        self,
        model: "str | Path | GPTModel | None",
        tokenizer: str | Path | Tokenizer | None,
        config: InferenceConfig,
        serve: ServeConfig,
        address: str | None,
    ) -> None:
        _check_parts(model, tokenizer, serve)
        is_checkpoint = model is None or isinstance(model, str | Path)
        self._is_closed = False
        with ExitStack() as resources:  # whatever fails, nothing is left running
            folder = resources.enter_context(RunFolder.create())
            self.credentials = Credentials.create(address or f"ipc://{folder.socket_path('coordinator')}")
            specs = [coordinator_spec(self.credentials, serve, _QUIET)]
            if is_checkpoint:
                place, tokens = (None if part is None else str(part) for part in (model, tokenizer))
                specs += engine_specs(self.credentials, place, tokens, config, serve, _QUIET)
            self._service = BackgroundService(specs)
            resources.callback(self._service.close)
            self._local: LocalReplica | None = None
            if not is_checkpoint:
                from kilotron.apis import local_replica

                self._local = local_replica.LocalReplica(self.credentials, model, tokenizer, config)  # type: ignore[arg-type]
                resources.callback(self._local.close)
            self._client = ClientThread(self.credentials)
            resources.callback(self._client.close)
            self.facts = self._wait_until_ready(serve.data_parallel_size)
            self.tokenizer = self._load_tokenizer()
            self._requests = RemoteRequests(
                self._client.client, self.facts, self.tokenizer, random_seed=config.random_seed
            )
            self._resources = resources.pop_all()

    @property
    def assembly(self) -> "Assembly | None":
        """The parts of the engine in this process; None where the engines have processes of their own."""
        return None if self._local is None else self._local.assembly

    @property
    def default_sampling_params(self) -> SamplingParams:
        """The checkpoint's."""
        return SamplingParams.from_dict(self.facts.default_sampling)

    def generate(
        self, prompts: Sequence[Prompt], params: Params, *, show_progress: bool | None
    ) -> list[InferenceRequest]:
        """Returns when all have ended."""
        requests = self._checked(prompts, params)
        future = self.submit(self._requests.run_all(requests))
        try:
            with RequestProgressBar(self._requests, show_progress) as bar:
                while not future.done():
                    with suppress(TimeoutError):
                        future.result(_POLL_S)
                    bar.update()
            future.result()
        finally:
            future.cancel()
        return requests

    def generate_stream(self, prompt: Prompt, params: SamplingParams | None) -> Iterator[StreamItem]:
        """Yields as the engines send."""
        items: queue.SimpleQueue[StreamItem | KilotronError | None] = queue.SimpleQueue()
        self._check_open()
        future = self.submit(self._pump(prompt, params, items.put, items.put))
        try:
            while (item := items.get()) is not None:
                if isinstance(item, KilotronError):
                    raise item
                yield item
        finally:
            future.cancel()

    async def run(self, prompts: Sequence[Prompt], params: Params) -> list[InferenceRequest]:
        """`generate` for callers in an event loop; cancelling aborts."""
        requests = self._checked(prompts, params)
        await asyncio.wrap_future(self.submit(self._requests.run_all(requests)))
        return requests

    async def stream(self, prompt: Prompt, params: SamplingParams | None) -> AsyncIterator[StreamItem]:
        """`generate_stream` for callers in an event loop."""
        self._check_open()
        future: Future[None] | None = None

        def cancel(_: Any) -> None:
            if future is not None:
                future.cancel()

        stream: AsyncStream[StreamItem] = AsyncStream(0, combine=StreamItem.followed_by, cancel=cancel)
        future = self.submit(self._pump(prompt, params, stream.put, stream.finish))
        async for item in stream:
            yield item

    def control(self, verb: Verb, kv_mode: KVMode = "persist") -> int:
        """Applies a lifecycle verb to all replicas; returns the bytes of memory that it freed.

        Raises:
            LifecycleError: the state does not allow it.
        """
        self._check_open()
        return self._client.run(self._client.client.control(verb, kv_mode)).freed_bytes

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Runs a coroutine in the client's event loop."""
        return self._client.submit(coroutine)

    def serve(self, config: ServeConfig, *, blocking: bool) -> str:
        """Starts HTTP front ends and returns their URL, at once or when they have ended."""
        self._check_open()
        require_server_extra()
        from kilotron.apis.service import read_keys

        keys = read_keys(config)
        with open_listening_socket(config.host, config.port) as listener:
            url = url_of(listener, has_tls=config.tls_cert_file is not None)
            specs = frontend_specs(self.credentials, config, keys, listener.fileno(), _QUIET)
            fronts = BackgroundService(specs, drain_timeout_s=config.drain_timeout_s)
            self._resources.callback(fronts.close)
            fronts.wait_until_ready()
        if blocking:
            try:
                fronts.wait()
            finally:
                fronts.close()
        return url

    def wait(self) -> None:
        """Returns when the processes are gone."""
        self._service.wait()

    async def shutdown(self) -> None:
        """`close` for callers in an event loop."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Ends all processes and removes their folder. Idempotent."""
        self._is_closed = True
        self._resources.close()

    def _wait_until_ready(self, num_replicas: int) -> EngineFacts:
        client = self._client.client
        while not self._service.wait(_POLL_S / 5):
            num_ready = sum(replica.phase == "ready" for replica in client.status.replicas)
            if client.facts is not None and num_ready >= num_replicas:
                return client.facts
        raise self._service.failure()

    def _load_tokenizer(self) -> Tokenizer | None:
        if self._local is not None:
            return self._local.assembly.tokenizer
        return None if self.facts.tokenizer is None else load_tokenizer(self.facts.tokenizer)

    def _checked(self, prompts: Sequence[Prompt], params: Params) -> list[InferenceRequest]:
        self._check_open()
        return self._requests.build_all(prompts, params)

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineClosedError("the service was shut down; build a new one")

    async def _pump(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        put: Callable[[StreamItem], None],
        finish: Callable[[KilotronError | None], None],
    ) -> None:
        """Carries a stream out of the client's event loop."""
        failure: KilotronError | None = None
        try:
            async for item in self._requests.stream(prompt, params):
                put(item)
        except KilotronError as error:
            failure = error
        finish(failure)


def _check_parts(model: Any, tokenizer: Any, serve: ServeConfig) -> None:
    """Whether these can be given to processes."""
    if model is None or isinstance(model, str | Path):
        if tokenizer is not None and not isinstance(tokenizer, str | Path):
            raise ConfigError("with use_coordinator=True and a checkpoint, tokenizer must be a folder")
    elif serve.data_parallel_size > 1:
        raise ConfigError(
            f"data_parallel_size={serve.data_parallel_size}, but a ready model has one engine, in this process; give "
            "the checkpoint instead of the model"
        )
