"""Who may run: priorities, aging, bypass and barrier, what is refused at once."""

import pytest

from kilotron.errors import QueueFullError, RequestNeverFitsError
from kilotron.inference_request import Status
from kilotron.scheduling.step_plan import StepPlan
from unit.scheduling.scheduler_world import SchedulerWorld


def admitted(plan: StepPlan | None) -> list[int]:
    return [] if plan is None else [admission.request_id for admission in plan.admissions]


def test_request_waits_until_a_step_admits_it() -> None:
    world = SchedulerWorld()
    request = world.add([1, 2, 3])
    assert request.status == Status.WAITING_IN_QUEUE
    world.now = 7.0
    plan = world.step()
    assert admitted(plan) == [request.request_id]
    assert request.status == Status.ACTIVE_AND_GENERATING_TOKENS
    assert request.timings.admitted == 7.0


def test_admission_tells_the_slot_all_about_its_request() -> None:
    world = SchedulerWorld()
    request = world.add([1, 2, 3], salt="tenant")
    plan = world.step()
    assert plan is not None
    (admission,) = plan.admissions
    assert admission.sampling_params is request.sampling_params
    assert (admission.seed, admission.end_ids, admission.bad_word_ids) == (0, frozenset(), ())
    assert (admission.prompt_length, admission.cached_block_ids) == (3, [])


def test_nothing_to_do_is_no_plan() -> None:
    assert SchedulerWorld().step() is None


def test_lower_priority_number_runs_first_then_arrival() -> None:
    world = SchedulerWorld(max_requests=2)
    ids = [world.add([token], priority=priority).request_id for token, priority in enumerate((1, 0, 0, -1))]
    assert admitted(world.step()) == [ids[3], ids[1]]


def test_running_requests_are_not_pushed_out_by_a_more_important_one() -> None:
    world = SchedulerWorld(max_requests=1)
    world.add([1], max_generated=3)
    world.step()
    urgent = world.add([2], priority=-5)
    assert [admitted(world.step()) for _ in range(3)] == [[], [], [urgent.request_id]]


def test_unimportant_request_gets_its_turn_behind_a_stream_of_important_ones() -> None:
    world = SchedulerWorld(max_requests=1, aging_steps=4)
    patient = world.add([1], priority=3, max_generated=1)
    num_steps = 0
    while not world.ends[patient.request_id]:
        world.add([2], priority=0, max_generated=1)
        world.step()
        num_steps += 1
    assert num_steps == 4 * 3


def test_without_aging_it_would_have_waited_for_ever() -> None:
    world = SchedulerWorld(max_requests=1, aging_steps=1000)
    patient = world.add([1], priority=3, max_generated=1)
    for _ in range(100):
        world.add([2], priority=0, max_generated=1)
        world.step()
    assert not world.ends[patient.request_id]


def world_with_a_large_one_waiting() -> tuple[SchedulerWorld, int]:
    """Four of six blocks are taken for long, so that a prompt of five blocks has to wait."""
    world = SchedulerWorld(num_blocks=7, max_requests=3, enable_prefix_caching=False)
    world.add([0] * 7, max_generated=2)
    world.step()
    return world, world.add([1] * 9, max_generated=1).request_id


def test_small_request_passes_one_that_does_not_fit() -> None:
    world, large = world_with_a_large_one_waiting()
    small = world.add([2], max_generated=1).request_id
    assert admitted(world.step()) == [small]
    assert admitted(world.step()) == [large]


def test_nobody_passes_any_more_after_64_have() -> None:
    world = SchedulerWorld(num_blocks=7, max_requests=3)
    world.add([0], max_generated=2)
    world.step()
    large = world.add([1] * 11, max_generated=1)
    order = []
    while large.timings.admitted is None:
        world.add([2], max_generated=2)
        order += admitted(world.step())
    assert order.index(large.request_id) == 64


def test_newcomer_leaves_every_running_request_a_block() -> None:
    """Or it would be stopped again as soon as they grow."""
    world = SchedulerWorld(num_blocks=7, enable_prefix_caching=False)
    world.add([0] * 4, max_generated=2)
    world.add([1] * 4, max_generated=2)
    world.step()
    newcomer = world.add([2], max_generated=1).request_id
    world.add([3] * 3, max_generated=1)
    plan = world.step()
    assert admitted(plan) == []
    assert newcomer in admitted(world.step())
    assert world.scheduler.num_preemptions == 0


def test_request_with_more_tokens_than_the_cache_is_refused_with_the_numbers() -> None:
    world = SchedulerWorld(num_blocks=5)
    with pytest.raises(RequestNeverFitsError, match=r"5 KV blocks \(9 tokens\) .* has 4; .* buffer_size_gb"):
        world.add([1] * 5, max_generated=5)
    world.add([1] * 5, max_generated=4)
    world.finish()


def test_prompt_longer_than_a_step_is_refused_where_it_cannot_be_split() -> None:
    world = SchedulerWorld(max_tokens=4, enable_chunked_prefill=False)
    with pytest.raises(RequestNeverFitsError, match=r"5 prompt tokens, more than max_tokens=4; enable chunked prefill"):
        world.add([1] * 5)
    SchedulerWorld(max_tokens=4).add([1] * 5)


def test_prompt_with_more_scores_than_a_step_is_refused_where_it_cannot_be_split() -> None:
    world = SchedulerWorld(max_logits_tokens=4, enable_chunked_prefill=False)
    with pytest.raises(RequestNeverFitsError, match=r"5 prompt tokens, more than max_logits_tokens=4"):
        world.add([1] * 5, scores_prompt=True)
    world.add([1] * 5)
    world.finish()


def test_full_queue_says_so_and_takes_requests_again_later() -> None:
    world = SchedulerWorld(max_requests=1, max_waiting_requests=2)
    world.add([1])
    world.add([2])
    with pytest.raises(QueueFullError, match="2 requests wait already"):
        world.add([3])
    world.step()
    world.add([3])
    world.finish()


def test_hundreds_of_requests_end_once_each() -> None:
    world = SchedulerWorld(num_blocks=33, max_requests=8, max_tokens=16)
    ids = [world.add([number % 7] * (number % 11 + 1), priority=number % 3).request_id for number in range(300)]
    world.finish()
    assert world.ends == dict.fromkeys(ids, 1)
