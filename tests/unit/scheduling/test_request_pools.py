"""Megatron's `Scheduler` of the static engine: three pools, without what was wrong with it."""

import pytest

from kilotron.errors import InvalidRequestError, RequestNotFoundError
from kilotron.inference_request import InferenceRequest, Status
from kilotron.sampling_params import SamplingParams
from kilotron.scheduling.request_pools import Scheduler


def filled(max_batch_size: int, count: int) -> Scheduler:
    pools = Scheduler(max_batch_size=max_batch_size)
    for index in range(count):
        pools.add_request(prompt=f"p{index}", prompt_tokens=[index], inference_parameters=SamplingParams(top_k=1))
    return pools


def test_requests_fill_the_batch_and_then_wait() -> None:
    pools = filled(2, 3)
    assert (list(pools.active_request_pool), list(pools.waiting_request_pool)) == ([0, 1], [2])
    assert pools.num_requests_pending == 3
    assert pools.have_requests_pending()
    first = pools.active_request_pool[0]
    assert (first.prompt, first.prompt_tokens, first.inference_parameters.top_k) == ("p0", [0], 1)


def test_what_has_ended_makes_room_also_when_it_failed() -> None:
    pools = filled(2, 4)
    results = pools.active_request_pool.copy()
    results[0].status, results[1].status = Status.COMPLETED, Status.FAILED
    pools.update_requests_pools(result_dict=results)
    assert list(pools.completed_request_pool) == [0, 1]
    assert list(pools.active_request_pool) == [2, 3]


def test_pools_can_be_updated_by_what_the_requests_say() -> None:
    pools = filled(1, 2)
    pools.active_request_pool[0].status = Status.COMPLETED
    pools.update_requests_pool()
    assert (list(pools.completed_request_pool), list(pools.active_request_pool)) == ([0], [1])


def test_an_aborted_request_leaves_the_batch_and_whoever_computes_it_is_told() -> None:
    told: list[int] = []
    pools = Scheduler(1, on_abort=lambda request: told.append(request.request_id))
    for index in range(3):
        pools.add_request(prompt_tokens=[index])
    assert pools.abort_request(0).status == Status.CANCELLED
    pools.abort_request(2)
    assert (told, list(pools.active_request_pool), list(pools.completed_request_pool)) == ([0], [1], [0, 2])
    with pytest.raises(RequestNotFoundError):
        pools.abort_request(0)


def test_ids_are_never_given_twice() -> None:
    pools = filled(1, 2)
    pools.add_request(inference_request=InferenceRequest(10, [1], SamplingParams()))
    assert pools.get_new_request_id() == 11
    with pytest.raises(InvalidRequestError, match="in use"):
        pools.add_request(inference_request=InferenceRequest(10, [1], SamplingParams()))


def test_a_request_without_tokens_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="prompt_tokens"):
        Scheduler(max_batch_size=1).add_request(prompt="a")


def test_nobody_joins_a_full_batch_and_nobody_joins_from_an_empty_queue() -> None:
    with pytest.raises(InvalidRequestError, match="max_batch_size=1"):
        filled(1, 2).add_earliest_waiting_request_to_active_pool()
    with pytest.raises(InvalidRequestError, match="no request waits"):
        filled(3, 2).add_earliest_waiting_request_to_active_pool()
