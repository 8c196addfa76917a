"""What a step computes: chunks of prompts, new tokens and scores, within the step's bounds."""

import pytest

from kilotron.scheduling.step_plan import ScoreSpan, StepPlan
from unit.scheduling.scheduler_world import SchedulerWorld


def lengths(plan: StepPlan | None) -> list[int]:
    assert plan is not None
    return [len(row.token_ids) for row in plan.rows]


def spans(plan: StepPlan | None) -> list[ScoreSpan | None]:
    assert plan is not None
    return [row.score for row in plan.rows]


def test_prompt_is_computed_at_once_when_it_fits_a_step() -> None:
    world = SchedulerWorld(max_tokens=8)
    world.add([1] * 8, max_generated=3)
    assert [lengths(plan) for plan in world.steps(3)] == [[8], [1], [1]]


def test_long_prompt_is_computed_in_chunks_and_samples_after_the_last() -> None:
    world = SchedulerWorld(max_tokens=8)
    world.add([1] * 19)
    plans = world.steps(4)
    assert [lengths(plan) for plan in plans] == [[8], [8], [3], [1]]
    assert [plan.rows[0].samples for plan in plans] == [False, False, True, True]


def test_decoding_rows_keep_their_token_beside_a_long_prompt() -> None:
    world = SchedulerWorld(max_tokens=8)
    for token in range(3):
        world.add([token])
    world.step()
    world.add([9] * 12)
    assert [lengths(plan) for plan in world.steps(4)] == [[1, 1, 1, 5], [1, 1, 1, 5], [1, 1, 1, 2], [1]]


def test_more_important_long_prompt_leaves_one_token_to_each_running_row() -> None:
    world = SchedulerWorld(max_tokens=8)
    for token in range(3):
        world.add([token], max_generated=9)
    world.step()
    world.add([9] * 12, priority=-1)
    assert lengths(world.step()) == [1, 1, 1, 5]
    assert lengths(world.step()) == [5, 1, 1, 1]


def test_step_mixes_new_prompts_with_running_rows() -> None:
    world = SchedulerWorld(max_tokens=16)
    world.add([1, 2, 3])
    world.step()
    world.add([4, 5])
    world.add([6])
    plan = world.step()
    assert lengths(plan) == [1, 2, 1]
    assert [row.samples for row in plan.rows] == [True] * 3


def test_rows_that_find_no_token_left_wait_a_step() -> None:
    world = SchedulerWorld(max_tokens=2)
    for token in range(3):
        world.add([token], max_generated=2)
    assert [lengths(plan) for plan in world.steps(3)] == [[1, 1], [1, 1], [1]]


def test_logits_bound_the_number_of_rows_that_sample() -> None:
    world = SchedulerWorld(max_logits_tokens=2)
    for token in range(3):
        world.add([token], max_generated=1)
    assert [lengths(plan) for plan in world.steps(2)] == [[1, 1], [1]]


def test_unsplit_prompt_waits_for_a_step_with_room_for_all_of_it() -> None:
    world = SchedulerWorld(max_tokens=8, enable_chunked_prefill=False)
    world.add([1], max_generated=3)
    world.step()
    world.add([2] * 8, max_generated=1)
    assert [lengths(plan) for plan in world.steps(3)] == [[1], [1], [8]]


def test_preempted_request_that_outgrew_a_step_is_split_even_where_prompts_are_not() -> None:
    world = SchedulerWorld(num_blocks=9, max_tokens=5, enable_chunked_prefill=False, enable_prefix_caching=False)
    world.add([1] * 4, max_generated=9)
    second = world.add([0], max_generated=9)
    world.finish()
    assert second.num_preemptions > 0


def test_scored_prompt_asks_for_each_position_once() -> None:
    world = SchedulerWorld()
    world.add([5, 6, 7, 8], scores_prompt=True)
    assert spans(world.step()) == [ScoreSpan(0, [6, 7, 8])]
    assert spans(world.step()) == [None]


def test_prompt_scores_are_split_where_logits_are_few() -> None:
    world = SchedulerWorld(max_logits_tokens=3)
    world.add([4, 5, 6, 7, 8], scores_prompt=True, max_generated=1)
    plans = world.steps(9)
    assert [lengths(plan) for plan in plans] == [[3], [2]]
    assert [spans(plan) for plan in plans] == [[ScoreSpan(0, [5, 6, 7])], [ScoreSpan(0, [8])]]


def test_request_that_only_scores_samples_nothing() -> None:
    world = SchedulerWorld()
    world.add([5, 6, 7], scores_prompt=True, max_generated=0)
    plan = world.step()
    assert plan is not None
    assert not plan.rows[0].samples
    assert world.step() is None


def test_scored_prompt_is_computed_although_it_is_cached() -> None:
    world = SchedulerWorld()
    world.add([1, 2, 3, 4, 5], max_generated=1)
    world.finish()
    scored = world.add([1, 2, 3, 4, 5], scores_prompt=True, max_generated=1)
    assert spans(world.step()) == [ScoreSpan(0, [2, 3, 4, 5])]
    assert scored.num_cached_tokens == 0


def test_scored_prompt_goes_on_where_it_was_preempted_without_scoring_again() -> None:
    world = SchedulerWorld(num_blocks=9)
    world.add([0] * 4, max_generated=9)
    scored = world.add([1] * 4, max_generated=9, scores_prompt=True)
    world.finish()
    assert scored.num_preemptions > 0  # and the world has seen each position scored once


@pytest.mark.parametrize("block_size", [1, 2, 3, 16])
def test_blocks_are_granted_when_the_first_token_needs_them(block_size: int) -> None:
    world = SchedulerWorld(block_size=block_size)
    world.add([1] * 5, max_generated=8)
    num_blocks = 0
    for length, plan in enumerate(world.steps(8), 5):
        num_blocks += len(plan.rows[0].block_ids)
        assert num_blocks == -(-length // block_size)
