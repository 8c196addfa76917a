"""Scheduler: decides at each step which requests run, on how many tokens and in which blocks.

Pure: integers in, StepPlan out. Time comes in as an argument. Running requests go first, in order of importance
(priority, then arrival); then waiting ones are admitted while slots, tokens and blocks last. When blocks run out,
the least important running request loses its own and is computed again later, mostly from the prefix cache.
"""

import heapq
from bisect import insort
from collections.abc import Collection, Mapping, Sequence

from kilotron.errors import QueueFullError
from kilotron.inference_request import InferenceRequest, Status
from kilotron.scheduling.beam_family import add_beams, find_source, fork, start_parked
from kilotron.scheduling.block_allocator import DynamicBlockAllocator
from kilotron.scheduling.capacity import check_capacity
from kilotron.scheduling.cross_blocks import CrossBlocks
from kilotron.scheduling.preemption import choose_victim
from kilotron.scheduling.prefix_cache import PrefixCache
from kilotron.scheduling.scheduled_request import FoundPrefix, ScheduledRequest
from kilotron.scheduling.step_plan import NO_MOVES, Admission, BeamMove, RowPlan, StepPlan, StepResult
from kilotron.scheduling.step_planner import SchedulerLimits, StepBudget, blocks_missing, plan_row
from kilotron.scheduling.token_counts import TokenCounts
from kilotron.scheduling.waiting_queue import WaitingQueue

# Waiting requests looked at behind one that does not fit (or waits for a block that is being computed), and how often
# one may be passed by before nobody is admitted ahead of it any more.
_MOST_CANDIDATES = 64
_MOST_BYPASSES = 64


