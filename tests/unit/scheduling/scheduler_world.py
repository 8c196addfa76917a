"""SchedulerWorld: plays engine, model and users to a Scheduler and checks every plan against what must hold.

Its KV cache holds, at each position, the salt and all tokens the value was computed from; a row's new values are
computed from what the cache holds at the position before, as in a model. So if the scheduler ever runs a row on
blocks that do not hold exactly its own history, the world sees it.
"""

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from kilotron.contexts.request_table import RequestTable
from kilotron.errors import KilotronError, NumericalError, RequestNeverFitsError
from kilotron.inference_request import InferenceRequest, RequestTimings, Status
from kilotron.sampling_params import SamplingParams
from kilotron.scheduling.block_allocator import DynamicBlockAllocator
from kilotron.scheduling.scheduler import Scheduler
from kilotron.scheduling.step_plan import Admission, RowPlan, StepPlan, StepResult
from kilotron.scheduling.step_planner import SchedulerLimits
from unit.scheduling.cache_mirror import CacheMirror
from unit.scheduling.cross_cache import CrossCache

DEFAULT_LIMITS = SchedulerLimits(
    block_size=2,
    max_requests=8,
    max_tokens=64,
    max_logits_tokens=64,
    max_waiting_requests=1000,
    aging_steps=256,
    enable_prefix_caching=True,
    enable_chunked_prefill=True,
)


@dataclass(eq=False)
class Watched:
    """What the world itself knows of a request."""

    request: InferenceRequest
    salt: str
    """Only requests with the same one may share blocks."""
    tokens: list[int]
    order: int
    queued_step: int
    num_computed: int = 0
    slot: int | None = None
    num_preemptions: int = 0
    num_admissions: int = 0
    scored: list[int] = field(default_factory=list)

    @property
    def importance(self) -> tuple[int, int]:
        return self.request.sampling_params.priority, self.order

    @property
    def is_done(self) -> bool:
        """Whether it has all it asked for; one that generates nothing asked for its prompt to be scored."""
        request = self.request
        if request.max_generated == 0:
            return self.num_computed == request.prompt_length
        return len(self.tokens) == request.prompt_length + request.max_generated


