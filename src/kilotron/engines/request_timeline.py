"""RequestTimeline: what happened to each of the last requests, and when. Looks at plans, never at a step's every row.

Bounded in requests and in events per request. Any thread may read while the engine's writes.
"""

import heapq
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kilotron.inference_request import InferenceRequest
from kilotron.scheduling.step_plan import StepPlan


class TimelineEvent(NamedTuple):
    """One thing that happened."""

    time: float
    """Of the monotonic clock."""
    name: str
    details: Mapping[str, Any]


class _Record:
    """A request's events."""

    __slots__ = ("arrival", "events", "next_count", "num_left_out")

    def __init__(self, arrival: float) -> None:
        self.arrival = arrival
        self.events: list[TimelineEvent] = []
        self.num_left_out = 0
        self.next_count = 2
        """So many tokens are the next event; a power of two."""


class RequestTimeline:
    """Times of the last requests' events.

    Args:
        max_requests: how many requests are remembered, the newest.
        max_events: how many events of each. Beyond half of them chunks of a prompt count as one event; when all are
            used up, only the end still gets one.
    """

    def __init__(self, *, max_requests: int = 1024, max_events: int = 256) -> None:
        self._max_requests = max_requests
        self._max_events = max_events
        self._records: dict[int, _Record] = {}
        # Admitted requests that gave no token since -> how many they had then.
        self._computing: dict[int, int] = {}
        # (step, request id): when a request can have reached its next power of two at the earliest.
        self._due: list[tuple[int, int]] = []

    def queue(self, request: InferenceRequest) -> None:
        """The request was accepted."""
        while len(self._records) >= self._max_requests:
            del self._records[next(iter(self._records))]
        arrival = request.timings.arrival
        self._records[request.request_id] = _Record(arrival)
        details = {"prompt_tokens": request.prompt_length}
        if request.encoder_tokens:
            details["encoder_tokens"] = len(request.encoder_tokens)
        self._add(request.request_id, arrival, "queued", **details)

    def begin_step(self, plan: StepPlan, requests: Mapping[int, InferenceRequest], now: float) -> None:
        """A step is about to run; `requests` are the unfinished ones, as the step before left them."""
        step = plan.step
        if self._due and self._due[0][0] <= step:
            self._count_tokens(step, requests, now)
        for request_id in list(self._computing):
            self._end_prefill(requests[request_id])
        if plan.preempted:
            self.preempt([requests[request_id] for request_id in plan.preempted], "out of blocks", now)
        admitted = {admission.request_id for admission in plan.admissions if not admission.is_beam}
        self._tell_of_beams(plan, now)
        for request_id in admitted:
            self._computing[request_id] = requests[request_id].generated_length
        if self._computing:
            for row in plan.rows:
                if row.request_id in admitted:
                    name = "resumed" if requests[row.request_id].num_preemptions else "admitted"
                    self._add(row.request_id, now, name, cached_tokens=row.start)
                if row.request_id in self._computing:
                    self._add_chunk(row.request_id, now, len(row.token_ids), step)

    def preempt(self, requests: Sequence[InferenceRequest], reason: str, now: float) -> None:
        """Requests lost their blocks, to be computed again."""
        for request in requests:
            self._end_prefill(request)
            self._computing.pop(request.request_id, None)
            self._add(request.request_id, now, "preempted", reason=reason)

    def finish(self, request: InferenceRequest) -> None:
        """The request ended, for whatever reason."""
        request_id = request.request_id
        self._end_prefill(request)
        record = self._records.get(request_id)
        if record is not None:
            finished = request.timings.finished or record.arrival
            details = {"reason": request.finish_reason, "tokens": request.generated_length}
            record.events.append(TimelineEvent(finished, "finished", details))

    def read(self, request_id: int) -> list[dict[str, Any]] | None:
        """What happened to a request, in order, with seconds since its arrival; None when it is not remembered."""
        record = self._records.get(request_id)
        if record is None:
            return None
        events = [
            {"at_s": round(event.time - record.arrival, 6), "event": event.name, **event.details}
            for event in record.events.copy()
        ]
        if record.num_left_out:
            events.append({"event": "left out", "events": record.num_left_out})
        return events

    def _tell_of_beams(self, plan: StepPlan, now: float) -> None:
        """One event for the first fork of a beam search; later ones are as many as tokens."""
        for admission in plan.admissions:
            if admission.is_beam and len(admission.token_ids) == admission.prompt_length + 1:
                record = self._records.get(admission.request_id)
                if record is not None and record.events[-1].name != "beams":
                    width = admission.sampling_params.beam_width
                    self._add(admission.request_id, now, "beams", width=width, step=plan.step)

    def _count_tokens(self, step: int, requests: Mapping[int, InferenceRequest], now: float) -> None:
        """Events for those that reached a power of two; each is looked at again when it may reach the next."""
        while self._due and self._due[0][0] <= step:
            _, request_id = heapq.heappop(self._due)
            request, record = requests.get(request_id), self._records.get(request_id)
            if request is None or record is None:
                continue
            count = request.generated_length
            if count >= record.next_count:
                self._add(request_id, now, "tokens", tokens=count)
                record.next_count = 1 << count.bit_length()
            heapq.heappush(self._due, (step + record.next_count - count, request_id))

    def _end_prefill(self, request: InferenceRequest) -> None:
        """If a request has given a token since it was admitted, its prompt is computed."""
        request_id = request.request_id
        before = self._computing.get(request_id)
        if before is None or (request.generated_length == before and request.finish_reason is None):
            return
        del self._computing[request_id]
        first_token = request.timings.first_token
        if before == 0 and first_token is not None:
            self._add(request_id, first_token, "first token")
            heapq.heappush(self._due, (0, request_id))

    def _add_chunk(self, request_id: int, now: float, num_tokens: int, step: int) -> None:
        record = self._records.get(request_id)
        if record is None:
            return
        events = record.events
        if len(events) >= self._max_events // 2 and events[-1].name == "prefill":
            last = events[-1].details
            details = {"tokens": last["tokens"] + num_tokens, "step": last["step"], "last_step": step}
            events[-1] = events[-1]._replace(details=details)
        else:
            self._add(request_id, now, "prefill", tokens=num_tokens, step=step)

    def _add(self, request_id: int, time: float, name: str, **details: Any) -> None:
        record = self._records.get(request_id)
        if record is None:
            return
        if len(record.events) < self._max_events - 1:
            record.events.append(TimelineEvent(time, name, details))
        else:
            record.num_left_out += 1
