"""CoordinatorConnection: a front end's connection to a coordinator, in an asyncio event loop.

Requests go out as submissions and come back as streams; whatever happens to coordinator or engines, every stream ends.
Knows nothing of HTTP, text or tokens.
"""

import asyncio
import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, TypeVar

from kilotron.async_stream import AsyncStream
from kilotron.config import KVMode
from kilotron.coordinator.credentials import Credentials
from kilotron.coordinator.request_errors import from_wire
from kilotron.coordinator.service_client import OutputStream, join_batches
from kilotron.coordinator.sockets import DealerSocket
from kilotron.coordinator.wire import (
    CLIENT_DECODER,
    PROTOCOL_VERSION,
    Abort,
    AbortById,
    ClientOutput,
    ClientPulse,
    Control,
    ControlAnswer,
    EngineFacts,
    Failure,
    Farewell,
    Hello,
    Message,
    MetricsAnswer,
    MetricsQuery,
    Output,
    ServiceStatus,
    Submission,
    TimelineAnswer,
    TimelineQuery,
    Unwelcome,
    Verb,
    Welcome,
    encode,
)
from kilotron.errors import (
    EngineDiedError,
    InvalidRequestError,
    KilotronError,
    ProtocolError,
    ServiceUnavailableError,
)

_log = logging.getLogger(__name__)

_HELLO_PERIOD_S = 0.1
_LONGEST_PULSE_PERIOD_S = 1.0
# A query is answered at once by a coordinator that lives; a verb waits for the steps of all replicas.
_QUERY_TIMEOUT_S = 5.0
_CONTROL_TIMEOUT_S = 300.0
_RETRY_AFTER_S = 2.0

A = TypeVar("A", bound=Message)

NOBODY = ServiceStatus(state="running", replicas=[], facts=None, num_queued=0, num_in_flight=0)
"""What is known while there is no coordinator."""


class _Pending:
    """A request under way."""

    __slots__ = ("num_forwarded", "num_left", "stream")

    def __init__(self, stream: OutputStream, num_choices: int) -> None:
        self.stream = stream
        self.num_left = num_choices
        self.num_forwarded = [0] * num_choices


