"""CoreWorld: a CoordinatorCore with its own clock, and mailboxes in place of sockets."""

import itertools
from collections import defaultdict
from typing import Any, TypeVar

from kilotron.coordinator.coordinator_config import CoordinatorConfig
from kilotron.coordinator.core.coordinator_core import CoordinatorCore
from kilotron.coordinator.credentials import Credentials
from kilotron.coordinator.wire import (
    COORDINATOR_DECODER,
    PROTOCOL_VERSION,
    ClientPulse,
    EngineFacts,
    EngineLoad,
    EngineOutput,
    Finish,
    Hello,
    Join,
    Message,
    MetricsAnswer,
    MetricsQuery,
    Output,
    Phase,
    Pulse,
    Role,
    ServiceStatus,
    Submission,
    encode,
)

CREDENTIALS = Credentials.create("ipc:///nowhere")
FACTS = EngineFacts(
    model="tiny", model_hash="hash", tokenizer=None, vocab_size=256, max_sequence_length=64, eos_ids=[0], block_size=4,
    num_blocks=33, max_requests=2, max_tokens=64, max_logits_tokens=64, enable_chunked_prefill=True,
    enable_prefix_caching=True, default_sampling={},
)  # fmt: skip
M = TypeVar("M", bound=Message)


def incarnation_of(number: int) -> str:
    return f"{number:032x}"


def hello_of(role: Role, incarnation: str, pid: int = 0, credentials: Credentials = CREDENTIALS) -> Hello:
    return Hello(PROTOCOL_VERSION, role, credentials.token(role), incarnation, pid)


def submission_of(request_id: str, prompt_tokens: list[int] | None = None, **fields: Any) -> Submission:
    values: dict[str, Any] = {"params": {}, "max_generated": 8, "seed": 1, "end_ids": [0], "bad_word_ids": []} | fields
    return Submission(request_id, prompt_tokens or [1, 2, 3], **values)


def output_of(request_id: str, tokens: list[int], offset: int = 0, choice: int = 0, finish: str = "") -> Output:
    end = Finish(finish, num_generated_tokens=offset + len(tokens)) if finish else None
    return Output(request_id, choice, offset, "x" * len(tokens), tokens, finish=end)


class CoreWorld:
    """Peers are named by their address; everything sent to them is kept."""

    def __init__(self, **options: Any) -> None:
        self.now = 100.0
        options = {"heartbeat_s": 1.0, "step_timeout_s": 10.0} | options
        self.core = CoordinatorCore(CoordinatorConfig(**options), CREDENTIALS, incarnation_of(0xC0), 1)
        self.mail: dict[bytes, list[Message]] = defaultdict(list)
        self.kills: list[int] = []
        self.watches: list[tuple[bytes, int]] = []
        self._numbers = itertools.count(1)

    def say(self, peer: bytes, message: Message) -> None:
        """As it comes over the wire."""
        self.core.receive(peer, COORDINATOR_DECODER.decode(encode(message)), self.now)
        self.collect()

    def garbage(self, peer: bytes) -> None:
        self.core.receive_garbage(peer, self.now)
        self.collect()

    def leave(self, peer: bytes) -> None:
        self.core.peer_left(peer, self.now)
        self.collect()

    def wait(self, seconds: float, beating: tuple[bytes, ...] = ()) -> None:
        """Lets time pass in steps of a tick; `beating` peers keep sending signs of life."""
        for _ in range(round(seconds / 0.1)):
            self.now += 0.1
            for peer in beating:
                self.beat(peer)
            self.core.tick(self.now)
            self.collect()

    def beat(self, peer: bytes, phase: Phase = "ready", held_ids: list[str] | None = None, **load: Any) -> None:
        if peer.startswith(b"pulse"):
            self.say(peer, Pulse(phase, 1.0, EngineLoad(**load), held_ids))
            return
        if held_ids is None:
            held_ids = [request.request_id for request in self.core.ledger.of_client(peer)]
        self.say(peer, ClientPulse(held_ids, {}))

    def collect(self) -> None:
        outbox = self.core.outbox
        for peer, message in outbox.take_sends():
            self.mail[peer].append(message)
        self.watches += outbox.take_watches()
        self.kills += outbox.take_kills()

    def client(self, role: Role = "client", pid: int = 0) -> bytes:
        number = next(self._numbers)
        peer = f"{role}-{number}".encode()
        self.say(peer, hello_of(role, incarnation_of(number), pid))
        return peer

    def replica(self, facts: EngineFacts = FACTS, pid: int = 0) -> tuple[bytes, bytes]:
        """-> the addresses of a replica's engine and pulse connections."""
        number = next(self._numbers)
        engine, pulse = f"engine-{number}".encode(), f"pulse-{number}".encode()
        self.say(pulse, hello_of("pulse", incarnation_of(number), pid))
        self.beat(pulse, "loading")
        self.say(engine, hello_of("engine", incarnation_of(number), pid))
        self.say(engine, Join(facts))
        self.beat(pulse)
        return engine, pulse

    def give(self, engine: bytes, *outputs: Output) -> None:
        self.say(engine, EngineOutput(list(outputs), []))

    def take(self, peer: bytes, kind: type[M]) -> list[M]:
        """The messages of one kind that a peer got since the last time; all others are dropped."""
        mail, self.mail[peer] = self.mail[peer], []
        return [message for message in mail if isinstance(message, kind)]

    def counters(self) -> dict[str, float]:
        asker = self.client()
        self.say(asker, MetricsQuery("m"))
        (answer,) = self.take(asker, MetricsAnswer)
        self.leave(asker)
        return answer.counters

    def status(self) -> ServiceStatus:
        asker = self.client()
        status = self.take(asker, ServiceStatus)[-1]
        self.leave(asker)
        return status
