"""A request's way through the coordinator while nothing dies."""

from typing import Any

import msgspec
import pytest

from kilotron.coordinator.wire import (
    Abort,
    AbortById,
    BlockStored,
    ClientOutput,
    ControlAnswer,
    EngineOutput,
    EngineRefusal,
    Failure,
    Finish,
    MetricsAnswer,
    MetricsQuery,
    RequestError,
    ServiceStatus,
    TimelineAnswer,
    TimelineQuery,
    Work,
)
from unit.coordinator.core.core_world import FACTS, CoreWorld, output_of, submission_of

CREDITS = 2 * FACTS.max_requests


def id_of(number: int) -> str:
    return f"{number:032x}"


def busy_world(**options: Any) -> tuple[CoreWorld, bytes, bytes, bytes]:
    """One replica whose credits are all used -> world, engine, pulse, client."""
    world = CoreWorld(**options)
    engine, pulse = world.replica()
    client = world.client()
    for number in range(CREDITS):
        world.say(client, submission_of(id_of(number)))
    assert len(world.take(engine, Work)) == CREDITS
    return world, engine, pulse, client


def codes(world: CoreWorld, client: bytes) -> list[str]:
    return [failure.error.code for failure in world.take(client, Failure)]


def test_a_request_goes_to_a_replica_at_once_without_what_only_routing_needs() -> None:
    world = CoreWorld()
    engine, _ = world.replica()
    world.say(world.client(), submission_of(id_of(1), [7, 8], timeout_s=5.0, block_hashes=[b"h"]))
    (work,) = world.take(engine, Work)
    assert (work.submission.prompt_tokens, work.submission.block_hashes) == ([7, 8], [])
    assert work.submission.timeout_s == pytest.approx(5.0)


def test_all_output_of_a_step_for_one_client_is_one_message() -> None:
    world = CoreWorld()
    engine, _ = world.replica()
    one, two = world.client(), world.client()
    for client, number in ((one, 1), (one, 2), (two, 3)):
        world.say(client, submission_of(id_of(number)))
    world.give(engine, *(output_of(id_of(number), [number]) for number in (1, 2, 3)))
    assert [[o.token_ids for o in m.outputs] for m in world.take(one, ClientOutput)] == [[[1], [2]]]
    assert [[o.token_ids for o in m.outputs] for m in world.take(two, ClientOutput)] == [[[3]]]


def test_all_continuations_end_before_the_request_does() -> None:
    world = CoreWorld()
    engine, _ = world.replica()
    client = world.client()
    world.say(client, submission_of(id_of(1), params={"n": 2}))
    world.give(engine, output_of(id_of(1), [5], choice=1, finish="stop"))
    assert len(world.core.ledger) == 1
    world.give(engine, output_of(id_of(1), [5], choice=0, finish="length"))
    assert len(world.core.ledger) == 0


def test_credits_count_continuations() -> None:
    world = CoreWorld()
    engine, _ = world.replica()
    client = world.client()
    world.say(client, submission_of(id_of(1), params={"n": 3}))
    world.say(client, submission_of(id_of(2), params={"n": 2}))
    world.say(client, submission_of(id_of(3)))
    assert len(world.take(engine, Work)) == 1  # the queue keeps its order
    world.give(engine, *(output_of(id_of(1), [5], choice=choice, finish="stop") for choice in range(3)))
    assert [work.submission.request_id for work in world.take(engine, Work)] == [id_of(2), id_of(3)]


def test_credits_count_beams() -> None:
    world = CoreWorld()
    engine, _ = world.replica()
    client = world.client()
    world.say(client, submission_of(id_of(1), params={"beam_width": 3}))
    world.say(client, submission_of(id_of(2), params={"beam_width": 2}))
    world.say(client, submission_of(id_of(3)))
    assert len(world.take(engine, Work)) == 1  # the queue keeps its order
    world.give(engine, output_of(id_of(1), [5], finish="stop"))
    assert [work.submission.request_id for work in world.take(engine, Work)] == [id_of(2), id_of(3)]


def test_what_waits_goes_by_priority_once_there_is_credit() -> None:
    world, engine, _, client = busy_world()
    world.say(client, submission_of(id_of(10), params={"priority": 1}))
    world.say(client, submission_of(id_of(11), params={"priority": -1}))
    world.give(engine, output_of(id_of(0), [5], finish="stop"))
    assert [work.submission.request_id for work in world.take(engine, Work)] == [id_of(11)]


