"""ReplicaDesk: what engine replicas say, and what follows for requests, routing and clients; and their deaths."""

import logging

from kilotron.coordinator.core.leases import LeaseKeeper
from kilotron.coordinator.core.lifecycle import Lifecycle
from kilotron.coordinator.core.lifecycle_control import LifecycleControl
from kilotron.coordinator.core.outbox import Outbox
from kilotron.coordinator.core.peers import Peer, PeerRegistry
from kilotron.coordinator.core.replicas import Replica, ReplicaTable
from kilotron.coordinator.core.request_flow import RequestFlow
from kilotron.coordinator.core.routing import Router
from kilotron.coordinator.core.service_metrics import ServiceMetrics
from kilotron.coordinator.core.status_board import StatusBoard
from kilotron.coordinator.wire import EngineOutput, EngineRefusal, Join, Pulse, VerbDone
from kilotron.errors import ProtocolError

_log = logging.getLogger(__name__)


class ReplicaDesk:
    """Hears replicas out."""

    def __init__(
        self,
        peers: PeerRegistry,
        replicas: ReplicaTable,
        router: Router,
        lifecycle: Lifecycle,
        flow: RequestFlow,
        leases: LeaseKeeper,
        control: LifecycleControl,
        board: StatusBoard,
        metrics: ServiceMetrics,
        outbox: Outbox,
    ) -> None:
        self._peers = peers
        self._replicas = replicas
        self._router = router
        self._lifecycle = lifecycle
        self._flow = flow
        self._leases = leases
        self._control = control
        self._board = board
        self._metrics = metrics
        self._outbox = outbox

    def connected(self, peer: Peer, now: float) -> None:
        """One of a replica's connections was let in, for the first time or again."""
        if self._replicas.get(peer.incarnation) is None:
            self._board.mark_changed()
        replica = self._replicas.connect(peer.incarnation, peer.pid, now)
        if peer.role != "engine":
            return
        replica.engine_peer = peer.address
        if replica.is_joined:
            # Whoever says Hello holds nothing any more, and joins again.
            _log.warning("replica %s says Hello again; what it ran is lost", peer.incarnation[:8])
            replica.is_joined, replica.phase = False, "loading"
            self._board.mark_changed()
            self._flow.replica_restarted(peer.incarnation, now)
            self._give_up_all(self._control.replica_left(peer.incarnation), now)

    def join(self, peer: Peer, join: Join, now: float) -> None:
        """A replica is loaded and wants work."""
        replica = self._replicas.get(peer.incarnation)
        if replica is None or replica.is_joined:
            return
        try:
            self._replicas.join(replica, join.facts)
        except ProtocolError as error:
            self._metrics.count("protocol_errors")
            _log.error("replica %s is refused: %s", peer.incarnation[:8], error)
            self._peers.tell(peer.address, "model", str(error), now)
            return
        _log.info("replica %s has joined", peer.incarnation[:8])
        self._router.add(peer.incarnation, join.facts)
        self._control.bring_in_step(replica)
        self._board.mark_changed()
        self._look_at(replica, now)
        self._flow.dispatch(now)

    def pulse(self, peer: Peer, pulse: Pulse, now: float) -> None:
        """A sign of life."""
        replica = self._replicas.get(peer.incarnation)
        if replica is None:
            return
        if self._replicas.pulse(replica, pulse, now, is_running=self._lifecycle.state == "running"):
            self._board.mark_changed()
        self._metrics.replica_counted(peer.incarnation, pulse.load)
        if pulse.held_ids is not None and replica.is_joined:
            self._leases.check_replica(replica, pulse.held_ids, now)
        self._look_at(replica, now)

    def take_output(self, peer: Peer, message: EngineOutput, now: float) -> None:
        """What a step gave."""
        replica = self._joined(peer)
        if replica is not None:
            self._flow.take_output(replica, message, now)

    def take_refusal(self, peer: Peer, refusal: EngineRefusal, now: float) -> None:
        """A request that could not be taken in."""
        replica = self._joined(peer)
        if replica is not None:
            self._flow.take_refusal(replica, refusal)

    def verb_done(self, peer: Peer, done: VerbDone, now: float) -> None:
        """A lifecycle verb has taken effect, or not."""
        replica = self._joined(peer)
        if replica is not None:
            self._give_up_all(self._control.verb_done(replica, done), now)

    def give_up(self, incarnation: str, why: str, now: float, *, is_farewell: bool = False) -> None:
        """A replica is dead, or as good as that, or has left: nothing it sends counts any more. Idempotent."""
        self._peers.fence(incarnation)
        replica = self._replicas.remove(incarnation)
        if replica is None:
            return
        if is_farewell:
            _log.info("replica %s has left", incarnation[:8])
        else:
            _log.error("replica %s is given up: %s", incarnation[:8], why)
            self._metrics.count("replica_deaths")
        self._leases.forget(incarnation)
        self._flow.replica_left(incarnation, why, now)
        self._board.mark_changed()
        self._give_up_all(self._control.replica_left(incarnation), now)

    def tick(self, now: float) -> None:
        """Looks for the dead and the slow."""
        for replica in self._replicas:
            why = self._replicas.cause_of_death(replica, now)
            if why is None:
                self._look_at(replica, now)
                continue
            if replica.pid > 0:
                self._outbox.kills.append(replica.pid)
            self.give_up(replica.incarnation, why, now)
        self._give_up_all(self._control.tick(now), now)

    def _joined(self, peer: Peer) -> Replica | None:
        replica = self._replicas.get(peer.incarnation)
        if replica is None or not replica.is_joined:
            self._metrics.count("late_outputs")
            return None
        return replica

    def _look_at(self, replica: Replica, now: float) -> None:
        is_live = self._replicas.is_live(replica, now)
        if is_live != replica.was_live:
            replica.was_live = is_live
            self._board.mark_changed()
            _log.warning("replica %s is %s", replica.incarnation[:8], "live again" if is_live else "slow")
        self._router.set_open(replica.incarnation, is_open=is_live)

    def _give_up_all(self, out_of_step: list[str], now: float) -> None:
        for incarnation in out_of_step:
            replica = self._replicas.get(incarnation)
            if replica is not None and replica.pid > 0:
                self._outbox.kills.append(replica.pid)
            self.give_up(incarnation, "it did not follow a lifecycle verb", now)
