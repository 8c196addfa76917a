"""Block allocator and prefix cache against a naive model: any order of actions, the exact blocks found and evicted."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from kilotron.scheduling.block_allocator import DynamicBlockAllocator
from kilotron.scheduling.prefix_cache import PrefixCache
from unit.scheduling.allocator_world import AllocatorWorld, Sequence
from unit.scheduling.state_machine import explore

texts = st.lists(st.integers(0, 1), min_size=1, max_size=9)
picks = st.integers(0, 7)


class BlockAllocatorMachine(RuleBasedStateMachine):
    """Two tokens, two salts, few blocks: everything collides that can."""

    @initialize(num_blocks=st.integers(2, 12))
    def build(self, num_blocks: int) -> None:
        self.world = AllocatorWorld(DynamicBlockAllocator(num_blocks, PrefixCache()))

    @rule(salt=st.sampled_from(["", "other"]), tokens=texts)
    def start(self, salt: str, tokens: list[int]) -> None:
        self.world.start(salt, tokens)

    @precondition(lambda self: self.world.sequences)
    @rule(pick=picks, tokens=texts)
    def extend(self, pick: int, tokens: list[int]) -> None:
        self.world.extend(self.picked(pick), tokens)

    @precondition(lambda self: self.world.sequences)
    @rule(pick=picks)
    def fork(self, pick: int) -> None:
        self.world.fork(self.picked(pick))

    @precondition(lambda self: self.world.sequences)
    @rule(pick=picks)
    def finish(self, pick: int) -> None:
        self.world.finish(self.picked(pick))

    @precondition(lambda self: self.world.sequences)
    @rule(pick=picks)
    def discard(self, pick: int) -> None:
        self.world.discard(self.picked(pick))

    @rule()
    def clear_cache(self) -> None:
        self.world.clear_cache()

    @invariant()
    def model_and_allocator_agree(self) -> None:
        self.world.check()

    def picked(self, pick: int) -> Sequence:
        return self.world.sequences[pick % len(self.world.sequences)]

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.tear_down()


def test_allocator_agrees_with_its_model_in_any_order_of_actions() -> None:
    explore(BlockAllocatorMachine, max_examples=150, num_steps=30)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_allocator_agrees_with_its_model_in_many_orders_of_actions() -> None:
    explore(BlockAllocatorMachine, max_examples=4000, num_steps=50)
