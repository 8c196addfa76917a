"""ServicePlay: plays engines and clients, honest and broken ones, to a CoordinatorCore, and checks what must hold.

Every client knows which token comes at which place of which request, so that one that is lost, doubled, or somebody
else's is seen. Every request has exactly one end; what is not at its end is in the ledger.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from kilotron.config import KVMode
from kilotron.coordinator.wire import (
    Abort,
    ClientOutput,
    ClientPulse,
    Control,
    EngineOutput,
    EngineRefusal,
    EngineVerb,
    Failure,
    Join,
    Message,
    Output,
    RequestError,
    Unwelcome,
    Verb,
    VerbDone,
    Work,
)
from unit.coordinator.core.core_world import FACTS, CoreWorld, hello_of, incarnation_of, output_of, submission_of

CREDITS = 2 * FACTS.max_requests
Fault = Literal["none", "drop", "twice", "backwards", "choice"]


def token_of(request_id: str, choice: int, place: int) -> int:
    return (int(request_id, 16) * 31 + choice * 7 + place) % 256


def length_of(request_id: str, choice: int) -> int:
    return 2 + (int(request_id, 16) + choice) % 7


@dataclass
class FakeEngine:
    """A replica; what it was sent lies in its inbox until it reads."""

    engine: bytes
    pulse: bytes
    incarnation: str
    inbox: deque[Message] = field(default_factory=deque)
    held: dict[str, list[int]] = field(default_factory=dict)
    """Place of each continuation, -1 after its end."""
    num_steps: int = 0
    is_dead: bool = False


@dataclass
class Expected:
    """What a client knows of its request."""

    client: bytes
    num_places: list[int]
    is_over: bool = False


class ServicePlay:
    """The world, its players, and the rules of the game."""

    def __init__(self, **options: int) -> None:
        self.options = options
        self.world = CoreWorld(step_timeout_s=60.0, **options)
        self.engines: list[FakeEngine] = []
        self.clients: list[bytes] = []
        self.requests: dict[str, Expected] = {}
        self.strangers = [b"stranger"]
        self.were_run: set[str] = set()
        self._again: tuple[bytes, str] | None = None
        self._number = 1000
        self.controller = self.world.client("controller")
        self.world.mail.clear()

    # --- players ---

    def add_engine(self) -> None:
        self._number += 1
        name = str(self._number).encode()
        engine = FakeEngine(b"engine-" + name, b"pulse-" + name, incarnation_of(self._number))
        self.engines.append(engine)
        self.world.say(engine.pulse, hello_of("pulse", engine.incarnation))
        self.world.say(engine.engine, hello_of("engine", engine.incarnation))
        self.world.say(engine.engine, Join(FACTS))
        self.deliver()

    def add_client(self) -> None:
        self.clients.append(self.world.client())
        self.deliver()

    def submit(
        self, client: bytes, n: int, num_tokens: int, timeout_s: float | None, priority: int, owner: str
    ) -> None:
        self._number += 1
        request_id = f"{self._number:032x}"
        self.requests[request_id] = Expected(client, [0] * n)
        submission = submission_of(
            request_id, [1] * num_tokens, params={"n": n, "priority": priority}, timeout_s=timeout_s, owner=owner
        )
        self.world.say(client, submission)
        self.deliver()

    def submit_again(self, client: bytes, request_id: str) -> None:
        """An id that was used: refused while it is under way, and after it has been run."""
        was_over, was_run = self.requests[request_id].is_over, request_id in self.were_run
        self.world.say(client, submission_of(request_id))
        if self.world.core.ledger.get(request_id) is not None and was_over:
            assert not was_run
            self.requests[request_id] = Expected(client, [0])
        else:
            self._again = (client, request_id)
        self.deliver()
        assert self._again is None

    def abort(self, request_id: str) -> None:
        expected = self.requests[request_id]
        if expected.client in self.clients:
            expected.is_over = True
            self.world.say(expected.client, Abort(request_id))
            self.deliver()

    def lose_client(self, client: bytes, *, comes_again: bool) -> None:
        self.clients.remove(client)
        for expected in self.requests.values():
            expected.is_over |= expected.client == client
        if comes_again:
            self._number += 1
            again = f"client-{self._number}".encode()
            self.world.say(again, hello_of("client", incarnation_of(int(client.split(b"-")[1]))))
            self.clients.append(again)
        self.world.leave(client)
        self.deliver()

    def read(self, engine: FakeEngine) -> None:
        """The engine takes in all that it was sent."""
        while engine.inbox:
            message = engine.inbox.popleft()
            match message:
                case Work(submission):
                    engine.held.setdefault(submission.request_id, [0] * submission.params.get("n", 1))
                case Abort(request_id):
                    engine.held.pop(request_id, None)
                case EngineVerb(nonce):
                    self.world.say(engine.engine, VerbDone(nonce, 1))
                case Unwelcome():
                    engine.held.clear()
        self.deliver()

    def step(self, engine: FakeEngine, num_tokens: int, fault: Fault) -> None:
        """Every continuation moves on, and the news are sent, or not as they should be."""
        outputs = []
        engine.num_steps += 1
        for request_id, places in list(engine.held.items()):
            outputs += [self._advance(request_id, places, choice, num_tokens) for choice in range(len(places))]
            if all(place < 0 for place in places):
                del engine.held[request_id]
        news = [output for output in outputs if output is not None]
        if fault == "backwards":
            news.reverse()
        if fault == "choice":
            news = [output_of(output.request_id, output.token_ids, choice=77) for output in news]
        for _ in range({"drop": 0, "twice": 2}.get(fault, 1)):
            self.world.say(engine.engine, EngineOutput(news, []))
            self.deliver()

    def _advance(self, request_id: str, places: list[int], choice: int, num_tokens: int) -> Output | None:
        place = places[choice]
        if place < 0:
            return None
        end = min(place + num_tokens, length_of(request_id, choice))
        is_over = end == length_of(request_id, choice)
        places[choice] = -1 if is_over else end
        tokens = [token_of(request_id, choice, i) for i in range(place, end)]
        return output_of(request_id, tokens, place, choice, "stop" if is_over else "")

    def refuse(self, engine: FakeEngine, request_id: str) -> None:
        engine.held.pop(request_id, None)
        self.world.say(engine.engine, EngineRefusal(request_id, RequestError("StepFailedError", "no")))
        self.deliver()

    def forget(self, engine: FakeEngine) -> None:
        """A message to the engine is lost on the way; verbs are not, their loss is the step timeout's business."""
        if engine.inbox and isinstance(engine.inbox[0], Work | Abort):
            engine.inbox.popleft()

    def kill(self, engine: FakeEngine, *, by_pulse: bool) -> None:
        engine.is_dead = True
        self.world.leave(engine.pulse if by_pulse else engine.engine)
        self.deliver()

    def greet_again(self, engine: FakeEngine, *, from_elsewhere: bool) -> None:
        engine.held.clear()
        engine.inbox.clear()
        if from_elsewhere:
            self._number += 1
            engine.engine = f"engine-{self._number}".encode()
        self.world.say(engine.engine, hello_of("engine", engine.incarnation))
        self.world.say(engine.engine, Join(FACTS))
        self.deliver()

    def beat(self, engine: FakeEngine) -> None:
        if not engine.is_dead:
            self.world.beat(engine.pulse, held_ids=list(engine.held), num_steps=engine.num_steps)
            self.deliver()

    def client_beat(self, client: bytes) -> None:
        held = [request_id for request_id, e in self.requests.items() if e.client == client and not e.is_over]
        self.world.say(client, ClientPulse(held, {}))
        self.deliver()

    def control(self, verb: Verb, kv_mode: KVMode) -> None:
        self.world.say(self.controller, Control("n", verb, kv_mode))
        self.deliver()

    def wait(self, seconds: float, *, all_beat: bool) -> None:
        for _ in range(max(round(seconds / 0.25), 1)):
            self.world.now += 0.25
            self.client_beat(self.controller)
            for client in self.clients:
                self.client_beat(client)
            if all_beat:
                for engine in self.engines:
                    self.beat(engine)
            self.world.core.tick(self.world.now)
            self.world.collect()
            self.deliver()

    # --- what must hold ---

    def deliver(self) -> None:
        """Hands the mail out and looks at every piece of it."""
        engines = {engine.engine: engine for engine in self.engines}
        mail, self.world.mail = self.world.mail, type(self.world.mail)(list)
        for peer, messages in mail.items():
            for message in messages:
                if peer in engines:
                    engines[peer].inbox.append(message)
                    if isinstance(message, Work):
                        assert not engines[peer].is_dead
                        self.were_run.add(message.submission.request_id)
                elif peer in self.strangers:
                    assert isinstance(message, Unwelcome)
                else:
                    assert not isinstance(message, Work | EngineVerb)
                    self._client_gets(peer, message)
        self.check()

    def _client_gets(self, client: bytes, message: Message) -> None:
        match message:
            case ClientOutput(outputs):
                for output in outputs:
                    self._output_is_right(client, output)
            case Failure(request_id):
                if (client, request_id) == self._again:
                    self._again = None
                    return
                expected = self.requests[request_id]
                assert expected.client == client
                assert not expected.is_over
                expected.is_over = True

    def _output_is_right(self, client: bytes, output: Output) -> None:
        expected = self.requests[output.request_id]
        assert expected.client == client
        assert not expected.is_over
        place = expected.num_places[output.choice]
        assert place == output.offset
        tokens = [token_of(output.request_id, output.choice, place + i) for i in range(len(output.token_ids))]
        assert output.token_ids == tokens
        expected.num_places[output.choice] = place + len(tokens)
        if output.finish is not None:
            assert expected.num_places[output.choice] == length_of(output.request_id, output.choice)
            expected.num_places[output.choice] = -1
            expected.is_over = all(place < 0 for place in expected.num_places)

    def check(self) -> None:
        ledger = self.world.core.ledger
        under_way = {request_id for request_id, expected in self.requests.items() if not expected.is_over}
        assert {request.request_id for request in ledger} == under_way
        queued = ledger.queued
        assert len(queued) == ledger.num_queued
        assert sum(request.num_prompt_tokens for request in queued) == ledger.num_queued_tokens
        new = [request for request in queued if request.num_attempts == 0]
        assert len(new) <= self.options["max_queued_requests"]
        assert sum(request.num_prompt_tokens for request in new) <= self.options["max_queued_tokens"]
        for engine in self.engines:
            assert sum(request.num_choices for request in ledger.of_replica(engine.incarnation)) <= CREDITS

    def finish(self) -> None:
        """Everybody behaves from now on: then every request ends, and no credit was lost."""
        for verb in ("resume", "unpause"):
            self._let_engines_answer()
            self.control(verb, "persist")  # type: ignore[arg-type]
            self._let_engines_answer()
        self.add_engine()
        for _ in range(60):
            if not len(self.world.core.ledger):
                break
            self._let_engines_answer()
            for engine in self._alive():
                self.step(engine, 1, "none")
            self.wait(0.25, all_beat=True)
        assert len(self.world.core.ledger) == 0
        self.wait(0.25, all_beat=True)
        self._fill_all_credits()

    def _fill_all_credits(self) -> None:
        if not self.clients:
            self.add_client()
        num_alive = len(self.world.status().replicas)
        for _ in range(num_alive * CREDITS):
            self.submit(self.clients[0], 1, 1, None, 0, "")
        assert len(self.world.core.ledger) == num_alive * CREDITS
        assert self.world.core.ledger.num_queued == 0

    def _let_engines_answer(self) -> None:
        for engine in self._alive():
            self.read(engine)

    def _alive(self) -> list[FakeEngine]:
        return [engine for engine in self.engines if not engine.is_dead]
