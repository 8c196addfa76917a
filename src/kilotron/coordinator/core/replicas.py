"""ReplicaTable: each engine replica's connections, phase, facts and signs of life; who is live, and who counts as dead.

Pure: what death means for requests is request_flow.py's business.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from kilotron.coordinator.wire import EngineFacts, EngineLoad, Phase, Pulse, ReplicaStatus
from kilotron.errors import ProtocolError

# A heartbeat late by half of one is late; two that are missing are death.
_LATE_HEARTBEATS = 1.5
_DEAD_HEARTBEATS = 2.0
# Replicas of one service agree on these; the sizes of their caches may differ with the memory there was.
_AGREED = ("model_hash", "vocab_size", "max_sequence_length", "block_size", "max_requests", "max_tokens",
           "max_logits_tokens", "enable_chunked_prefill", "enable_prefix_caching")  # fmt: skip


@dataclass(slots=True)
class Replica:
    """One incarnation of an engine. Times are seconds of the coordinator's clock."""

    incarnation: str
    pid: int
    since: float
    last_pulse: float
    last_moved: float
    """When a pulse told of a new step, or of nothing to do."""
    engine_peer: bytes | None = None
    phase: Phase = "starting"
    progress: float = 0.0
    load: EngineLoad = field(default_factory=EngineLoad)
    is_joined: bool = False
    was_live: bool = True


class ReplicaTable:
    """All replicas that are not dead.

    Args:
        heartbeat_s: between two signs of life.
        step_timeout_s: after which a replica whose steps do not move counts as dead.
    """

    def __init__(self, heartbeat_s: float, step_timeout_s: float) -> None:
        self._heartbeat_s = heartbeat_s
        self._step_timeout_s = step_timeout_s
        self._replicas: dict[str, Replica] = {}
        self.facts: EngineFacts | None = None
        """Of the first replica that joined, with the smallest cache of all."""

    def __iter__(self) -> Iterator[Replica]:
        return iter(list(self._replicas.values()))

    def get(self, incarnation: str) -> Replica | None:
        """A replica that is not dead."""
        return self._replicas.get(incarnation)

    def connect(self, incarnation: str, pid: int, now: float) -> Replica:
        """One of a replica's connections said Hello."""
        replica = self._replicas.get(incarnation)
        if replica is None:
            replica = self._replicas[incarnation] = Replica(incarnation, pid, now, now, now)
        return replica

    def remove(self, incarnation: str) -> Replica | None:
        """A replica is dead -> what it was."""
        return self._replicas.pop(incarnation, None)

    def join(self, replica: Replica, facts: EngineFacts) -> bool:
        """A replica is loaded -> whether the facts that clients know changed.

        Raises:
            ProtocolError: it disagrees with the replicas before it; says in what.
        """
        if facts.num_blocks < 1 or facts.block_size < 1 or facts.max_requests < 1:
            raise ProtocolError("a replica without a block, or without room for a request")
        known = self.facts
        if known is None:
            self.facts = facts
        else:
            for name in _AGREED:
                mine, theirs = getattr(facts, name), getattr(known, name)
                if mine != theirs:
                    raise ProtocolError(f"{name} is {mine!r} here and {theirs!r} in the replicas before")
            if facts.num_blocks < known.num_blocks:
                self.facts = msgspec.structs.replace(known, num_blocks=facts.num_blocks)
        replica.is_joined = True
        replica.phase, replica.progress = "ready", 1.0
        return self.facts is not known

    def pulse(self, replica: Replica, pulse: Pulse, now: float, *, is_running: bool) -> bool:
        """A sign of life -> whether its phase changed."""
        load = pulse.load
        has_work = load.num_running + load.num_waiting > 0
        if load.num_steps != replica.load.num_steps or not has_work or not is_running:
            replica.last_moved = now
        before = replica.phase
        replica.last_pulse, replica.load, replica.progress = now, load, pulse.progress
        # Ready is who has joined: until then clients would wait for a replica that takes nothing.
        replica.phase = "loading" if pulse.phase == "ready" and not replica.is_joined else pulse.phase
        return replica.phase != before

    def forgive(self, seconds: float, now: float) -> None:
        """Nobody listened for so long until now: it counts for nobody."""
        for replica in self._replicas.values():
            replica.last_pulse = min(replica.last_pulse + seconds, now)
            replica.last_moved = min(replica.last_moved + seconds, now)

    def is_live(self, replica: Replica, now: float) -> bool:
        """Pulses are fresh and its steps move."""
        is_late = now - replica.last_pulse > _LATE_HEARTBEATS * self._heartbeat_s
        return not is_late and replica.load.step_age_s <= _DEAD_HEARTBEATS * self._heartbeat_s

    def cause_of_death(self, replica: Replica, now: float) -> str | None:
        """Why a replica must be given up; None while it need not."""
        silence_s = now - replica.last_pulse
        patience_s = _DEAD_HEARTBEATS * self._heartbeat_s
        if not replica.is_joined:
            # Importing torch from a slow disk silences all threads of a process, and nobody waits for this one yet.
            patience_s = max(patience_s, self._step_timeout_s)
        if silence_s > patience_s:
            return f"no sign of life for {silence_s:.1f} s"
        still_s = max(replica.load.step_age_s, now - replica.last_moved)
        if still_s > self._step_timeout_s:
            return f"no step has ended for {still_s:.1f} s"
        return None

    @property
    def has_joined(self) -> bool:
        """Whether there is any replica that can run requests, be it slow or paused."""
        return any(replica.is_joined for replica in self._replicas.values())

    def statuses(self, now: float) -> list[ReplicaStatus]:
        """As clients see them."""
        return [
            ReplicaStatus(r.incarnation, r.phase, r.progress, self.is_live(r, now), r.load)
            for r in self._replicas.values()
        ]

    def seconds_to_ready(self, now: float) -> float:
        """A guess of when a replica will be ready, from how far loading has come; in [1, 30]."""
        guesses = [
            (now - replica.since) * (1.0 / replica.progress - 1.0)
            for replica in self._replicas.values()
            if not replica.is_joined and replica.progress > 0
        ]
        return min(max(min(guesses, default=5.0), 1.0), 30.0)
