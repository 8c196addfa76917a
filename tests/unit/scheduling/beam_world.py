"""BeamWorld: plays engine, model and users to a Scheduler with beam searches among ordinary requests.

As in SchedulerWorld the KV cache holds what each value was computed from, so a beam that would read anything but its
own history is seen. Which beam goes on with what is drawn at random, within what a search may decide.
"""

import itertools
import random
from dataclasses import dataclass, field

from kilotron.errors import KilotronError, NumericalError
from kilotron.inference_request import InferenceRequest, RequestTimings
from kilotron.sampling_params import SamplingParams
from kilotron.scheduling.scheduler import Scheduler
from kilotron.scheduling.step_plan import BeamMove, RowPlan, StepPlan, StepResult
from kilotron.scheduling.step_planner import SchedulerLimits
from unit.scheduling.cross_cache import CrossCache
from unit.scheduling.scheduler_world import DEFAULT_LIMITS, KVCache


@dataclass(eq=False)
class Search:
    """What the world knows of a request: the tokens of its beams (of its only one, if it is ordinary)."""

    request: InferenceRequest
    salt: str
    beams: list[list[int]]
    """Empty lists are beams that are not alive."""
    arrived: set[int] = field(default_factory=set)
    """Beams whose candidates are there."""

    @property
    def length(self) -> int:
        return max(map(len, self.beams)) - self.request.prompt_length

    @property
    def live(self) -> set[int]:
        return {index for index, tokens in enumerate(self.beams) if tokens}


