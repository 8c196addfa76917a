"""CoordinatorCore: the coordinator without sockets, processes or a clock: messages and times in, wishes out.

Looks at who sent a message, and hands it to whoever it concerns; decides who is dead.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeAlias

from kilotron.coordinator.coordinator_config import CoordinatorConfig
from kilotron.coordinator.core.admission import Admission
from kilotron.coordinator.core.ended_requests import EndedRequests
from kilotron.coordinator.core.leases import LeaseKeeper
from kilotron.coordinator.core.lifecycle import Lifecycle
from kilotron.coordinator.core.lifecycle_control import LifecycleControl
from kilotron.coordinator.core.outbox import Outbox
from kilotron.coordinator.core.peers import Peer, PeerRegistry
from kilotron.coordinator.core.replica_desk import ReplicaDesk
from kilotron.coordinator.core.replicas import ReplicaTable
from kilotron.coordinator.core.request_flow import RequestFlow
from kilotron.coordinator.core.request_ledger import RequestLedger
from kilotron.coordinator.core.routing import Router
from kilotron.coordinator.core.service_metrics import ServiceMetrics
from kilotron.coordinator.core.status_board import StatusBoard
from kilotron.coordinator.core.timeline_queries import TimelineQueries
from kilotron.coordinator.credentials import Credentials
from kilotron.coordinator.request_errors import to_wire
from kilotron.coordinator.wire import (
    Abort,
    AbortById,
    ClientPulse,
    Control,
    ControlAnswer,
    EngineOutput,
    EngineRefusal,
    Farewell,
    Hello,
    Join,
    MetricsQuery,
    Pulse,
    Submission,
    TimelineAnswer,
    TimelineQuery,
    VerbDone,
    Welcome,
)
from kilotron.errors import KilotronError, ProtocolError

_log = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[Peer, Any, float], None]

_CLIENT_DEATH_HEARTBEATS = 2.0
# A pause between two turns of the loop that is no peer's fault.
_LONGEST_TURN_HEARTBEATS = 0.5
_CLIENTS = frozenset({"client", "controller"})
_ENGINES = frozenset({"engine"})
_PULSES = frozenset({"pulse"})


class CoordinatorCore:
    """The whole protocol as one deterministic state machine. Not thread-safe.

    Args:
        config: limits and times.
        credentials: what peers must show.
        incarnation: 32 hex digits that name this life of the coordinator.
        pid: told to peers, which then notice its death at once; 0 where they are on other hosts.
    """

    def __init__(self, config: CoordinatorConfig, credentials: Credentials, incarnation: str, pid: int = 0) -> None:
        self.outbox = Outbox()
        """What is to be done after each call."""
        self.metrics = ServiceMetrics()
        self.ledger = RequestLedger(config.max_queued_requests, config.max_concurrent_per_key)
        self._welcome = Welcome(incarnation, pid, config.heartbeat_s)
        self._lifecycle = lifecycle = Lifecycle()
        self._peers = PeerRegistry(credentials, self.outbox)
        self._replicas = replicas = ReplicaTable(config.heartbeat_s, config.step_timeout_s)
        router = Router(config.routing, config.routing_alpha)
        ended = EndedRequests()
        admission = Admission(config, lifecycle, replicas, router, self.ledger, self.metrics, ended)
        self._flow = RequestFlow(admission, lifecycle, replicas, router, self.ledger, self.metrics, ended, self.outbox)
        self._leases = LeaseKeeper(self.ledger, self._flow, ended, self.outbox)
        control = LifecycleControl(lifecycle, replicas, self.outbox, config.step_timeout_s)
        self._board = StatusBoard(self._peers, replicas, lifecycle, self.ledger, self.outbox, config.heartbeat_s)
        self._desk = ReplicaDesk(
            self._peers,
            replicas,
            router,
            lifecycle,
            self._flow,
            self._leases,
            control,
            self._board,
            self.metrics,
            self.outbox,
        )
        self._timelines = TimelineQueries(replicas, ended, self.outbox)
        self._last_tick: float | None = None
        self._handlers = self._make_handlers(control)

    def receive(self, address: bytes, message: Any, now: float) -> None:
        """A message that was understood, from a connection that may be anybody's."""
        peer = self._peers.get(address)
        kind = type(message)
        if kind is Hello:
            self._hello(address, message, now)
        elif peer is None:
            self.metrics.count("protocol_errors")
            self._peers.answer_stranger(address, now)
            return
        elif kind is Farewell:
            self._let_go(address, "it said farewell", now, is_farewell=True)
            return
        else:
            peer.last_heard = now
            roles, handle = self._handlers[kind]
            if peer.role not in roles:
                self._protocol_error(peer, f"a {peer.role} must not send {kind.__name__}")
                return
            handle(peer, message, now)
        self._settle(now)

    def receive_garbage(self, address: bytes, now: float) -> None:
        """A message that nobody understands; it counts for nothing, not even as a sign of life."""
        self.metrics.count("protocol_errors")
        if self._peers.get(address) is None:
            self._peers.answer_stranger(address, now)

    def peer_left(self, address: bytes, now: float) -> None:
        """A peer's process ended, or nothing can be sent to it any more."""
        self._let_go(address, "its connection or process ended", now)

    def _let_go(self, address: bytes, why: str, now: float, *, is_farewell: bool = False) -> None:
        peer = self._peers.forget(address)
        if peer is None:
            return
        if peer.is_client:
            self._client_left(peer, why)
        else:
            self._desk.give_up(peer.incarnation, why, now, is_farewell=is_farewell)
        self._settle(now)

    def tick(self, now: float) -> None:
        """To be called often, and after the messages that have come: time passes."""
        heartbeat_s = self._welcome.heartbeat_s
        pause_s = 0.0 if self._last_tick is None else now - self._last_tick
        self._last_tick = now
        if pause_s > _LONGEST_TURN_HEARTBEATS * heartbeat_s:
            self._forgive(pause_s, now)
        self._desk.tick(now)
        for peer in self._peers.clients():
            if now - peer.last_heard > _CLIENT_DEATH_HEARTBEATS * heartbeat_s:
                self._peers.forget(peer.address)
                self._client_left(peer, f"no sign of life for {now - peer.last_heard:.1f} s")
        self._flow.expire(now)
        self._settle(now)
        self.metrics.tick(self._replicas.statuses(now), self._replicas.facts, self.ledger.num_queued, now)

    def _make_handlers(self, control: LifecycleControl) -> dict[type, tuple[frozenset[str], Handler]]:
        desk, flow, timelines = self._desk, self._flow, self._timelines
        return {
            EngineOutput: (_ENGINES, desk.take_output),
            EngineRefusal: (_ENGINES, desk.take_refusal),
            Join: (_ENGINES, desk.join),
            VerbDone: (_ENGINES, desk.verb_done),
            TimelineAnswer: (_ENGINES, lambda peer, answer, now: timelines.answered(answer)),
            Pulse: (_PULSES, desk.pulse),
            Submission: (_CLIENTS, lambda peer, submission, now: flow.submit(peer.address, submission, now)),
            Abort: (_CLIENTS, self._abort),
            ClientPulse: (_CLIENTS, self._client_pulse),
            TimelineQuery: (_CLIENTS, lambda peer, query, now: timelines.ask(peer.address, query)),
            MetricsQuery: (_CLIENTS, self._metrics_query),
            AbortById: (_CLIENTS, self._abort_by_id),
            Control: (_CLIENTS, lambda peer, verb, now: self._control(control, peer, verb, now)),
        }

    def _settle(self, now: float) -> None:
        """After anything that may have changed something."""
        if self.ledger.num_queued:
            self._flow.dispatch(now)
        self._board.update(now)

    def _hello(self, address: bytes, hello: Hello, now: float) -> None:
        is_known = self._peers.get(address) is not None
        try:
            peer, former = self._peers.admit(address, hello, now)
        except ProtocolError as error:
            self.metrics.count("protocol_errors")
            _log.warning("a peer was refused: %s", error)
            return
        if former is not None and peer.is_client:
            self._client_left(former, "it has connected again")
        if hello.pid > 0 and not is_known:
            self.outbox.watches.append((address, hello.pid))
        self.outbox.send(address, self._welcome)
        if peer.is_client:
            self._board.greet(address, now)
        else:
            self._desk.connected(peer, now)

    def _client_left(self, peer: Peer, why: str) -> None:
        _log.info("%s %s left: %s", peer.role, peer.incarnation[:8], why)
        self._flow.client_left(peer.address)
        self._leases.forget(peer.address)

    def _client_pulse(self, peer: Peer, pulse: ClientPulse, now: float) -> None:
        self.metrics.client_counted(peer.incarnation, pulse.counters)
        self._leases.check_client(peer.address, pulse.held_ids, now)

    def _abort(self, peer: Peer, abort: Abort, now: float) -> None:
        if not self._flow.abort(peer.address, abort.request_id):
            self._protocol_error(peer, "an abort of another client's request")

    def _abort_by_id(self, peer: Peer, message: AbortById, now: float) -> None:
        error = None
        try:
            if message.owner is None and peer.role != "controller":
                self.metrics.count("protocol_errors")
                raise ProtocolError("aborting anybody's request needs a controller's token")
            self._flow.abort_by_id(message.request_id, message.owner)
        except KilotronError as refusal:
            error = to_wire(refusal)
        self.outbox.send(peer.address, ControlAnswer(message.nonce, self._lifecycle.state, 0, error))

    def _control(self, control: LifecycleControl, peer: Peer, message: Control, now: float) -> None:
        if peer.role == "controller":
            control.apply(peer.address, message, now)
            return
        self._protocol_error(peer, "a lifecycle verb without a controller's token")
        error = to_wire(ProtocolError(f"{message.verb} needs a controller's token"))
        self.outbox.send(peer.address, ControlAnswer(message.nonce, self._lifecycle.state, 0, error))

    def _metrics_query(self, peer: Peer, query: MetricsQuery, now: float) -> None:
        statuses = self._replicas.statuses(now)
        self.outbox.send(peer.address, self.metrics.answer(query.nonce, statuses, self._replicas.facts, self.ledger))

    def _protocol_error(self, peer: Peer, what: str) -> None:
        self.metrics.count("protocol_errors")
        _log.warning("%s %s: %s", peer.role, peer.incarnation[:8], what)

    def _forgive(self, seconds: float, now: float) -> None:
        self._replicas.forgive(seconds, now)
        for peer in self._peers.clients():
            peer.last_heard = min(peer.last_heard + seconds, now)
