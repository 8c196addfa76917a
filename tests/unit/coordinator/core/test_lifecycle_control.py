"""Lifecycle verbs over several replicas."""

from kilotron.config import KVMode
from kilotron.coordinator.wire import (
    Control,
    ControlAnswer,
    EngineVerb,
    Failure,
    RequestError,
    Verb,
    VerbDone,
)
from unit.coordinator.core.core_world import CoreWorld, output_of, submission_of

ID = "a" * 32


class Controlled:
    """Two replicas and a controller."""

    def __init__(self) -> None:
        self.world = CoreWorld(step_timeout_s=2.0)
        self.engines = [self.world.replica(), self.world.replica()]
        self.controller = self.world.client("controller")
        self.client = self.world.client()
        self.beating = (*(pulse for _, pulse in self.engines), self.controller, self.client)

    def ask(self, verb: Verb, kv_mode: KVMode = "persist") -> None:
        self.world.say(self.controller, Control("n", verb, kv_mode))

    def answer(self, engine: bytes, freed_bytes: int = 0, error: RequestError | None = None) -> None:
        for verb in self.world.take(engine, EngineVerb):
            self.world.say(engine, VerbDone(verb.nonce, freed_bytes, error))

    def answers(self) -> list[ControlAnswer]:
        return self.world.take(self.controller, ControlAnswer)

    def do(self, verb: Verb, kv_mode: KVMode = "persist", freed_bytes: int = 0) -> ControlAnswer:
        self.ask(verb, kv_mode)
        for engine, _ in self.engines:
            self.answer(engine, freed_bytes)
        (answer,) = self.answers()
        return answer


def codes(answers: list[ControlAnswer]) -> list[str | None]:
    return [answer.error and answer.error.code for answer in answers]


def test_a_verb_is_answered_once_all_replicas_have_done_it() -> None:
    both = Controlled()
    both.ask("pause")
    both.answer(both.engines[0][0])
    assert both.answers() == []
    both.answer(both.engines[1][0])
    assert both.answers() == [ControlAnswer("n", "paused")]


def test_suspending_sums_up_what_it_freed() -> None:
    both = Controlled()
    both.do("pause")
    assert both.do("suspend", "offload", freed_bytes=100) == ControlAnswer("n", "suspended", 200)
    assert both.do("resume").state == "paused"
    assert both.do("unpause").state == "running"


def test_repeats_are_answered_at_once_and_wrong_order_is_refused() -> None:
    both = Controlled()
    both.do("pause")
    both.ask("pause")
    assert both.answers() == [ControlAnswer("n", "paused")]
    both.do("suspend")
    both.ask("unpause")
    (answer,) = both.answers()
    assert answer.error is not None
    assert "resume first" in answer.error.message


def test_one_verb_at_a_time() -> None:
    both = Controlled()
    both.ask("pause")
    both.ask("suspend")
    assert codes(both.answers()) == ["LifecycleError"]


def test_requests_wait_while_paused_and_go_on_after() -> None:
    both = Controlled()
    both.do("pause")
    both.world.say(both.client, submission_of(ID))
    assert both.world.core.ledger.num_queued == 1
    both.do("unpause")
    assert both.world.core.ledger.num_queued == 0


def test_while_suspended_requests_are_refused() -> None:
    both = Controlled()
    both.do("pause")
    both.do("suspend")
    both.world.say(both.client, submission_of(ID))
    assert [failure.error.code for failure in both.world.take(both.client, Failure)] == ["ServiceUnavailableError"]


def test_running_requests_go_on_to_their_end_after_a_pause() -> None:
    both = Controlled()
    both.world.say(both.client, submission_of(ID))
    engine = both.engines[0][0]
    both.do("pause")
    both.do("unpause")
    both.world.give(engine, output_of(ID, [5], finish="stop"))
    assert len(both.world.core.ledger) == 0


def test_a_replica_that_joins_is_brought_in_step() -> None:
    both = Controlled()
    both.do("pause")
    both.do("suspend", "recompute")
    engine, _ = both.world.replica()
    verbs = [(verb.verb, verb.kv_mode) for verb in both.world.take(engine, EngineVerb)]
    assert verbs == [("pause", "recompute"), ("suspend", "recompute")]


def test_a_death_during_a_verb_is_told_and_the_others_follow_it() -> None:
    both = Controlled()
    both.ask("pause")
    both.world.leave(both.engines[0][0])
    both.answer(both.engines[1][0])
    (answer,) = both.answers()
    assert (answer.state, codes([answer])) == ("paused", ["EngineDiedError"])


def test_a_verb_that_all_replicas_refuse_never_happened() -> None:
    both = Controlled()
    both.do("pause")
    both.ask("suspend", "offload")
    for engine, _ in both.engines:
        both.answer(engine, error=RequestError("LifecycleError", "no room to offload to"))
    (answer,) = both.answers()
    assert (answer.state, codes([answer])) == ("paused", ["LifecycleError"])
    assert len(both.world.status().replicas) == 2


def test_a_replica_that_alone_does_not_follow_is_given_up() -> None:
    both = Controlled()
    both.do("pause")
    both.ask("suspend")
    both.answer(both.engines[0][0], freed_bytes=5)
    both.answer(both.engines[1][0], error=RequestError("LifecycleError", "no"))
    (answer,) = both.answers()
    assert (answer.state, codes([answer])) == ("suspended", ["LifecycleError"])
    assert len(both.world.status().replicas) == 1


def test_a_verb_that_takes_too_long_is_answered_and_the_silent_replica_given_up() -> None:
    both = Controlled()
    both.ask("pause")
    both.answer(both.engines[0][0])
    both.world.wait(2.2, both.beating)
    (answer,) = both.answers()
    assert (answer.state, codes([answer])) == ("paused", ["LifecycleError"])
    assert len(both.world.status().replicas) == 1


def test_a_paused_replica_does_not_count_as_hung() -> None:
    both = Controlled()
    both.do("pause")
    for _ in range(40):
        for _, pulse in both.engines:
            both.world.beat(pulse, num_running=1, num_steps=5)
        both.world.wait(0.1, (both.controller, both.client))
    assert len(both.world.status().replicas) == 2
