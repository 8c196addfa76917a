"""EngineWorker: a replica joins, works, and survives whatever its coordinator does."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fakes import TINY_OPTIONS, VOCAB_SIZE, make_llm
from kilotron.apis.engine_facts import read_engine_facts
from kilotron.apis.llm import MegatronLLM
from kilotron.coordinator.credentials import Credentials
from kilotron.coordinator.engine_worker import EngineWorker
from kilotron.coordinator.pulse_sender import PulseSender, ReplicaState, new_incarnation
from kilotron.coordinator.submissions import to_submission
from kilotron.coordinator.wire import (
    Abort,
    EngineOutput,
    EngineRefusal,
    EngineVerb,
    Farewell,
    Hello,
    Join,
    Pulse,
    Submission,
    TimelineAnswer,
    TimelineQuery,
    Unwelcome,
    VerbDone,
    Work,
)
from kilotron.errors import ProtocolError
from kilotron.sampling_params import SamplingParams
from unit.coordinator.fake_coordinator import FakeCoordinator, make_credentials


class Replica:
    """A worker in a thread, and the same engine's twin to compare with."""

    def __init__(self, credentials: Credentials) -> None:
        self.llm = make_llm(**TINY_OPTIONS)
        self.state = ReplicaState(new_incarnation())
        self.pulse = PulseSender(credentials, self.state)
        facts = read_engine_facts(self.llm._assembly)
        self.worker = EngineWorker(credentials, self.llm.engine, facts, self.state)
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.worker.run()
        except BaseException as error:
            self.failure = error

    def close(self) -> None:
        self.worker.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.pulse.close()


@contextmanager
def replica(credentials: Credentials) -> Iterator[Replica]:
    running = Replica(credentials)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def credentials(tmp_path: Path) -> Credentials:
    return make_credentials(tmp_path)


@pytest.fixture
def direct() -> Iterator[MegatronLLM]:
    with make_llm(**TINY_OPTIONS) as llm:
        yield llm


def submission(llm: MegatronLLM, request_id: str, **params: Any) -> Submission:
    chosen = {"num_tokens_to_generate": 6, "temperature": 0.0, "ignore_eos": True} | params
    request = llm.engine.intake.build([5, 6, 7, 8, 9], SamplingParams(**chosen))
    return to_submission(request, request_id, block_size=8)


def outputs_of(coordinator: FakeCoordinator, request_id: str, num_choices: int = 1) -> dict[int, list[Any]]:
    """All pieces of a request by continuation, until each has ended."""
    pieces: dict[int, list[Any]] = {choice: [] for choice in range(num_choices)}
    while not all(parts and parts[-1].finish for parts in pieces.values()):
        for output in coordinator.hear(EngineOutput)[1].outputs:
            if output.request_id == request_id:
                pieces[output.choice].append(output)
    return pieces


def test_a_replica_joins_and_streams_the_tokens_that_the_engine_itself_gives(
    credentials: Credentials, direct: MegatronLLM
) -> None:
    params = SamplingParams(num_tokens_to_generate=6, temperature=0.0, ignore_eos=True)
    expected = direct.generate([[5, 6, 7, 8, 9]], params)
    with FakeCoordinator(credentials) as coordinator, replica(credentials):
        coordinator.welcome("pulse")
        peer = coordinator.welcome("engine")
        assert coordinator.hear(Join)[1].facts.vocab_size == VOCAB_SIZE
        coordinator.say(peer, Work(submission(direct, "a" * 32, streaming=True)))
        pieces = outputs_of(coordinator, "a" * 32)[0]
    assert [token for piece in pieces for token in piece.token_ids] == expected[0].generated_tokens
    assert "".join(piece.text for piece in pieces) == expected[0].generated_text
    assert [piece.offset for piece in pieces] == list(range(6))
    assert pieces[-1].finish.reason == "length"


def test_without_streaming_only_the_end_is_sent_and_continuations_are_told_apart(
    credentials: Credentials, direct: MegatronLLM
) -> None:
    params = SamplingParams(num_tokens_to_generate=6, temperature=1.0, n=3, seed=4, ignore_eos=True)
    expected = direct.generate([[5, 6, 7, 8, 9]], params)[0].choices
    with FakeCoordinator(credentials) as coordinator, replica(credentials):
        coordinator.welcome("pulse")
        peer = coordinator.welcome("engine")
        coordinator.say(peer, Work(submission(direct, "a" * 32, n=3, seed=4, temperature=1.0)))
        pieces = outputs_of(coordinator, "a" * 32, 3)
    assert [[piece.token_ids for piece in pieces[i]] for i in range(3)] == [[c.generated_tokens] for c in expected]


def test_a_request_with_ids_beyond_the_vocabulary_is_refused_and_harms_nobody(
    credentials: Credentials, direct: MegatronLLM
) -> None:
    bad = submission(direct, "b" * 32)
    bad.prompt_tokens[2] = VOCAB_SIZE
    with FakeCoordinator(credentials) as coordinator, replica(credentials):
        coordinator.welcome("pulse")
        peer = coordinator.welcome("engine")
        coordinator.say(peer, Work(bad))
        coordinator.say(peer, Work(submission(direct, "a" * 32)))
        assert coordinator.hear(EngineRefusal)[1].error.code == "TokenOutOfRangeError"
        assert outputs_of(coordinator, "a" * 32)[0][-1].finish.reason == "length"