class CoordinatorConnection:
    """See `ServiceClient`. `start` connects; leave with `close`.

    Args:
        credentials: of the service.
        role: "controller" to use lifecycle verbs.

    Example:
        >>> client = CoordinatorConnection(credentials)
        >>> await client.start()
        >>> async for outputs in client.submit(submission): ...
    """

    def __init__(self, credentials: Credentials, role: Literal["client", "controller"] = "client") -> None:
        self._credentials = credentials
        self._role: Literal["client", "controller"] = role
        self._incarnation = secrets.token_hex(16)
        self._socket: DealerSocket | None = None
        self._coordinator: Welcome | None = None
        self._coordinator_pidfd: int | None = None
        self._status = NOBODY
        self._facts: EngineFacts | None = None
        self._last_heard = 0.0
        self._pending: dict[str, _Pending] = {}
        self._answers: dict[str, asyncio.Future[Any]] = {}
        self._counters: Counter[str] = Counter()
        self._refusal: str | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    @property
    def status(self) -> ServiceStatus:
        """See `ServiceClient`."""
        return self._status

    @property
    def facts(self) -> EngineFacts | None:
        """See `ServiceClient`."""
        return self._facts

    async def start(self) -> None:
        """Begins to connect, and keeps at it; requests are refused until there is a coordinator."""
        loop = asyncio.get_running_loop()
        self._socket = DealerSocket(self._credentials)
        loop.add_reader(self._socket.fd, self._receive_all)
        self._ticker = loop.create_task(self._tick())

    async def wait_for_change(self) -> None:
        """Returns after the next news from the coordinator, or its loss."""
        self._changed.clear()
        await self._changed.wait()

    async def wait_until(self, is_so: Callable[[ServiceStatus], bool], timeout_s: float) -> ServiceStatus:
        """Waits for a status.

        Raises:
            TimeoutError: it did not come.
            ProtocolError: the coordinator refuses this client.
        """
        async with asyncio.timeout(timeout_s):
            while True:
                self._changed.clear()
                if self._refusal is not None:
                    raise ProtocolError(f"the coordinator refuses this client: {self._refusal}")
                if self._coordinator is not None and is_so(self._status):
                    return self._status
                await self._changed.wait()

    def submit(self, submission: Submission) -> OutputStream:
        """See `ServiceClient`."""
        if self._coordinator is None:
            raise ServiceUnavailableError("the service is starting or recovering; try again soon", _RETRY_AFTER_S)
        stream: OutputStream = AsyncStream(submission.request_id, combine=join_batches, cancel=self._cancel)
        try:
            is_sent = self._send(submission)
        except (TypeError, ProtocolError) as error:
            raise InvalidRequestError(f"the request cannot be sent: {error}") from error
        if not is_sent:
            raise ServiceUnavailableError("the coordinator takes no more requests now", _RETRY_AFTER_S)
        self._pending[submission.request_id] = _Pending(stream, submission.params.get("n", 1))
        return stream

    async def abort_by_id(self, request_id: str, owner: str | None) -> None:
        """See `ServiceClient`."""
        nonce = secrets.token_hex(8)
        answer = await self._ask(AbortById(nonce, request_id, owner), nonce, ControlAnswer, _QUERY_TIMEOUT_S)
        if answer.error is not None:
            raise from_wire(answer.error)

    async def control(self, verb: Verb, kv_mode: KVMode = "persist") -> ControlAnswer:
        """See `ServiceClient`."""
        nonce = secrets.token_hex(8)
        answer = await self._ask(Control(nonce, verb, kv_mode), nonce, ControlAnswer, _CONTROL_TIMEOUT_S)
        if answer.error is not None:
            raise from_wire(answer.error)
        return answer

    async def read_metrics(self) -> MetricsAnswer:
        """See `ServiceClient`."""
        nonce = secrets.token_hex(8)
        return await self._ask(MetricsQuery(nonce), nonce, MetricsAnswer, _QUERY_TIMEOUT_S)

    async def read_timeline(self, request_id: str) -> list[dict[str, Any]] | None:
        """See `ServiceClient`."""
        nonce = secrets.token_hex(8)
        answer = await self._ask(TimelineQuery(nonce, request_id), nonce, TimelineAnswer, _QUERY_TIMEOUT_S)
        return answer.timeline

    def count(self, name: str, amount: int = 1) -> None:
        """See `ServiceClient`."""
        self._counters[name] += amount

    def abort_all(self, error: KilotronError) -> None:
        """Ends everything that is under way, with this error for whoever reads it."""
        for request_id in list(self._pending):
            self._send(Abort(request_id))
            self._end(request_id, error)

    async def close(self) -> None:
        """Aborts what is under way and leaves. Idempotent."""
        if self._ticker is None or self._socket is None:
            return
        self._ticker.cancel()
        self._ticker = None
        closed = ServiceUnavailableError("this client was closed")
        self.abort_all(closed)
        self._send(Farewell())
        self._lose(closed)
        asyncio.get_running_loop().remove_reader(self._socket.fd)
        self._socket.close(linger_ms=200)

    async def _tick(self) -> None:
        """Says Hello until it is answered, then shows that this client lives, and watches the coordinator do so."""
        while True:
            self._receive_all()
            if self._coordinator is None:
                token = self._credentials.token(self._role)
                self._send(Hello(PROTOCOL_VERSION, self._role, token, self._incarnation, os.getpid()))
                await asyncio.sleep(_HELLO_PERIOD_S)
                continue
            self._send(ClientPulse(list(self._pending), dict(self._counters)))
            if time.monotonic() - self._last_heard > 2 * self._coordinator.heartbeat_s:
                self._lose(self._death())
                continue
            await asyncio.sleep(min(self._coordinator.heartbeat_s / 4, _LONGEST_PULSE_PERIOD_S))

    def _send(self, message: Message) -> bool:
        is_sent = self._socket is not None and self._socket.send(encode(message))
        # Sending may swallow the edge that tells of messages to read.
        asyncio.get_running_loop().call_soon(self._receive_all)
        return is_sent

    def _receive_all(self) -> None:
        while self._socket is not None and self._ticker is not None and (frame := self._socket.receive()) is not None:
            self._last_heard = time.monotonic()
            try:
                self._take(CLIENT_DECODER.decode(frame))
            except ProtocolError as error:
                _log.warning("a message of the coordinator is dropped: %s", error)

    def _take(self, message: Message) -> None:
        match message:
            case ClientOutput(outputs):
                self._hand_out(outputs)
            case ServiceStatus():
                self._status = message
                self._facts = message.facts or self._facts
                self._changed.set()
            case Failure(request_id, error):
                self._end(request_id, from_wire(error))
            case ControlAnswer(nonce) | MetricsAnswer(nonce) | TimelineAnswer(nonce):
                answer = self._answers.pop(nonce, None)
                if answer is not None and not answer.done():
                    answer.set_result(message)
            case Welcome():
                self._welcome(message)
            case Unwelcome(reason, text):
                self._lose(self._death())
                self._refusal = None if reason == "hello" else text
                self._changed.set()

    def _hand_out(self, outputs: list[Output]) -> None:
        batches: dict[str, list[Output]] = {}
        for output in outputs:
            batches.setdefault(output.request_id, []).append(output)
        for request_id, batch in batches.items():
            pending = self._pending.get(request_id)
            if pending is None:
                continue
            for output in batch:
                if output.offset != pending.num_forwarded[output.choice]:
                    self._send(Abort(request_id))
                    self._end(request_id, EngineDiedError("a part of the output was lost on the way"))
                    break
                pending.num_forwarded[output.choice] += len(output.token_ids)
                pending.num_left -= output.finish is not None
            else:
                pending.stream.put(batch)
                if pending.num_left == 0:
                    self._end(request_id, None)

    def _end(self, request_id: str, error: KilotronError | None) -> None:
        pending = self._pending.pop(request_id, None)
        if pending is not None:
            pending.stream.finish(error)

    def _cancel(self, request_id: str) -> None:
        """The stream's reader has left."""
        if self._pending.pop(request_id, None) is not None:
            self._send(Abort(request_id))

    async def _ask(self, message: Message, nonce: str, kind: type[A], timeout_s: float) -> A:
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._answers[nonce] = answer
        try:
            if self._coordinator is None or not self._send(message):
                raise ServiceUnavailableError("the service is starting or recovering; try again soon", _RETRY_AFTER_S)
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise ServiceUnavailableError(f"the coordinator did not answer within {timeout_s:g} s") from None
        finally:
            self._answers.pop(nonce, None)

    def _welcome(self, welcome: Welcome) -> None:
        if self._coordinator is not None and self._coordinator.incarnation != welcome.incarnation:
            self._lose(self._death())
        self._forget_pidfd()
        self._coordinator, self._refusal = welcome, None
        if welcome.pid:
            # Where the coordinator runs on this host, its death is known the moment it happens.
            with suppress(OSError):
                self._coordinator_pidfd = os.pidfd_open(welcome.pid)
                asyncio.get_running_loop().add_reader(self._coordinator_pidfd, self._lose_to_death)
        self._changed.set()

    def _lose_to_death(self) -> None:
        self._lose(self._death())

    def _lose(self, error: KilotronError) -> None:
        """There is no coordinator any more: nothing that is under way will get an answer."""
        self._forget_pidfd()
        self._coordinator, self._status = None, NOBODY
        for request_id in list(self._pending):
            self._end(request_id, error)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(error)
        self._answers.clear()
        self._changed.set()

    def _death(self) -> KilotronError:
        return ServiceUnavailableError("the coordinator died while the request was under way", _RETRY_AFTER_S)

    def _forget_pidfd(self) -> None:
        if self._coordinator_pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._coordinator_pidfd)
            os.close(self._coordinator_pidfd)
            self._coordinator_pidfd = None