class Scheduler:
    """Holds every unfinished request and the KV blocks they own."""

    def __init__(self, limits: SchedulerLimits, num_blocks: int) -> None:
        self.limits = limits
        self.allocator = DynamicBlockAllocator(num_blocks, PrefixCache())
        self.waiting = WaitingQueue(limits.aging_steps)
        self.running: list[ScheduledRequest] = []
        """In order of importance."""
        self.step = 0
        self.num_preemptions = 0
        self.counts = TokenCounts()
        self._requests: dict[int, ScheduledRequest] = {}
        self._free_slots = list(range(limits.max_requests - 1, -1, -1))
        self._deadlines: list[tuple[float, int]] = []
        # Chain values of prompt blocks that a running request is going to register: who else needs such a block
        # had better wait a step than compute it twice.
        self._expected: dict[bytes, int] = {}
        self._num_arrived = 0

    @property
    def num_unfinished(self) -> int:
        """Requests waiting or running."""
        return len(self._requests)

    @property
    def num_running(self) -> int:
        """Requests that run; one with beams counts once."""
        return max(len(self._requests) - len(self.waiting), 0)  # each may be a step old where another thread reads

    def check_admissible(self, request: InferenceRequest) -> None:
        """Says at once when a request can never run.

        Raises:
            RequestNeverFitsError: it needs more blocks, or a longer chunk, than there are.
            QueueFullError: too many requests wait already.
        """
        check_capacity(request, self.limits, self.allocator.num_blocks)
        if len(self.waiting) >= self.limits.max_waiting_requests:
            raise QueueFullError(f"{len(self.waiting)} requests wait already (max_waiting_requests); try again later")

    def add_request(self, request: InferenceRequest) -> None:
        """Takes in a request that `check_admissible` let pass."""
        # Without prefix caching only the n continuations of one prompt share blocks.
        salt = request.cache_salt
        if not self.limits.enable_prefix_caching:
            salt = f"{salt}/{request.choices[0].request_id if request.choices else request.request_id}"
        item = ScheduledRequest(
            request,
            salt=salt,
            arrival_order=self._num_arrived,
            queued_step=self.step,
            cross=CrossBlocks(salt, request.encoder_tokens, self.limits.block_size) if request.encoder_tokens else None,
        )
        self._num_arrived += 1
        if request.sampling_params.is_beam_search:
            add_beams(item, request.sampling_params.beam_width)
        self._requests[request.request_id] = item
        self.waiting.append(item)
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (request.deadline, request.request_id))
            if len(self._deadlines) > 64 + 2 * len(self._requests):
                # Most belong to requests that ended long before.
                self._deadlines = [entry for entry in self._deadlines if entry[1] in self._requests]
                heapq.heapify(self._deadlines)

    def abort(self, request_id: int) -> bool:
        """Forgets a request in whatever state; False when there is none. Not between plan and resolve of a step."""
        item = self._requests.pop(request_id, None)
        if item is None:
            return False
        if item.slot is None:
            self.waiting.remove(item)
        else:
            self._stop_family(item)
        return True

    def take_expired(self, now: float) -> list[InferenceRequest]:
        """Forgets and returns the requests whose deadline has passed."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, request_id = heapq.heappop(self._deadlines)
            item = self._requests.get(request_id)
            if item is not None:
                expired.append(item.request)
                self.abort(request_id)
        return expired

    def plan_step(self, now: float) -> StepPlan | None:
        """Decides the next step; None when nothing is to do. `now` stamps first admissions."""
        if not self._requests:
            return None
        self.step += 1
        budget = StepBudget(self.limits, len(self.running))
        preempted: list[int] = []
        moved: list[Admission] = []
        rows = self._plan_running(budget, preempted, moved)
        admissions = moved + self._admit(budget, rows, now)
        return StepPlan(self.step, rows, admissions, preempted)

    def readmission(self, row: RowPlan) -> Admission:
        """What tables need to know of a planned row's request as it was before this step, to run the row once more."""
        item = self._item_of(row)
        return self._admission(item, item.block_ids[: len(item.block_ids) - len(row.block_ids)])

    def resolve_step(
        self,
        plan: StepPlan,
        result: StepResult,
        ended: Collection[int],
        moves: Mapping[int, Sequence[BeamMove]] = NO_MOVES,
    ) -> None:
        """Takes in what a step gave.

        Args:
            plan: the step's.
            result: new tokens of the rows that sampled.
            ended: ids of the requests that ended by it.
            moves: request id -> how its beams go on, for those whose beams have all got their candidates.
        """
        block_size = self.limits.block_size
        tokens, faults = iter(result.token_ids), result.faults
        families: dict[int, ScheduledRequest] = {}
        for row in plan.rows:
            request_id = row.request_id
            item = self._item_of(row)
            before = item.num_computed
            item.num_computed = after = before + len(row.token_ids)
            if item.num_prompt_left:
                self.counts.compute(item)
            if row.encoder is not None and item.cross is not None and request_id not in faults:
                self._register_cross(item, item.cross)
            if before // block_size != after // block_size and request_id not in faults:
                self._register(item)
            if row.score is not None:
                item.num_scored = row.start + row.score.first + len(row.score.targets)
            if row.samples:
                item.token_ids.append(next(tokens))
            if item.place is not None:
                families[request_id] = item
            elif request_id in ended:
                del self._requests[request_id]
                self._stop(item, is_faulty=request_id in faults)
            elif row.samples:
                item.request.status = Status.ACTIVE_AND_GENERATING_TOKENS
        self._fork_or_stop(families, faults, ended, moves)

    def preempt_all(self) -> list[int]:
        """Stops every running request, to be computed again later; returns their ids. Not between plan and resolve."""
        stopped = []
        while self.running:
            stopped.append(self.running[-1].request.request_id)
            self._preempt(self.running[-1])
        return stopped

    def clear_prefix_cache(self) -> None:
        """Nothing computed so far can be found by others any more."""
        self.allocator.clear_cache()

    def reset(self) -> None:
        """Forgets all requests and blocks, whatever state a fault left the books in. What was counted stays."""
        cache = self.allocator.cache
        cache.clear()
        fresh = PrefixCache()
        fresh.on_event = cache.on_event
        self.allocator = DynamicBlockAllocator(self.allocator.num_blocks, fresh)
        self.waiting = WaitingQueue(self.limits.aging_steps)
        self.running = []
        self._requests = {}
        self._free_slots = list(range(self.limits.max_requests - 1, -1, -1))
        self._deadlines = []
        self._expected = {}

    def check_ledger(self) -> list[str]:
        """What is wrong with the books; empty when all is well."""
        items = [item for first in self._requests.values() for item in first.family]
        cross = [item.cross.block_ids for item in self._requests.values() if item.cross is not None]
        problems = self.allocator.check_ledger([item.block_ids for item in items] + cross)
        slots = sorted(self._free_slots + [item.slot for item in self.running if item.slot is not None])
        if slots != list(range(self.limits.max_requests)):
            problems.append("slots are lost or given twice")
        num_running = sum(item is item.family[0] for item in self.running)
        if len(self.waiting) + num_running != len(self._requests):
            problems.append(f"{len(self.waiting)} wait + {num_running} run != {len(self._requests)} unfinished")
        if any(len({beam.slot is None for beam in item.family}) > 1 for item in items):
            problems.append("of one request some beams run and some wait")
        if not self.running and self._expected:
            problems.append("blocks are expected of nobody")
        return problems

    def _plan_running(self, budget: StepBudget, preempted: list[int], moved: list[Admission]) -> list[RowPlan]:
        """Rows of the running requests; `moved` gets what is new about beams that took over another's tokens."""
        rows: list[RowPlan] = []
        block_size = self.limits.block_size
        index = 0
        while index < len(self.running):
            item = self.running[index]
            index += 1
            budget.rows_to_come = len(self.running) - index
            if item.is_parked and not self._start_parked(item):
                continue
            length = budget.chunk_length(item)
            if length == 0:
                continue
            count = blocks_missing(item, length, block_size)
            granted = self._grant(item, count, preempted) if count > 0 else []
            if granted is None:
                # It was itself the least important and is waiting again; so it was the last in the list, and those
                # before it were its other beams, if it has any.
                _drop_request(item.request.request_id, rows, moved)
                break
            if item.place is not None and item.place.is_moved:
                moved.append(self._admission(item, item.block_ids.copy(), is_beam=True))
                item.place.is_moved = False
            item.block_ids += granted
            row = plan_row(item, length, granted)
            budget.spend(row)
            rows.append(row)
        budget.rows_to_come = 0
        return rows

    def _grant(self, item: ScheduledRequest, count: int, preempted: list[int]) -> list[int] | None:
        """Blocks for a running request, taken from the least important ones if need be; None if that is itself."""
        while True:
            granted = self.allocator.allocate(count)
            if granted is not None:
                return granted
            victim = choose_victim(self.running)
            self._preempt(victim)
            preempted.append(victim.request.request_id)
            if victim.request is item.request:
                return None

    def _preempt(self, item: ScheduledRequest) -> None:
        self._stop_family(item)
        item.request.status = Status.ACTIVE_BUT_NOT_GENERATING_TOKENS
        item.request.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.put_back(item.family[0])

    def _admit(self, budget: StepBudget, rows: list[RowPlan], now: float) -> list[Admission]:
        """Lets waiting requests run, appending their rows."""
        admissions: list[Admission] = []
        if not len(self.waiting) or not self._free_slots:
            return admissions
        admitted: list[ScheduledRequest] = []
        passed: list[ScheduledRequest] = []
        num_waiting_for_prefix = 0
        for item in self.waiting.in_order(self.step):
            if not self._free_slots or budget.is_spent or len(passed) + num_waiting_for_prefix >= _MOST_CANDIDATES:
                break
            first = item.first
            cached = self._find_cached(first)
            if self._is_expected(first, len(cached)):
                num_waiting_for_prefix += 1
                continue
            row = self._try_start(first, cached, budget)
            if row is None:
                passed.append(item)
                if item.num_bypassed >= _MOST_BYPASSES:
                    break
                continue
            for bypassed in passed:
                bypassed.num_bypassed += 1
            admitted.append(item)
            rows.append(row)
            admissions.append(self._admission(item.first, cached))
        for item in admitted:
            self._enter(item, now)
        return admissions

    def _enter(self, item: ScheduledRequest, now: float) -> None:
        self.waiting.remove(item)
        for each in item.family:
            insort(self.running, each, key=_importance)
        if item.request.timings.admitted is None:
            item.request.timings.admitted = now

    def _try_start(self, item: ScheduledRequest, cached: list[int], budget: StepBudget) -> RowPlan | None:
        """Gives a waiting request slots and blocks for its first chunk; None, and no change, if it does not fit."""
        if len(item.family) > len(self._free_slots):
            return None
        found = self._start_from(item, cached)
        length = budget.chunk_length(item)
        granted = self._grant_newcomer(item, length, found)
        if granted is None:
            item.rewind()
            return None
        self._count_admission(item)
        for each in item.family:
            each.slot = self._free_slots.pop()
            if each.place is not None:
                each.place.is_parked = each is not item and bool(each.token_ids)
        item.num_registered = len(cached)
        item.block_ids = cached + granted
        self._expect(item)
        item.request.status = Status.ACTIVE_BUT_NOT_GENERATING_TOKENS
        row = plan_row(item, length, granted)
        budget.spend(row)
        return row

    def _start_from(self, item: ScheduledRequest, cached: list[int]) -> list[int]:
        """Sets a newcomer to where cached blocks end; returns them, those of its encoder input too."""
        item.block_ids = cached
        item.num_computed = len(cached) * self.limits.block_size
        if item.cross is None:
            return cached
        item.cross.start(self._find_cross(item.cross))
        return cached + item.cross.block_ids

    def _grant_newcomer(self, item: ScheduledRequest, length: int, found: list[int]) -> list[int] | None:
        """Blocks for the first `length` tokens, beside a share in those found; None, and no change, if it does not fit.

        Those that its encoder's input needs are given to it at once.
        """
        # What is computed again may have outgrown a step, so it is split whatever the option says.
        may_split = self.limits.enable_chunked_prefill or item.request.num_preemptions > 0
        if length == 0 or not (may_split or length == item.num_wanted):
            return None
        count, cross = self._blocks_to_start(item, length), item.cross
        num_cross = 0 if cross is None else len(cross.parts) - cross.num_cached
        if not self._has_room(count + num_cross + len(item.family) - 1, found):
            return None
        self.allocator.share(found)
        granted = self.allocator.allocate(count + num_cross)
        if granted is None:
            raise RuntimeError(f"{count + num_cross} blocks were available and are not")
        if cross is not None:
            cross.block_ids = cross.block_ids + granted[count:]
            self.counts.encode(cross)
        return granted[:count]

    def _count_admission(self, item: ScheduledRequest) -> None:
        request, cross = item.request, item.cross
        if request.timings.admitted is not None:
            return
        request.num_cached_tokens = item.num_computed
        if cross is not None and cross.is_computed:
            request.num_cached_tokens += len(cross.token_ids)
        self.counts.admit(item, may_read_cache=self.limits.enable_prefix_caching and not item.scores_prompt)

    def _blocks_to_start(self, item: ScheduledRequest, length: int) -> int:
        """Blocks that a newcomer gets to compute its first `length` tokens."""
        return blocks_missing(item, length, self.limits.block_size)

    def _has_room(self, count: int, cached: list[int]) -> bool:
        """Whether a newcomer can have `count` blocks beside cached ones. One per running request is left over, so
        that it is not stopped again at the next step."""
        return count + len(self.running) + self.allocator.num_unowned_among(cached) <= self.allocator.num_available

    def _start_parked(self, item: ScheduledRequest) -> bool:
        """Lets a beam go on that was stopped with its family, unless another is computing what both need."""
        source = find_source(item, self._find_cached(item), self.limits.block_size)
        if source is None:
            return False
        start_parked(item, source, self.allocator, self.limits.block_size)
        if not item.is_private:
            self._expect(item)
        return True

    def _fork_or_stop(
        self,
        families: Mapping[int, ScheduledRequest],
        faults: Collection[int],
        ended: Collection[int],
        moves: Mapping[int, Sequence[BeamMove]],
    ) -> None:
        """Beam searches whose rows are all taken in go on with other tokens and blocks, or end."""
        for request_id, item in families.items():
            if request_id in ended:
                del self._requests[request_id]
                self._stop_family(item, is_faulty=request_id in faults)
            elif request_id in moves:
                for beam in item.family:
                    self._unexpect(beam, beam.chains)
                fork(item.family, moves[request_id], self.allocator, self.limits.block_size)
                item.request.status = Status.ACTIVE_AND_GENERATING_TOKENS

    def _item_of(self, row: RowPlan) -> ScheduledRequest:
        item = self._requests[row.request_id]
        return item if item.place is None else item.place.beams[row.beam]

    def _admission(self, item: ScheduledRequest, cached: list[int], *, is_beam: bool = False) -> Admission:
        request = item.request
        if item.slot is None:
            raise RuntimeError(f"request {request.request_id} was admitted without a slot")
        return Admission(
            item.slot,
            request.request_id,
            item.token_ids,
            request.prompt_length,
            cached,
            request.sampling_params,
            request.seed,
            request.end_ids,
            request.bad_word_ids,
            is_beam,
            *(() if item.cross is None else (tuple(item.cross.block_ids), len(item.cross.token_ids))),
        )

    def _find_cached(self, item: ScheduledRequest) -> list[int]:
        """Blocks that hold the request's first tokens. At least one token is left to compute, and so are prompt
        tokens whose log-probabilities are still to come."""
        block_size = self.limits.block_size
        usable = len(item.token_ids) - 1
        if item.scores_prompt and item.num_scored < item.request.prompt_length - 1:
            usable = min(usable, item.num_scored)
        cache = self.allocator.cache
        found: list[int] = []
        known = item.found
        if known is not None and cache.registration(known.block_ids[-1]) == known.registration:
            found = known.block_ids[: usable // block_size]
        for index in range(len(found), usable // block_size):
            tokens = item.token_ids[index * block_size : (index + 1) * block_size]
            chain = item.chain(index + 1, block_size)
            block_id = cache.find(chain, item.chains[index], tokens)
            if block_id is None:
                break
            found.append(block_id)
        if found:
            item.found = FoundPrefix(found.copy(), cache.registration(found[-1]))
        return found

    def _find_cross(self, cross: CrossBlocks) -> list[int]:
        """Leading blocks that hold what the request's decoder sees of its encoder input."""
        return cross.find(self.allocator.cache)

    def _register_cross(self, item: ScheduledRequest, cross: CrossBlocks) -> None:
        """Makes an encoder input findable that was just computed."""
        cross.register(self.allocator.cache)
        self._unexpect(item, cross.chains)

    def _is_expected(self, item: ScheduledRequest, num_cached: int) -> bool:
        """Whether a running request is about to compute the next block this one needs."""
        block_size = self.limits.block_size
        if item.cross is not None and item.cross.chains[-1] in self._expected:
            return True
        if not self._expected or (num_cached + 1) * block_size >= len(item.token_ids):
            return False
        if item.scores_prompt:
            return False
        return item.chain(num_cached + 1, block_size) in self._expected

    def _expect(self, item: ScheduledRequest) -> None:
        block_size = self.limits.block_size
        for index in range(item.num_registered, len(item.token_ids) // block_size):
            self._expected.setdefault(item.chain(index + 1, block_size), item.request.request_id)
        if item.cross is not None and not item.cross.is_computed:
            self._expected.setdefault(item.cross.chains[-1], item.request.request_id)

    def _unexpect(self, item: ScheduledRequest, chains: Sequence[bytes]) -> None:
        if self._expected:
            for chain in chains:
                if self._expected.get(chain) == item.request.request_id:
                    del self._expected[chain]

    def _register(self, item: ScheduledRequest) -> None:
        """Makes newly full blocks findable."""
        block_size = self.limits.block_size
        full = item.num_computed // block_size
        while item.num_registered < full and not item.is_private:
            index = item.num_registered
            tokens = item.token_ids[index * block_size : (index + 1) * block_size]
            chain = item.chain(index + 1, block_size)
            cache = self.allocator.cache
            # Its own block before this one may have been discarded by somebody who shared it and failed.
            is_continued = index == 0 or item.block_ids[index - 1] in cache
            if is_continued and cache.insert(item.block_ids[index], chain, item.chains[index], tokens):
                item.num_registered += 1
                self._unexpect(item, (chain,))
            else:
                item.is_private = True
                self._unexpect(item, item.chains)

    def _stop_family(self, item: ScheduledRequest, *, is_faulty: bool = False) -> None:
        for each in item.family:
            self._stop(each, is_faulty=is_faulty)

    def _stop(self, item: ScheduledRequest, *, is_faulty: bool = False) -> None:
        """Takes a running request's slot and blocks, or those of one of its beams."""
        self.running.remove(item)
        if item.slot is not None:
            self._free_slots.append(item.slot)
        self._unexpect(item, item.chains)
        if item.cross is not None:
            self._unexpect(item, item.cross.chains)
        if is_faulty:
            self.allocator.discard(item.rewind())
        else:
            self.allocator.free(item.rewind())


def _drop_request(request_id: int, rows: list[RowPlan], moved: list[Admission]) -> None:
    """Takes back what was planned for a request that is stopped after all."""
    rows[:] = [row for row in rows if row.request_id != request_id]
    moved[:] = [admission for admission in moved if admission.request_id != request_id]


def _importance(item: ScheduledRequest) -> tuple[int, int]:
    return item.importance
