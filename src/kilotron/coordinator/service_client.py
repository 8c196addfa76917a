"""ServiceClient: what a front end needs of the engines behind it, wherever they are."""

from typing import Any, Protocol, TypeAlias

from kilotron.async_stream import AsyncStream
from kilotron.config import KVMode
from kilotron.coordinator.submissions import join_outputs
from kilotron.coordinator.wire import (
    ControlAnswer,
    EngineFacts,
    MetricsAnswer,
    Output,
    ServiceStatus,
    Submission,
    Verb,
)

OutputStream: TypeAlias = AsyncStream[list[Output]]
"""Pieces of output of all continuations of one request, as they come. Ends after the last continuation's last piece, or
raises the KilotronError that ended the request. Leaving it early aborts the request."""


class ServiceClient(Protocol):
    """`CoordinatorConnection` (over ZMQ) and `LocalClient` (an engine in this process). Used in one event loop."""

    @property
    def status(self) -> ServiceStatus:
        """The newest news of the service: state, replicas, queue. Kept up to date by itself."""

    @property
    def facts(self) -> EngineFacts | None:
        """The model and its limits; None until a replica has loaded it for the first time."""

    def submit(self, submission: Submission) -> OutputStream:
        """Sends a request; refusals come out of the stream as its error.

        Raises:
            ServiceUnavailableError: there is nobody to send it to.
        """

    async def abort_by_id(self, request_id: str, owner: str | None) -> None:
        """Ends a request of that owner, or of anybody (None).

        Raises:
            RequestNotFoundError: no such request is under way, or it is somebody else's.
        """

    async def control(self, verb: Verb, kv_mode: KVMode = "persist") -> ControlAnswer:
        """Applies a lifecycle verb to all replicas and returns when it has taken effect.

        Raises:
            LifecycleError: it is not possible in the state that the service is in.
            ServiceUnavailableError: there is nobody to ask.
        """

    async def read_metrics(self) -> MetricsAnswer:
        """All figures, over all replicas and clients.

        Raises:
            ServiceUnavailableError: there is nobody to ask.
        """

    async def read_timeline(self, request_id: str) -> list[dict[str, Any]] | None:
        """What happened to a request, or None when nobody remembers it."""

    def count(self, name: str, amount: int = 1) -> None:
        """Adds to a counter that only this client knows, such as "http_responses/200"."""


def join_batches(earlier: list[Output], later: list[Output]) -> list[Output]:
    """Unread pieces put together, one for each continuation."""
    joined = {output.choice: output for output in earlier}
    for output in later:
        before = joined.get(output.choice)
        joined[output.choice] = output if before is None else join_outputs(before, output)
    return list(joined.values())