def test_a_full_queue_refuses_by_count_with_a_time_to_come_back() -> None:
    world, _, _, client = busy_world(max_queued_requests=1)
    world.say(client, submission_of(id_of(10)))
    world.say(client, submission_of(id_of(11)))
    (failure,) = world.take(client, Failure)
    assert (failure.request_id, failure.error.code) == (id_of(11), "NoPlaceInQueueError")
    assert failure.error.retry_after_s is not None
    assert 1 <= failure.error.retry_after_s <= 30


def test_a_full_queue_refuses_by_tokens() -> None:
    world, _, _, client = busy_world(max_queued_tokens=10)
    world.say(client, submission_of(id_of(10), [1] * 8))
    world.say(client, submission_of(id_of(11), [1] * 3))
    world.say(client, submission_of(id_of(12), [1] * 2))
    assert codes(world, client) == ["QueueFullError"]
    assert world.core.ledger.num_queued_tokens == 10


def test_an_owner_over_its_quota_is_refused() -> None:
    world = CoreWorld(max_concurrent_per_key=1)
    world.replica()
    client = world.client()
    world.say(client, submission_of(id_of(1), owner="me"))
    world.say(client, submission_of(id_of(2), owner="me"))
    assert codes(world, client) == ["QuotaExceededError"]


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_a_request_whose_time_is_over_is_never_run(timeout_s: float) -> None:
    world = CoreWorld()
    engine, _ = world.replica()
    client = world.client()
    world.say(client, submission_of(id_of(1), timeout_s=timeout_s))
    assert codes(world, client) == ["DeadlineExceededError"]
    assert world.take(engine, Work) == []


def test_a_deadline_that_passes_in_the_queue_ends_the_request_there() -> None:
    world, engine, pulse, client = busy_world()
    world.say(client, submission_of(id_of(10), timeout_s=0.5))
    world.say(client, submission_of(id_of(11), timeout_s=5.0))
    world.wait(0.7, (pulse,))
    assert codes(world, client) == ["DeadlineExceededError"]
    world.give(engine, output_of(id_of(0), [5], finish="stop"))
    (work,) = world.take(engine, Work)
    assert work.submission.request_id == id_of(11)
    assert work.submission.timeout_s == pytest.approx(4.3)


@pytest.mark.parametrize(
    "fields",
    [
        {"params": {"n": 0}},
        {"params": {"n": "2"}},
        {"params": {"n": 10**9}},
        {"params": {"priority": 1.5}},
        {"request_id": ""},
    ],
)
def test_a_submission_that_no_client_makes_is_refused(fields: dict[str, Any]) -> None:
    world = CoreWorld()
    world.replica()
    client = world.client()
    world.say(client, msgspec.structs.replace(submission_of(id_of(1)), **fields))
    assert codes(world, client) == ["InvalidRequestError"]


def test_an_abort_reaches_the_engine_and_frees_its_credit() -> None:
    world, engine, _, client = busy_world()
    world.say(client, submission_of(id_of(10)))
    world.say(client, Abort(id_of(0)))
    assert [message.request_id for message in world.mail[engine] if isinstance(message, Abort)] == [id_of(0)]
    assert [work.submission.request_id for work in world.take(engine, Work)] == [id_of(10)]
    world.say(client, Abort(id_of(0)))
    assert world.take(client, Failure) == []


def test_a_client_cannot_abort_what_another_sent() -> None:
    world, engine, _, _ = busy_world()
    world.say(world.client(), Abort(id_of(0)))
    assert world.take(engine, Abort) == []
    assert world.core.ledger.get(id_of(0)) is not None


def test_an_abort_by_id_tells_both_sides() -> None:
    world, engine, _, client = busy_world()
    controller = world.client("controller")
    world.say(controller, AbortById("n", id_of(0), None))
    assert [answer.error for answer in world.take(controller, ControlAnswer)] == [None]
    assert codes(world, client) == ["RequestAbortedError"]
    assert len(world.take(engine, Abort)) == 1
    world.say(controller, AbortById("n", id_of(0), None))
    (answer,) = world.take(controller, ControlAnswer)
    assert answer.error is not None
    assert answer.error.code == "RequestNotFoundError"


def test_a_refusal_of_the_engine_ends_the_request() -> None:
    world, engine, _, client = busy_world()
    world.say(engine, EngineRefusal(id_of(0), RequestError("TokenOutOfRangeError", "no")))
    assert codes(world, client) == ["TokenOutOfRangeError"]


def test_an_error_that_the_engine_decided_is_passed_on_as_it_is() -> None:
    world, engine, _, client = busy_world()
    finish = Finish("error", error=RequestError("StepFailedError", "boom"))
    world.give(engine, msgspec.structs.replace(output_of(id_of(0), []), finish=finish))
    (message,) = world.take(client, ClientOutput)
    assert message.outputs[0].finish == finish
    assert world.counters()["request_failures/StepFailedError"] == 1