class BeamWorld:
    """A scheduler, its users and its model. Every step is checked."""

    def __init__(self, *, num_blocks: int, seed: int = 0, **limits: int) -> None:
        values = {name: limits.get(name, getattr(DEFAULT_LIMITS, name)) for name in DEFAULT_LIMITS.__slots__}
        self.limits = SchedulerLimits(**values)
        self.scheduler = Scheduler(self.limits, num_blocks)
        self.cache = KVCache(num_blocks, self.limits)
        self.cross_cache = CrossCache(num_blocks, self.limits)
        self.searches: dict[int, Search] = {}
        self.random = random.Random(seed)
        self.now = 0.0
        self.num_recomputed = 0
        self._ids = itertools.count(1)

    def add(
        self,
        prompt: list[int],
        *,
        width: int = 1,
        max_generated: int = 4,
        priority: int = 0,
        timeout: int | None = None,
        encoder: list[int] | None = None,
    ) -> InferenceRequest:
        """A request arrives.

        Raises:
            RequestNeverFitsError: rightly or not; that all others end shows that it was not refused in vain.
        """
        params = SamplingParams(beam_width=width, priority=priority, num_tokens_to_generate=max_generated)
        request = InferenceRequest(
            next(self._ids),
            prompt,
            params,
            RequestTimings(self.now),
            encoder_tokens=encoder or [],
            max_generated=max_generated,
            deadline=None if timeout is None else self.now + timeout,
        )
        request.choices = [request]
        self.scheduler.check_admissible(request)
        salt = "" if self.limits.enable_prefix_caching else f"prompt {request.request_id}"
        if encoder:
            salt += f" after {encoder}"
        beams = [list(prompt), *([] for _ in range(1, width))]
        self.searches[request.request_id] = Search(request, salt, beams)
        self.scheduler.add_request(request)
        return request

    def abort(self, request_id: int) -> None:
        assert self.scheduler.abort(request_id)
        del self.searches[request_id]
        self.check()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for request in self.scheduler.take_expired(self.now):
            del self.searches[request.request_id]
        self.check()

    def preempt_all(self) -> None:
        self.scheduler.preempt_all()
        self.check()

    def suspend(self) -> None:
        """The memory of the cache goes; nobody may read what it held."""
        self.scheduler.preempt_all()
        self.scheduler.clear_prefix_cache()
        self.cache.values.clear()
        self.cross_cache.values.clear()
        self.check()

    def step(self, *, faulty: int | None = None, ending: int | None = None) -> StepPlan | None:
        """One step; a row named by its number goes wrong, or its request ends early."""
        plan = self.scheduler.plan_step(self.now)
        if plan is None:
            assert not self.searches
            return None
        self._check_plan(plan)
        self.cache.take_in(plan)
        self.cross_cache.take_in(plan)
        for row in plan.rows:
            self._compute(row)
        for row in plan.rows:
            search = self.searches[row.request_id]
            self.cross_cache.check(row, search.salt, search.request.encoder_tokens)
        faults: dict[int, KilotronError] = {}
        if faulty is not None:
            bad = plan.rows[faulty % len(plan.rows)].request_id
            faults[bad] = NumericalError("it is not a number")
            for row in plan.rows:
                if row.request_id == bad:
                    self.cache.spoil(row)
                    self.cross_cache.spoil(row)
        ended = set(faults)
        if ending is not None:
            ended.add(plan.rows[ending % len(plan.rows)].request_id)
        tokens, moves = self._sample(plan, ended)
        ended |= {i for i, search in self.searches.items() if search.length >= search.request.max_generated}
        self.scheduler.resolve_step(plan, StepResult(tokens, faults=faults), ended, moves)
        for request_id in ended:
            del self.searches[request_id]
        self.check()
        return plan

    def finish(self) -> None:
        """Goes on until all have ended, which must not take for ever."""
        work = sum((len(s.beams[0]) + s.request.max_generated) * len(s.beams) for s in self.searches.values())
        most_steps = (work + 1) * (len(self.searches) + 1)
        for _ in range(most_steps):
            if self.step() is None:
                break
        assert not self.searches, f"requests {sorted(self.searches)} starve after {most_steps} steps"
        assert self.scheduler.allocator.num_owned == 0
        assert not self.scheduler.running

    def check(self) -> None:
        """The books balance, and each beam has the tokens that it should have."""
        assert self.scheduler.check_ledger() == []
        assert self.scheduler.num_unfinished == len(self.searches)
        for item in self.scheduler.running:
            index = item.place.index if item.place is not None else 0
            assert item.token_ids == self.searches[item.request.request_id].beams[index]

    def _check_plan(self, plan: StepPlan) -> None:
        logits = sum(row.needs_logits for row in plan.rows)
        assert 0 < plan.num_tokens <= self.limits.max_tokens
        assert logits <= self.limits.max_logits_tokens
        assert len({row.slot for row in plan.rows}) == len(plan.rows)
        granted = [block for row in plan.rows for block in row.block_ids]
        assert len(set(granted)) == len(granted), "a block was granted twice"
        slots = {row.slot for row in plan.rows}
        assert {admission.slot for admission in plan.admissions} <= slots, "an admission without a row"

    def _compute(self, row: RowPlan) -> None:
        search = self.searches[row.request_id]
        tokens = search.beams[row.beam]
        end = row.start + len(row.token_ids)
        assert row.token_ids == tokens[row.start : end] != []
        assert (row.num_candidates > 0) == (len(search.beams) > 1 and end == len(tokens))
        self.num_recomputed += len(row.token_ids)
        self.cache.check(row, search.salt, tokens)
        self.cache.compute(row, search.salt)
        self.cross_cache.compute(row, search.salt)
        if row.num_candidates:
            search.arrived.add(row.beam)

    def _sample(self, plan: StepPlan, ended: set[int]) -> tuple[list[int], dict[int, list[BeamMove]]]:
        tokens = []
        for row in plan.rows:
            if row.samples:
                tokens.append(self.random.randrange(2))
                self.searches[row.request_id].beams[0].append(tokens[-1])
        moves = {}
        for request_id in {row.request_id for row in plan.rows} - ended:
            search = self.searches[request_id]
            if len(search.beams) > 1 and search.arrived == search.live:
                moves[request_id] = self._advance(search)
        return tokens, moves

    def _advance(self, search: Search) -> list[BeamMove]:
        """Any beams go on with any live ones as parents; those of diverse groups may even get the same tokens."""
        choices = [(parent, token) for parent in search.live for token in range(3)]
        width = len(search.beams)
        count = self.random.choice([width, width, self.random.randint(1, width)])
        chosen = self.random.sample(choices, min(count, len(choices)))
        if self.random.random() < 0.2:
            chosen = self.random.choices(choices, k=count)
        places = self.random.sample(range(width), len(chosen))
        if self.random.random() < 0.5:
            places.sort()
        moves = [BeamMove(beam, *pair) for beam, pair in zip(places, chosen, strict=True)]
        before = search.beams
        search.beams = [[] for _ in before]
        for move in moves:
            search.beams[move.beam] = [*before[move.parent], move.token_id]
        search.arrived = set()
        return moves
