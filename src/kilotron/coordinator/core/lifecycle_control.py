"""LifecycleControl: carries a lifecycle verb to all replicas and answers when it has taken effect, one at a time."""

import itertools
import logging
from dataclasses import dataclass, field

from kilotron.coordinator.core.lifecycle import Lifecycle
from kilotron.coordinator.core.outbox import Outbox
from kilotron.coordinator.core.replicas import Replica, ReplicaTable
from kilotron.coordinator.request_errors import to_wire
from kilotron.coordinator.wire import (
    Control,
    ControlAnswer,
    EngineVerb,
    RequestError,
    ServiceState,
    Verb,
    VerbDone,
)
from kilotron.errors import EngineDiedError, LifecycleError

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Running:
    """A verb under way."""

    controller: bytes
    nonce: str
    engine_nonce: str
    verb: Verb
    before: ServiceState
    deadline: float
    waiting: set[str]
    """Replicas that have not answered."""
    done: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    freed_bytes: int = 0
    error: RequestError | None = None


class LifecycleControl:
    """Applies verbs.

    A verb counts from the moment it is asked for. If all replicas refuse it, it never happened; a replica that alone
    does not follow is out of step with the service and must be given up.

    Args:
        timeout_s: after which a replica that does not answer counts as one that does not follow.
    """

    def __init__(self, lifecycle: Lifecycle, replicas: ReplicaTable, outbox: Outbox, timeout_s: float) -> None:
        self._lifecycle = lifecycle
        self._replicas = replicas
        self._outbox = outbox
        self._timeout_s = timeout_s
        self._running: _Running | None = None
        self._numbers = itertools.count(1)

    def apply(self, controller: bytes, control: Control, now: float) -> None:
        """A controller's verb; the answer comes now or later."""
        try:
            if self._running is not None:
                raise LifecycleError(f"{control.verb} is not possible while {self._running.verb} is under way; wait")
            after = self._lifecycle.next_state(control.verb)
        except LifecycleError as error:
            self._answer(controller, control.nonce, error=to_wire(error))
            return
        before = self._lifecycle.state
        joined = [replica for replica in self._replicas if replica.is_joined]
        if after == before or not joined:
            self._lifecycle.state = after
            self._answer(controller, control.nonce)
            return
        self._lifecycle.state = after
        if control.verb == "suspend":
            self._lifecycle.kv_mode = control.kv_mode
        engine_nonce = f"verb-{next(self._numbers)}"
        waiting = {replica.incarnation for replica in joined}
        self._running = _Running(
            controller, control.nonce, engine_nonce, control.verb, before, now + self._timeout_s, waiting
        )
        for replica in joined:
            self._send(replica, EngineVerb(engine_nonce, control.verb, control.kv_mode))
        _log.info("%s: asked %d replicas", control.verb, len(joined))

    def bring_in_step(self, replica: Replica) -> None:
        """Brings a replica that has just joined into the state of the service."""
        for verb in self._lifecycle.way_for_newcomers:
            self._send(replica, EngineVerb(f"join-{next(self._numbers)}", verb, self._lifecycle.kv_mode))

    def verb_done(self, replica: Replica, done: VerbDone) -> list[str]:
        """A replica's answer -> the replicas that are out of step."""
        running = self._running
        if running is None or done.nonce != running.engine_nonce or replica.incarnation not in running.waiting:
            if done.error is not None:
                _log.warning("replica %s: %s", replica.incarnation[:8], done.error.message)
            return []
        running.waiting.discard(replica.incarnation)
        if done.error is None:
            running.done.add(replica.incarnation)
            running.freed_bytes += max(done.freed_bytes, 0)
        else:
            running.failed.add(replica.incarnation)
            running.error = done.error
        return self._finish_if_complete()

    def replica_left(self, incarnation: str) -> list[str]:
        """A replica died, or lost its connection and with it the verb -> the replicas that are out of step."""
        running = self._running
        if running is None or incarnation not in running.waiting:
            return []
        running.waiting.discard(incarnation)
        running.error = to_wire(EngineDiedError(f"a replica died during {running.verb}; the others follow it"))
        return self._finish_if_complete()

    def tick(self, now: float) -> list[str]:
        """Ends what takes too long -> the replicas that are out of step."""
        running = self._running
        if running is None or now < running.deadline:
            return []
        running.failed |= running.waiting
        # One that is silent may follow yet: the verb is not taken back.
        running.done |= running.waiting
        running.waiting.clear()
        running.error = to_wire(LifecycleError(f"{running.verb} took longer than {self._timeout_s:g} s in a replica"))
        return self._finish_if_complete()

    def _finish_if_complete(self) -> list[str]:
        running = self._running
        if running is None or running.waiting:
            return []
        self._running = None
        out_of_step = sorted(running.failed)
        if running.failed and not running.done:
            self._lifecycle.state = running.before
            out_of_step = []
        self._answer(running.controller, running.nonce, running.freed_bytes, running.error)
        return out_of_step

    def _answer(self, controller: bytes, nonce: str, freed_bytes: int = 0, error: RequestError | None = None) -> None:
        self._outbox.send(controller, ControlAnswer(nonce, self._lifecycle.state, freed_bytes, error))

    def _send(self, replica: Replica, verb: EngineVerb) -> None:
        if replica.engine_peer is not None:
            self._outbox.send(replica.engine_peer, verb)