def test_an_aborted_request_sends_nothing_more(credentials: Credentials, direct: MegatronLLM) -> None:
    with FakeCoordinator(credentials) as coordinator, replica(credentials) as running:
        coordinator.welcome("pulse")
        peer = coordinator.welcome("engine")
        long = submission(direct, "a" * 32, num_tokens_to_generate=200, streaming=True)
        coordinator.say(peer, Work(long))
        coordinator.hear(EngineOutput)
        coordinator.say(peer, Abort("a" * 32))
        coordinator.say(peer, Work(submission(direct, "b" * 32)))
        last = outputs_of(coordinator, "b" * 32)[0][-1]
        assert last.finish.reason == "length"
        assert not running.llm.engine.has_unfinished_requests
        assert running.llm.engine.scheduler.check_ledger() == []


def test_a_new_coordinator_gets_a_replica_that_holds_nothing_of_the_old_one(
    credentials: Credentials, direct: MegatronLLM
) -> None:
    with replica(credentials):
        with FakeCoordinator(credentials) as first:
            first.welcome("pulse", "1" * 32)
            peer = first.welcome("engine", "1" * 32)
            first.say(peer, Work(submission(direct, "a" * 32, num_tokens_to_generate=200, streaming=True)))
            first.hear(EngineOutput)
        with FakeCoordinator(credentials) as second:
            pulse, _ = second.hear(Pulse)
            second.say(pulse, Unwelcome("hello", "who are you?"))
            second.welcome("pulse", "2" * 32)
            second.welcome("engine", "2" * 32)
            second.hear(Join)
            second.hear(Pulse, held_ids=[])


def test_a_replica_that_was_given_up_joins_again_as_a_new_one(credentials: Credentials, direct: MegatronLLM) -> None:
    with FakeCoordinator(credentials) as coordinator, replica(credentials) as running:
        before = running.state.incarnation
        coordinator.welcome("pulse")
        peer = coordinator.welcome("engine")
        coordinator.hear(Join)
        coordinator.say(peer, Unwelcome("fenced", "you were silent"))
        assert coordinator.hear(Hello, role="engine")[1].incarnation == running.state.incarnation != before


def test_a_replica_that_is_refused_for_good_ends(credentials: Credentials) -> None:
    with FakeCoordinator(credentials) as coordinator, replica(credentials) as running:
        peer, _ = coordinator.hear(Hello, role="engine")
        coordinator.say(peer, Unwelcome("model", "another model is served"))
        running.thread.join(10)
        assert isinstance(running.failure, ProtocolError)
        assert "another model is served" in str(running.failure)


@pytest.mark.parametrize("kv_mode", ["persist", "offload", "recompute"])
def test_paused_suspended_and_resumed_a_request_gives_the_same_tokens(
    credentials: Credentials, direct: MegatronLLM, kv_mode: str
) -> None:
    params = SamplingParams(num_tokens_to_generate=40, temperature=0.0, ignore_eos=True)
    expected = direct.generate([[5, 6, 7, 8, 9]], params)[0].generated_tokens
    with FakeCoordinator(credentials) as coordinator, replica(credentials):
        coordinator.welcome("pulse")
        peer = coordinator.welcome("engine")
        coordinator.say(peer, Work(submission(direct, "a" * 32, num_tokens_to_generate=40, streaming=True)))
        tokens = list(coordinator.hear(EngineOutput)[1].outputs[0].token_ids)
        for verb in ("pause", "suspend", "resume", "unpause"):
            coordinator.say(peer, EngineVerb(verb, verb, kv_mode))  # type: ignore[arg-type]
            assert coordinator.hear(VerbDone, nonce=verb)[1].error is None
        for piece in outputs_of(coordinator, "a" * 32)[0]:
            tokens += piece.token_ids
    assert tokens == expected


def test_what_happened_to_a_request_can_be_asked_for(credentials: Credentials, direct: MegatronLLM) -> None:
    with FakeCoordinator(credentials) as coordinator, replica(credentials):
        coordinator.welcome("pulse")
        peer = coordinator.welcome("engine")
        coordinator.say(peer, Work(submission(direct, "a" * 32)))
        outputs_of(coordinator, "a" * 32)
        coordinator.say(peer, TimelineQuery("n1", "a" * 32))
        timeline = coordinator.hear(TimelineAnswer)[1].timeline
        assert timeline is not None
        assert timeline[0]["event"] == "queued"
        assert timeline[-1]["event"] == "finished"
        coordinator.say(peer, TimelineQuery("n2", "f" * 32))
        assert coordinator.hear(TimelineAnswer)[1].timeline is None


def test_a_replica_that_is_told_to_stop_says_farewell(credentials: Credentials) -> None:
    with FakeCoordinator(credentials) as coordinator:
        with replica(credentials):
            coordinator.welcome("pulse")
            peer = coordinator.welcome("engine")
            coordinator.hear(Join)
        assert coordinator.hear(Farewell)[0] == peer