def test_the_prefix_map_follows_the_engines_events() -> None:
    world = CoreWorld(routing_alpha=1.0)
    one, _ = world.replica()
    two, _ = world.replica()
    world.say(two, EngineOutput([], [BlockStored([b"h"], None, [], FACTS.block_size)]))
    client = world.client()
    for number in range(2):
        world.say(client, submission_of(id_of(number), [1] * 5, block_hashes=[b"h"]))
    assert (len(world.take(one, Work)), len(world.take(two, Work))) == (0, 2)


def test_a_timeline_is_fetched_from_the_replica_that_had_the_request() -> None:
    world, engine, _, client = busy_world()
    world.give(engine, output_of(id_of(0), [5], finish="stop"))
    world.say(client, TimelineQuery("mine", id_of(0)))
    (query,) = world.take(engine, TimelineQuery)
    world.say(engine, TimelineAnswer(query.nonce, [{"event": "finished"}]))
    world.say(engine, TimelineAnswer(query.nonce, []))
    assert world.take(client, TimelineAnswer) == [TimelineAnswer("mine", [{"event": "finished"}])]
    world.say(client, TimelineQuery("other", id_of(99)))
    assert world.take(client, TimelineAnswer) == [TimelineAnswer("other", None)]


def test_metrics_count_what_passed() -> None:
    world, engine, pulse, client = busy_world()
    world.now += 0.25
    world.give(engine, output_of(id_of(0), [5]))
    world.now += 0.25
    world.give(engine, output_of(id_of(0), [6, 7], 1, finish="stop"))
    world.beat(pulse, num_prompt_tokens=12, num_generated_tokens=3, num_running=2, num_blocks_owned=16)
    world.say(client, MetricsQuery("n"))
    (answer,) = world.take(client, MetricsAnswer)
    assert answer.counters["request_success/stop"] == 1
    assert answer.counters["generation_tokens"] == 3
    assert answer.gauges["kv_cache_usage_perc"] == 0.5
    assert answer.gauges["num_requests_in_flight"] == CREDITS - 1
    first, between = (
        answer.histograms[name] for name in ("time_to_first_token_seconds", "inter_token_latency_seconds")
    )
    assert (sum(first.counts), first.total) == (1, 0.25)
    assert (sum(between.counts), between.total) == (2, 0.25)
    assert len(first.counts) == len(first.bounds) + 1


def test_counters_of_a_replica_that_died_and_of_clients_that_left_stay() -> None:
    world = CoreWorld()
    engine, pulse = world.replica()
    world.beat(pulse, num_generated_tokens=40)
    world.leave(engine)
    _, pulse = world.replica()
    world.beat(pulse, num_generated_tokens=2)
    assert world.counters()["generation_tokens"] == 42
    assert world.counters()["replica_deaths"] == 1


def test_clients_are_told_at_once_when_the_service_becomes_ready() -> None:
    world = CoreWorld()
    client = world.client()
    assert not world.take(client, ServiceStatus)[-1].is_ready
    engine, _ = world.replica()
    statuses = world.take(client, ServiceStatus)
    assert [status.replicas[0].phase for status in statuses] == ["starting", "loading", "ready"]
    assert [status.facts for status in statuses] == [None, None, FACTS]
    assert statuses[-1].is_ready
    world.leave(engine)
    assert [status.is_ready for status in world.take(client, ServiceStatus)] == [False]


def test_clients_are_told_regularly_and_get_the_facts_first() -> None:
    world = CoreWorld()
    _, pulse = world.replica()
    client = world.client()
    assert world.take(client, ServiceStatus)[0].facts == FACTS
    world.wait(1.0, (pulse, client))
    assert 3 <= len(world.take(client, ServiceStatus)) <= 4


def test_the_line_that_people_grep_for_is_logged_every_ten_seconds_of_work(caplog: pytest.LogCaptureFixture) -> None:
    world = CoreWorld()
    _, pulse = world.replica()
    with caplog.at_level("INFO", "kilotron.coordinator.core.service_metrics"):
        for number in range(24):
            world.beat(pulse, num_prompt_tokens=10 * number, num_generated_tokens=20 * number, num_blocks_owned=8)
            world.wait(1.0)
    assert len(caplog.messages) == 2
    assert caplog.messages[0] == (
        "Avg prompt throughput: 10.0 tokens/s, Avg generation throughput: 20.0 tokens/s, Running: 0 reqs, "
        "Waiting: 0 reqs, KV cache usage: 25.0%, Prefix cache hit rate: 0.0%"
    )
    caplog.clear()
    world.wait(30.0, (pulse,))
    assert len(caplog.messages) <= 1
