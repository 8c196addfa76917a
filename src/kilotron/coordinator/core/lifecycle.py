"""Lifecycle: the state table of a service, RUNNING, PAUSED and SUSPENDED.

One table for everybody who applies lifecycle verbs. Pure: knows nothing of replicas or messages.
"""

from kilotron.config import KVMode
from kilotron.coordinator.wire import ServiceState, Verb
from kilotron.errors import LifecycleError

# What is missing is the wrong order. Repeats change nothing; a suspended service is paused as well.
_NEXT: dict[tuple[ServiceState, Verb], ServiceState] = {
    ("running", "pause"): "paused",
    ("paused", "pause"): "paused",
    ("suspended", "pause"): "suspended",
    ("running", "unpause"): "running",
    ("paused", "unpause"): "running",
    ("paused", "suspend"): "suspended",
    ("suspended", "suspend"): "suspended",
    ("paused", "resume"): "paused",
    ("suspended", "resume"): "paused",
}
_REMEDIES: dict[tuple[ServiceState, Verb], str] = {
    ("running", "suspend"): "pause first",
    ("running", "resume"): "pause and suspend first; there is nothing to resume",
    ("suspended", "unpause"): "resume first",
}
# How a replica that is running comes into a state.
_WAYS: dict[ServiceState, tuple[Verb, ...]] = {"running": (), "paused": ("pause",), "suspended": ("pause", "suspend")}


class Lifecycle:
    """The state of one service."""

    def __init__(self) -> None:
        self.state: ServiceState = "running"
        self.kv_mode: KVMode = "persist"
        """What the last suspend did with the KV caches."""

    def next_state(self, verb: Verb) -> ServiceState:
        """Where a verb leads; the same state when it is a repeat.

        Raises:
            LifecycleError: it is not possible in this state; names the verb to use first.
        """
        return next_state(self.state, verb)

    @property
    def way_for_newcomers(self) -> tuple[Verb, ...]:
        """The verbs that bring a replica that has just loaded into the state of the others."""
        return _WAYS[self.state]


def next_state(state: ServiceState, verb: Verb) -> ServiceState:
    """The state table.

    Raises:
        LifecycleError: the verb is not possible in this state; names the verb to use first.
    """
    try:
        return _NEXT[state, verb]
    except KeyError:
        raise LifecycleError(f"{verb} is not possible while {state}: {_REMEDIES[state, verb]}") from None
