"""RequestPools: which requests of a static engine wait, are in the batch, or are done. Megatron calls it `Scheduler`.

Knows requests and nothing else; what a step of the batch computes is planned by `StaticScheduler`.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from kilotron.errors import InvalidRequestError, RequestAbortedError, RequestNotFoundError
from kilotron.inference_request import InferenceRequest, RequestTimings, Status
from kilotron.sampling_params import SamplingParams


class RequestPools:
    """Three pools, id -> request, each in order of arrival. Any thread may call.

    Args:
        max_batch_size: most requests in the active pool.
        on_abort: called with an active request that was aborted, so that whoever computes it stops.
        new_id: gives ids, where others number requests too; None counts from 0.
    """

    def __init__(
        self,
        max_batch_size: int,
        *,
        on_abort: Callable[[InferenceRequest], None] | None = None,
        new_id: Callable[[], int] | None = None,
    ) -> None:
        self.max_batch_size = max_batch_size
        self.waiting_request_pool: OrderedDict[int, InferenceRequest] = OrderedDict()
        self.active_request_pool: OrderedDict[int, InferenceRequest] = OrderedDict()
        self.completed_request_pool: OrderedDict[int, InferenceRequest] = OrderedDict()
        """Ended in whatever way. Kept until somebody takes them out."""
        self._on_abort = on_abort
        self._new_id = new_id
        self._lock = threading.RLock()
        self._next_id = 0

    @property
    def num_requests_pending(self) -> int:
        """Requests that wait or are active."""
        return len(self.waiting_request_pool) + len(self.active_request_pool)

    def have_requests_pending(self) -> bool:
        """Whether any wait or are active."""
        return self.num_requests_pending > 0

    def get_new_request_id(self) -> int:
        """An id that no request in the pools has had."""
        if self._new_id is not None:
            return self._new_id()
        with self._lock:
            self._next_id += 1
            return self._next_id - 1

    def add_request(
        self,
        prompt: str | None = None,
        prompt_tokens: Sequence[int] | None = None,
        *,
        sampling_params: SamplingParams | None = None,
        inference_parameters: SamplingParams | None = None,
        arrival_time: float | None = None,
        inference_request: InferenceRequest | None = None,
    ) -> int:
        """Puts a request into the active pool, or into the waiting one when that is full, and returns its id.

        Args:
            prompt: the text, as it is to be shown in the result.
            prompt_tokens: its ids.
            sampling_params: None takes the defaults.
            inference_parameters: Megatron's older name of the same.
            arrival_time: by the monotonic clock; None is now.
            inference_request: a ready request, instead of all these.

        Raises:
            InvalidRequestError: there are no tokens, or the request's id is known already.
        """
        with self._lock:
            request = inference_request
            if request is None:
                if prompt_tokens is None:
                    raise InvalidRequestError("give prompt_tokens (and the prompt's text), or an inference_request")
                params = sampling_params or inference_parameters or SamplingParams()
                request = InferenceRequest(self.get_new_request_id(), list(prompt_tokens), params, prompt=prompt)
                if arrival_time is not None:
                    request.timings = RequestTimings(arrival_time)
            if any(request.request_id in pool for pool in self._pools):
                raise InvalidRequestError(f"request id {request.request_id} is in use; take get_new_request_id()")
            self._next_id = max(self._next_id, request.request_id + 1)
            self.waiting_request_pool[request.request_id] = request
            self._fill()
            return request.request_id

    def add_earliest_waiting_request_to_active_pool(self) -> None:
        """Lets the request that came first join the batch.

        Raises:
            InvalidRequestError: the batch is full, or nobody waits.
        """
        with self._lock:
            if len(self.active_request_pool) >= self.max_batch_size:
                raise InvalidRequestError(
                    f"the active pool holds max_batch_size={self.max_batch_size} requests already"
                )
            if not self.waiting_request_pool:
                raise InvalidRequestError("no request waits")
            request_id, request = self.waiting_request_pool.popitem(last=False)
            self.active_request_pool[request_id] = request

    def update_requests_pools(self, result_dict: Mapping[int, InferenceRequest] | None = None) -> None:
        """Moves what has ended, well or not, to the completed pool, and fills the batch from the waiting pool.

        Args:
            result_dict: id -> request as an engine gave it back; None goes by the active requests themselves.
        """
        with self._lock:
            results = self.active_request_pool.copy() if result_dict is None else result_dict
            for request_id, request in results.items():
                if request_id in self.active_request_pool and request.status.is_final:
                    del self.active_request_pool[request_id]
                    self.completed_request_pool[request_id] = request
            self._fill()

    update_requests_pool = update_requests_pools

    def abort_request(self, request_id: int) -> InferenceRequest:
        """Ends a request now, and returns it: it is cancelled, and a waiting one takes its place.

        Raises:
            RequestNotFoundError: it is neither waiting nor active.
        """
        with self._lock:
            is_active = request_id in self.active_request_pool
            pool = self.active_request_pool if is_active else self.waiting_request_pool
            request = pool.pop(request_id, None)
        if request is None:
            raise RequestNotFoundError(f"request {request_id} is neither waiting nor active")
        if is_active and self._on_abort is not None:
            # Without the lock: this may wait for a step, and whoever runs the step may want the lock.
            self._on_abort(request)
        with self._lock:
            for choice in request.choices or [request]:
                if not choice.status.is_final:
                    choice.status, choice.finish_reason = Status.CANCELLED, "abort"
                    choice.error = RequestAbortedError(f"request {request_id} was aborted")
            self.completed_request_pool[request_id] = request
            self._fill()
        return request

    @property
    def _pools(self) -> tuple[OrderedDict[int, InferenceRequest], ...]:
        return self.waiting_request_pool, self.active_request_pool, self.completed_request_pool

    def _fill(self) -> None:
        while self.waiting_request_pool and len(self.active_request_pool) < self.max_batch_size:
            self.add_earliest_waiting_request_to_active_pool()


Scheduler = RequestPools
"""Megatron's name."""
