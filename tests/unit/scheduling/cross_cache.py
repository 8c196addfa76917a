"""CrossCache: what the cache holds of encoder inputs: at each position, the salt, the whole input and the position."""

from collections.abc import Sequence

from kilotron.contexts.request_table import RequestTable
from kilotron.scheduling.step_plan import RowPlan, StepPlan
from kilotron.scheduling.step_planner import SchedulerLimits


class CrossCache:
    """Sees whether a decoder would ever look at another input than its own, or at one that is not computed."""

    def __init__(self, num_blocks: int, limits: SchedulerLimits) -> None:
        self.block_size = limits.block_size
        self.table = RequestTable(limits.max_requests, num_blocks)
        self.values: dict[tuple[int, int], tuple[object, ...]] = {}
        self.num_computed = 0

    def take_in(self, plan: StepPlan) -> None:
        for admission in plan.admissions:
            self.table.admit(admission.slot, list(admission.cross_block_ids))
        granted = [block for row in plan.rows for block in row.block_ids]
        for block in granted + [block for row in plan.rows for block in self._written(row)]:
            for offset in range(self.block_size):
                self.values.pop((block, offset), None)

    def compute(self, row: RowPlan, salt: str) -> None:
        if row.encoder is None:
            return
        self.num_computed += len(row.encoder.token_ids)
        for position in range(row.encoder.num_cached, len(row.encoder.token_ids)):
            self.values[self._place(row.slot, position)] = (salt, *row.encoder.token_ids, position)

    def spoil(self, row: RowPlan) -> None:
        for block in self._written(row):
            for offset in range(self.block_size):
                self.values[block, offset] = ("spoilt",)

    def check(self, row: RowPlan, salt: str, tokens: Sequence[int]) -> None:
        for position in range(len(tokens)):
            value = self.values.get(self._place(row.slot, position))
            assert value == (salt, *tokens, position), f"request {row.request_id} would read {value} at {position}"

    def blocks_of(self, slot: int) -> list[int]:
        return [block for block in self.table.block_ids[slot].tolist() if block]

    def _written(self, row: RowPlan) -> list[int]:
        if row.encoder is None:
            return []
        assert row.encoder.num_cached % self.block_size == 0
        return self.blocks_of(row.slot)[row.encoder.num_cached // self.block_size :]

    def _place(self, slot: int, position: int) -> tuple[int, int]:
        block = int(self.table.block_ids[slot, position // self.block_size])
        assert block != 0, f"slot {slot} has no block for position {position} of its encoder"
        return block, position % self.block_size