class KVCache:
    """One value per position: (salt, token 0, ..., token of the position)."""

    def __init__(self, num_blocks: int, limits: SchedulerLimits) -> None:
        self.block_size = limits.block_size
        self.table = RequestTable(limits.max_requests, num_blocks)
        self.values: dict[tuple[int, int], tuple[object, ...]] = {}

    def take_in(self, plan: StepPlan) -> None:
        """Does what the context does with a plan's admissions and grants."""
        for admission in plan.admissions:
            self.table.admit(admission.slot, admission.cached_block_ids)
        for row in plan.rows:
            self.table.append(row.slot, row.block_ids)
            for block in row.block_ids:
                for offset in range(self.block_size):
                    self.values.pop((block, offset), None)

    def place(self, slot: int, position: int) -> tuple[int, int]:
        block = int(self.table.block_ids[slot, position // self.block_size])
        assert block != 0, f"slot {slot} has no block for position {position}"
        return block, position % self.block_size

    def check(self, row: RowPlan, salt: str, tokens: Sequence[int]) -> None:
        """All that the row attends to must be its own history."""
        for position in range(row.start):
            value = self.values.get(self.place(row.slot, position))
            assert value == (salt, *tokens[: position + 1]), (
                f"request {row.request_id} at position {position} would read {value}, not {tokens[: position + 1]}"
            )

    def compute(self, row: RowPlan, salt: str) -> None:
        """Adds the row's own values."""
        before = self.values[self.place(row.slot, row.start - 1)] if row.start else (salt,)
        for position, token in enumerate(row.token_ids, row.start):
            place = self.place(row.slot, position)
            assert place not in self.values, f"request {row.request_id} writes over {self.values[place]}"
            before = self.values[place] = (*before, token)

    def spoil(self, row: RowPlan) -> None:
        """What the row has computed is wrong; nobody may read it."""
        for position in range(row.start, row.start + len(row.token_ids)):
            self.values[self.place(row.slot, position)] = ("spoilt",)


class SchedulerWorld:
    """A scheduler, its users and its model. Every public method checks all that it touches."""

    def __init__(
        self, *, num_blocks: int = 65, seed: int = 0, allocator: DynamicBlockAllocator | None = None, **limits: int
    ) -> None:
        self.limits = SchedulerLimits(
            **{n: limits.get(n, getattr(DEFAULT_LIMITS, n)) for n in DEFAULT_LIMITS.__slots__}
        )
        self.scheduler = Scheduler(self.limits, num_blocks)
        if allocator is not None:
            self.scheduler.allocator = allocator
        self.mirror = CacheMirror(self.scheduler.allocator.cache)
        self.num_blocks = num_blocks
        self.cache = KVCache(num_blocks, self.limits)
        self.cross_cache = CrossCache(num_blocks, self.limits)
        self.now = 0.0
        self.watched: dict[int, Watched] = {}
        self.ends: Counter[int] = Counter()
        self.random = random.Random(seed)
        self._ids = itertools.count(1)

    # -- what users do ------------------------------------------------------------------------------------------

    def add(
        self,
        prompt: Sequence[int],
        *,
        max_generated: int = 4,
        priority: int = 0,
        salt: str = "",
        n: int = 1,
        scores_prompt: bool = False,
        deadline: float | None = None,
        encoder: Sequence[int] = (),
    ) -> InferenceRequest:
        """A request arrives; returns the first of its n choices."""
        params = SamplingParams(
            priority=priority, n=n, return_log_probs=scores_prompt, num_tokens_to_generate=max_generated
        )
        choices = [
            InferenceRequest(
                next(self._ids),
                list(prompt),
                params,
                RequestTimings(self.now),
                encoder_tokens=list(encoder),
                max_generated=max_generated,
                cache_salt=salt,
                deadline=deadline,
                choice_index=index,
            )
            for index in range(n)
        ]
        for choice in choices:
            choice.choices = choices if choice is choices[0] else choices[:1]
        self._check_admissible(choices[0])
        for choice in choices:
            # Without prefix caching, only the continuations of one prompt may share.
            own_salt = salt if self.limits.enable_prefix_caching else f"prompt {choices[0].request_id}"
            if encoder:
                own_salt += f" after {list(encoder)}"
            self.watched[choice.request_id] = Watched(
                choice, own_salt, list(prompt), choice.request_id, self.scheduler.step
            )
            self.scheduler.add_request(choice)
        return choices[0]

    def abort(self, request: InferenceRequest) -> None:
        assert self.scheduler.abort(request.request_id)
        self._end(request.request_id)
        self.check()

    def wait(self, seconds: float) -> list[InferenceRequest]:
        """Time passes; returns the requests whose deadline came."""
        self.now += seconds
        expired = self.scheduler.take_expired(self.now)
        due = {i for i, w in self.watched.items() if w.request.deadline is not None and w.request.deadline <= self.now}
        assert {request.request_id for request in expired} == due, "not exactly the late requests expired"
        for request in expired:
            self._end(request.request_id)
        self.check()
        return expired

    # -- what engine and model do -------------------------------------------------------------------------------

    def step(
        self,
        *,
        tokens: Sequence[int] = (0, 1),
        faulty: InferenceRequest | int | None = None,
        ending: InferenceRequest | int | None = None,
    ) -> StepPlan | None:
        """One step. New tokens are drawn from `tokens`; a row named by request or number goes wrong, or ends early."""
        plan = self._plan()
        if plan is None:
            return None
        faults: dict[int, KilotronError] = {}
        for row in _named(plan.rows, faulty):
            faults[row.request_id] = NumericalError("it is not a number")
            self.cache.spoil(row)
            self.cross_cache.spoil(row)
        ended = set(faults)
        new_tokens = []
        early = _named([row for row in plan.rows if row.samples], ending)
        for row in plan.rows:
            watched = self.watched[row.request_id]
            watched.num_computed += len(row.token_ids)
            if row.samples:
                new_tokens.append(self.random.choice(tokens))
                watched.tokens.append(new_tokens[-1])
            if watched.is_done or row in early:
                ended.add(row.request_id)
        self.scheduler.resolve_step(plan, StepResult(new_tokens, faults=faults), ended)
        for request_id in ended:
            self._check_scored(self.watched[request_id], is_complete=request_id not in faults)
            self._end(request_id)
        self.check()
        return plan

    def preempt_all(self) -> None:
        """Everybody is stopped."""
        running = [w for w in self.watched.values() if w.slot is not None]
        assert set(self.scheduler.preempt_all()) == {w.request.request_id for w in running}
        for watched in running:
            watched.slot = None
            watched.num_computed = 0
            watched.num_preemptions += 1
        self.check()

    def clear_cache(self) -> None:
        """What is cached counts no more."""
        self.scheduler.clear_prefix_cache()
        assert self.scheduler.allocator.cache.list_stored() == []
        self.check()

    def suspend(self) -> None:
        """The memory of the cache goes; nobody may read what it held."""
        self.preempt_all()
        self.clear_cache()
        assert self.scheduler.allocator.num_free == self.num_blocks - 1
        self.cache.values.clear()
        self.cross_cache.values.clear()

    def reset(self) -> None:
        """Everything is forgotten."""
        requests = list(self.watched)
        self.scheduler.reset()
        self.cache.values.clear()
        self.cross_cache.values.clear()
        for request_id in requests:
            self._end(request_id)
        self.mirror.cache = self.scheduler.allocator.cache
        self.check()

    def fail_step(self) -> None:
        """The model raises: every request that the step ran is aborted instead of resolved."""
        plan = self._plan()
        for row in plan.rows if plan is not None else ():
            assert self.scheduler.abort(row.request_id)
            self._end(row.request_id)
        self.check()

    def steps(self, count: int) -> list[StepPlan]:
        plans = [self.step() for _ in range(count)]
        return [plan for plan in plans if plan is not None]

    def finish(self) -> int:
        """Goes on until all requests have ended, which must not take for ever; returns the number of steps."""
        work = sum(len(w.tokens) + w.request.max_generated for w in self.watched.values())
        most_steps = (work + 1) * (len(self.watched) + 1)
        num_steps = 0
        while self.step() is not None:
            num_steps += 1
            assert num_steps <= most_steps, f"requests {sorted(self.watched)} starve after {most_steps} steps"
        self._check_all_is_given_back()
        return num_steps

    # -- what must hold -----------------------------------------------------------------------------------------

    def check(self) -> None:
        """The books balance, as the scheduler and as the world count."""
        scheduler = self.scheduler
        assert scheduler.check_ledger() == []
        self.mirror.check()
        assert scheduler.num_unfinished == len(self.watched)
        running = {item.request.request_id for item in scheduler.running}
        assert running == {i for i, w in self.watched.items() if w.slot is not None}
        for item in scheduler.running:
            watched = self.watched[item.request.request_id]
            assert (item.token_ids, item.num_computed) == (watched.tokens, watched.num_computed)
            table = self.cache.table.block_ids[item.slot].tolist()
            assert [block for block in table if block] == item.block_ids, "table and owned blocks differ"
            cross = [] if item.cross is None else item.cross.block_ids
            assert self.cross_cache.blocks_of(item.slot) == cross, "table and owned blocks of the encoder differ"

    def _plan(self) -> StepPlan | None:
        were_running = [w for w in self.watched.values() if w.slot is not None]
        first_in_line = min(self.watched.values(), key=self._turn, default=None)
        plan = self.scheduler.plan_step(self.now)
        if plan is None:
            assert not self.watched, f"nothing planned though {sorted(self.watched)} are unfinished"
            return None
        self._check_budget(plan)
        self._take_preemptions(were_running, plan.preempted)
        kept = [w for w in were_running if w.slot is not None]
        for admission in plan.admissions:
            self._take_admission(admission)
        self._check_everyone_moves(plan, kept)
        if not were_running:
            assert first_in_line is not None
            assert first_in_line.slot is not None, "the first in line was left behind though nobody ran"
        self.cache.take_in(plan)
        self.cross_cache.take_in(plan)
        for row in plan.rows:
            self._check_row(row)
        for row in plan.rows:
            self.cache.compute(row, self.watched[row.request_id].salt)
            self.cross_cache.compute(row, self.watched[row.request_id].salt)
        for row in plan.rows:
            watched = self.watched[row.request_id]
            self.cross_cache.check(row, watched.salt, watched.request.encoder_tokens)
        return plan

    def _turn(self, watched: Watched) -> tuple[int, int]:
        """Sort key of the waiting: priority less what it gained by age, then arrival."""
        age = self.scheduler.step + 1 - watched.queued_step
        return watched.request.sampling_params.priority - age // self.limits.aging_steps, watched.order

    def _check_budget(self, plan: StepPlan) -> None:
        logits = sum(row.samples + (len(row.score.targets) if row.score else 0) for row in plan.rows)
        assert 0 < plan.num_tokens <= self.limits.max_tokens
        assert logits <= self.limits.max_logits_tokens
        assert len(plan.rows) <= self.limits.max_requests
        for key in ("request_id", "slot"):
            assert len({getattr(row, key) for row in plan.rows}) == len(plan.rows), f"two rows with the same {key}"
        granted = [block for row in plan.rows for block in row.block_ids]
        assert len(set(granted)) == len(granted), "a block was granted twice"

    def _take_preemptions(self, were_running: list[Watched], named: list[int]) -> None:
        """Preempted were the least important, and the plan names them."""
        before = {w.request.request_id: w.num_preemptions for w in were_running}
        for watched in were_running:
            if watched.request.num_preemptions > watched.num_preemptions:
                assert watched.request.num_preemptions == watched.num_preemptions + 1
                watched.num_preemptions += 1
                watched.slot = None
                watched.num_computed = 0
        assert sorted(named) == sorted(i for i, w in self.watched.items() if w.num_preemptions > before.get(i, 10**9))
        preempted = [w.importance for w in were_running if w.slot is None]
        kept = [w.importance for w in were_running if w.slot is not None]
        assert not preempted or not kept or max(kept) < min(preempted), "a more important request was preempted"

    def _take_admission(self, admission: Admission) -> None:
        watched = self.watched[admission.request_id]
        assert watched.slot is None, f"request {admission.request_id} was admitted twice"
        assert admission.slot not in {w.slot for w in self.watched.values()}, f"slot {admission.slot} is taken"
        assert admission.token_ids == watched.tokens
        assert admission.prompt_length == watched.request.prompt_length
        watched.slot = admission.slot
        watched.num_computed = len(admission.cached_block_ids) * self.limits.block_size
        if watched.num_admissions == 0:
            cross = self.scheduler._requests[admission.request_id].cross
            num_encoded = len(cross.token_ids) if cross is not None and cross.is_computed else 0
            assert watched.request.num_cached_tokens == watched.num_computed + num_encoded
            assert watched.request.timings.admitted == self.now
        watched.num_admissions += 1

    def _check_everyone_moves(self, plan: StepPlan, kept: list[Watched]) -> None:
        """Each running request has a row; only a step too small for one token each may leave some out."""
        in_plan = {row.request_id for row in plan.rows}
        assert in_plan >= {admission.request_id for admission in plan.admissions}
        if min(self.limits.max_tokens, self.limits.max_logits_tokens) >= self.limits.max_requests:
            assert in_plan >= {w.request.request_id for w in kept}, "a running request got no token"

    def _check_row(self, row: RowPlan) -> None:
        watched = self.watched[row.request_id]
        end = row.start + len(row.token_ids)
        assert (row.slot, row.start) == (watched.slot, watched.num_computed)
        assert row.token_ids, f"request {row.request_id} has an empty row"
        assert row.token_ids == watched.tokens[row.start : end]
        assert row.samples == (end == len(watched.tokens) and watched.request.max_generated > 0)
        if not self.limits.enable_chunked_prefill and not watched.num_preemptions:
            assert end == len(watched.tokens), f"the prompt of request {row.request_id} was split"
        self._check_score(row, watched)
        self.cache.check(row, watched.salt, watched.tokens)

    def _check_score(self, row: RowPlan, watched: Watched) -> None:
        if row.score is None:
            return
        assert watched.request.sampling_params.wants_prompt_log_probs
        first = row.start + row.score.first + 1
        positions = list(range(first, first + len(row.score.targets)))
        assert positions, "an empty score span"
        assert row.score.first + len(positions) <= len(row.token_ids), "a span beyond its row"
        assert row.score.targets == [watched.tokens[position] for position in positions]
        watched.scored += positions

    def _check_scored(self, watched: Watched, *, is_complete: bool) -> None:
        wanted = []
        if watched.request.sampling_params.wants_prompt_log_probs:
            wanted = list(range(1, watched.request.prompt_length))
        assert watched.scored == (wanted if is_complete else wanted[: len(watched.scored)])

    def _check_admissible(self, request: InferenceRequest) -> None:
        limits = self.limits
        num_positions = request.prompt_length + max(request.max_generated, 1) - 1
        num_encoded = len(request.encoder_tokens)
        blocks = -(-num_positions // limits.block_size) + -(-num_encoded // limits.block_size)
        never_fits = blocks > self.num_blocks - 1 or (num_encoded > 0 and num_encoded >= limits.max_tokens)
        if not limits.enable_chunked_prefill:
            never_fits |= request.prompt_length + num_encoded > limits.max_tokens
            if request.sampling_params.wants_prompt_log_probs:
                never_fits |= request.prompt_length > limits.max_logits_tokens
        try:
            self.scheduler.check_admissible(request)
        except RequestNeverFitsError:
            assert never_fits, "refused though it fits"
            raise
        assert not never_fits, "accepted though it never fits"

    def _end(self, request_id: int) -> None:
        request = self.watched.pop(request_id).request
        self.ends[request_id] += 1
        assert self.ends[request_id] == 1, f"request {request_id} ended twice"
        assert not self.scheduler.abort(request_id), f"request {request_id} ended but is still known"
        request.status = Status.COMPLETED

    def _check_all_is_given_back(self) -> None:
        allocator = self.scheduler.allocator
        assert not self.watched
        assert allocator.num_owned == 0
        assert allocator.num_available == self.num_blocks - 1
        assert self.scheduler.check_ledger() == []


def _named(rows: list[RowPlan], name: InferenceRequest | int | None) -> list[RowPlan]:
    if isinstance(name, InferenceRequest):
        return [row for row in rows if row.request_id == name.request_id]
    return [] if name is None or not rows else [rows[name % len(rows)]]
