"""StaticScheduler: fills a batch and runs it out before it takes the next. No prefix sharing, no preemption."""

from collections.abc import Sequence

from kilotron.scheduling.cross_blocks import CrossBlocks
from kilotron.scheduling.scheduled_request import ScheduledRequest
from kilotron.scheduling.scheduler import Scheduler
from kilotron.scheduling.static_block_allocator import StaticBlockAllocator
from kilotron.scheduling.step_plan import Admission, RowPlan
from kilotron.scheduling.step_planner import SchedulerLimits, StepBudget


class StaticScheduler(Scheduler):
    """The scheduler of a static batch: `limits.max_requests` rows with `blocks_per_row` blocks each.

    A row gets all the blocks it can need when it is admitted, so that it always runs to its end.
    """

    allocator: StaticBlockAllocator

    def __init__(self, limits: SchedulerLimits, blocks_per_row: int) -> None:
        super().__init__(limits, 1 + limits.max_requests * blocks_per_row)
        self._blocks_per_row = blocks_per_row
        self._is_filling = False
        self.allocator = StaticBlockAllocator(self.allocator.num_blocks, blocks_per_row)

    def reset(self) -> None:
        """See `Scheduler`."""
        super().reset()
        self._is_filling = False
        self.allocator = StaticBlockAllocator(self.allocator.num_blocks, self._blocks_per_row)

    def _admit(self, budget: StepBudget, rows: list[RowPlan], now: float) -> list[Admission]:
        """A batch is filled while nothing runs yet, over several steps if its prompts are too long for one."""
        if not self.running:
            self._is_filling = True
        if not self._is_filling:
            return []
        admissions = super()._admit(budget, rows, now)
        is_short_of_budget = budget.is_spent or bool(admissions)
        self._is_filling = is_short_of_budget and bool(self._free_slots) and len(self.waiting) > 0
        return admissions

    def _blocks_to_start(self, item: ScheduledRequest, length: int) -> int:
        self.allocator.prefer_region(self._free_slots[-1])
        # The last token generated is never computed.
        num_positions = item.request.prompt_length + max(item.request.max_generated - 1, 0)
        return -(-num_positions // self.limits.block_size)

    def _has_room(self, count: int, cached: list[int]) -> bool:
        return count <= self.allocator.num_available

    def _find_cached(self, item: ScheduledRequest) -> list[int]:
        return []

    def _find_cross(self, cross: CrossBlocks) -> list[int]:
        return []

    def _register_cross(self, item: ScheduledRequest, cross: CrossBlocks) -> None:
        cross.is_computed = True

    def _is_expected(self, item: ScheduledRequest, num_cached: int) -> bool:
        return False

    def _expect(self, item: ScheduledRequest) -> None:
        """Nobody waits for another's blocks."""

    def _register(self, item: ScheduledRequest) -> None:
        """Nobody looks for them."""

    def _unexpect(self, item: ScheduledRequest, chains: Sequence[bytes]) -> None:
        """As nobody waits."""
