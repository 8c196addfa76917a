"""Encoder inputs in the scheduler: computed once, shared by equals, given back, refused where they never fit."""

import pytest

from kilotron.errors import RequestNeverFitsError
from kilotron.scheduling.cross_blocks import CrossBlocks
from kilotron.scheduling.prefix_cache import PrefixCache
from unit.scheduling.scheduler_world import SchedulerWorld

INPUT = [7, 8, 9, 7, 8]


def encoders_of(world: SchedulerWorld) -> list[int]:
    """Tokens that the encoder runs on in the next step, by row."""
    plan = world.step()
    assert plan is not None
    return [0 if row.encoder is None else len(row.encoder.token_ids) for row in plan.rows]


def test_an_equal_input_waits_for_the_first_and_is_not_computed_again() -> None:
    world = SchedulerWorld()
    for _ in range(3):
        world.add([0], encoder=INPUT)
    assert encoders_of(world) == [5]
    assert encoders_of(world) == [0, 0, 0]
    assert (world.scheduler.counts.encoder_computed, world.scheduler.counts.encoder_cached) == (5, 10)
    world.finish()


def test_inputs_that_only_begin_alike_share_nothing() -> None:
    world = SchedulerWorld()
    world.add([0], encoder=INPUT)
    world.add([0], encoder=[*INPUT, 7])
    assert encoders_of(world) == [5, 6]
    world.finish()


@pytest.mark.parametrize("different", [{"salt": "other"}, {"encoder": INPUT[:-1]}])
def test_requests_of_another_salt_or_input_compute_their_own(different: dict[str, object]) -> None:
    world = SchedulerWorld()
    world.add([0], encoder=INPUT)
    world.finish()
    world.add([0], **{"encoder": INPUT, **different})
    assert world.scheduler.counts.encoder_cached == 0
    assert encoders_of(world) != [0]
    world.finish()


def test_a_decoder_prompt_is_not_shared_between_encoder_inputs() -> None:
    world = SchedulerWorld()
    world.add([1, 2, 3, 4, 5], encoder=INPUT)
    world.finish()
    other = world.add([1, 2, 3, 4, 5], encoder=[1])
    same = world.add([1, 2, 3, 4, 5], encoder=INPUT)
    world.finish()
    assert (other.num_cached_tokens, same.num_cached_tokens) == (0, 4 + len(INPUT))


def test_what_is_left_of_an_input_in_the_cache_is_used_and_the_rest_is_written_again() -> None:
    world = SchedulerWorld(num_blocks=8)
    world.add([0], encoder=INPUT, max_generated=1)
    world.finish()
    world.add([0] * 9, max_generated=1)  # takes the last of the input's three blocks
    world.finish()
    world.add([0], encoder=INPUT, max_generated=1)
    plan = world.step()
    assert [row.encoder.num_cached for row in plan.rows] == [4]


def test_without_prefix_caching_only_continuations_of_one_prompt_share() -> None:
    world = SchedulerWorld(enable_prefix_caching=False)
    world.add([0], encoder=INPUT, n=3)
    world.add([0], encoder=INPUT)
    world.finish()
    assert world.scheduler.counts.encoder_computed == 10


def test_a_faulty_step_leaves_nothing_of_its_input_behind() -> None:
    world = SchedulerWorld()
    first = world.add([0], encoder=INPUT)
    world.add([0], encoder=INPUT)
    world.step(faulty=first)
    assert encoders_of(world) == [5]
    world.finish()


def test_preempted_requests_find_their_input_again() -> None:
    world = SchedulerWorld()
    world.add([0], encoder=INPUT)
    world.step()
    world.preempt_all()
    assert encoders_of(world) == [0]
    world.finish()


def test_an_input_counts_as_tokens_of_its_step() -> None:
    world = SchedulerWorld(max_tokens=8)
    world.add([0, 1, 2, 3, 4], encoder=INPUT)
    plan = world.step()
    assert (plan.num_tokens, len(plan.rows[0].token_ids)) == (8, 3)
    world.finish()


@pytest.mark.parametrize(("num_blocks", "max_tokens", "what"), [(4, 64, "KV blocks"), (65, 5, "encoder tokens")])
def test_an_input_that_never_fits_is_refused(num_blocks: int, max_tokens: int, what: str) -> None:
    world = SchedulerWorld(num_blocks=num_blocks, max_tokens=max_tokens)
    with pytest.raises(RequestNeverFitsError, match=what):
        world.add([0], encoder=INPUT)


def test_no_decoder_prompt_can_pass_for_an_encoder_input() -> None:
    cross = CrossBlocks("salt", INPUT, block_size=2)
    cache = PrefixCache()
    cross.start([])
    cross.block_ids = [1, 2, 3]
    cross.register(cache)
    assert cross.find(cache) == [1, 2, 3]
    assert CrossBlocks("salt", cross.token_ids[:2], block_size=2).find(cache) == []
    assert cross.decoder_root not in cross.chains
