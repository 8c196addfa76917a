"""How requests stop: preempted and resumed, aborted, too late, faulty. The world checks that each ends once."""

import pytest

from kilotron.inference_request import InferenceRequest, Status
from unit.scheduling.scheduler_world import SchedulerWorld


def crowded_world(*priorities: int, num_blocks: int = 9) -> tuple[SchedulerWorld, list[InferenceRequest]]:
    """Requests of two blocks each that grow to eight."""
    world = SchedulerWorld(num_blocks=num_blocks, max_tokens=64)
    requests = [
        world.add([token] * 3, max_generated=13, priority=priority) for token, priority in enumerate(priorities)
    ]
    return world, requests


def preempted(requests: list[InferenceRequest]) -> list[int]:
    return [index for index, request in enumerate(requests) if request.num_preemptions]


def step_until_preemption(world: SchedulerWorld) -> None:
    while not world.scheduler.num_preemptions:
        assert world.step() is not None


def test_newest_is_stopped_when_blocks_run_out() -> None:
    world, requests = crowded_world(0, 0, 0)
    step_until_preemption(world)
    assert preempted(requests) == [2]
    world.finish()


def test_least_important_is_stopped_when_blocks_run_out() -> None:
    world, requests = crowded_world(0, 5, 0)
    step_until_preemption(world)
    assert preempted(requests) == [1]
    world.finish()


def test_stopped_request_is_counted_and_waits_without_blocks() -> None:
    world, requests = crowded_world(0, 0)
    step_until_preemption(world)
    assert (world.scheduler.num_preemptions, requests[1].num_preemptions) == (1, 1)
    assert requests[1].status == Status.ACTIVE_BUT_NOT_GENERATING_TOKENS
    assert len(world.scheduler.running) == 1
    assert len(world.scheduler.waiting) == 1


def test_stopped_request_computes_again_only_what_was_evicted() -> None:
    world, requests = crowded_world(0, 0, num_blocks=12)
    step_until_preemption(world)
    length = len(world.watched[requests[1].request_id].tokens)
    world.abort(requests[0])
    plan = world.step()
    assert plan is not None
    (admission,) = plan.admissions
    assert 0 < len(plan.rows[0].token_ids) < length
    assert len(admission.cached_block_ids) * 2 + len(plan.rows[0].token_ids) == length


def test_stopped_request_comes_back_before_later_ones() -> None:
    world, requests = crowded_world(0, 0)
    step_until_preemption(world)
    later = world.add([7] * 3)
    world.abort(requests[0])
    plan = world.step()
    assert plan is not None
    assert [admission.request_id for admission in plan.admissions] == [requests[1].request_id, later.request_id]


def test_queue_time_and_cached_tokens_are_those_of_the_first_admission() -> None:
    world, requests = crowded_world(0, 0)
    step_until_preemption(world)
    world.now = 50.0
    world.finish()
    assert requests[1].timings.admitted == 0.0
    assert requests[1].num_cached_tokens == 0


def test_request_as_large_as_the_cache_runs_through_alone() -> None:
    world = SchedulerWorld(num_blocks=9)
    for token in range(4):
        world.add([token] * 4, max_generated=13)
    world.finish()
    assert world.scheduler.num_preemptions > 0


def test_waiting_request_can_be_aborted() -> None:
    world = SchedulerWorld(max_requests=1)
    world.add([1])
    world.step()
    world.abort(world.add([2]))
    world.finish()


def test_running_request_can_be_aborted_and_its_computed_blocks_stay_findable() -> None:
    world = SchedulerWorld(max_tokens=4)
    request = world.add([1] * 9)
    world.step()
    world.abort(request)
    again = world.add([1] * 9)
    world.step()
    assert again.num_cached_tokens == 4


def test_preempted_request_can_be_aborted() -> None:
    world, requests = crowded_world(0, 0)
    step_until_preemption(world)
    world.abort(requests[1])
    world.finish()


def test_unknown_request_cannot_be_aborted() -> None:
    assert not SchedulerWorld().scheduler.abort(77)


def test_one_of_n_continuations_can_be_aborted_without_the_others() -> None:
    world = SchedulerWorld()
    first = world.add([1, 2, 3], n=3)
    world.step()
    world.abort(first)
    world.finish()
    assert world.ends.total() == 3


@pytest.mark.parametrize("num_steps", [0, 2])
def test_request_expires_at_its_deadline_and_not_before(num_steps: int) -> None:
    world = SchedulerWorld()
    request = world.add([1], max_generated=9, deadline=5.0)
    world.steps(num_steps)
    assert world.wait(4.9) == []
    assert world.wait(0.1) == [request]
    assert world.step() is None


def test_deadline_of_a_finished_request_means_nothing() -> None:
    world = SchedulerWorld()
    world.add([1], max_generated=1, deadline=5.0)
    world.finish()
    assert world.wait(10.0) == []


def test_deadlines_of_finished_requests_do_not_pile_up() -> None:
    world = SchedulerWorld()
    for _ in range(500):
        world.add([1], max_generated=1, deadline=1e9)
        world.finish()
    assert len(world.scheduler._deadlines) < 100


def test_deadlines_expire_in_any_order_of_arrival() -> None:
    world = SchedulerWorld()
    requests = [world.add([1], deadline=deadline) for deadline in (9.0, 3.0, 6.0)]
    assert world.wait(7.0) == [requests[1], requests[2]]
    assert world.wait(7.0) == [requests[0]]


def test_faulty_row_ends_alone() -> None:
    world = SchedulerWorld()
    faulty, healthy = world.add([1, 2, 3]), world.add([4, 5, 6])
    world.step(faulty=faulty)
    assert (world.ends[faulty.request_id], world.ends[healthy.request_id]) == (1, 0)
    world.finish()


def test_failed_step_ends_its_rows_and_leaves_the_waiting_ones() -> None:
    world = SchedulerWorld(max_requests=1)
    failed, waiting = world.add([1, 2, 3]), world.add([1, 2, 3])
    world.fail_step()
    assert (world.ends[failed.request_id], world.ends[waiting.request_id]) == (1, 0)
    world.finish()


def test_slots_are_used_again() -> None:
    world = SchedulerWorld(max_requests=2)
    for token in range(5):
        world.add([token], max_generated=1)
    slots = [{row.slot for row in plan.rows} for plan in world.steps(5)]
    assert [len(step) for step in slots] == [2, 2, 1]
    assert set.union(*slots) == {0, 1}
