"""The request's derived values, and that showing one is harmless."""

import pytest

from kilotron.inference_request import InferenceRequest, RequestTimings, Status
from kilotron.sampling_params import SamplingParams


def request_of(prompt: list[int], arrival: float = 0.0) -> InferenceRequest:
    return InferenceRequest(1, prompt, SamplingParams(), RequestTimings(arrival))


def test_new_request_waits_and_has_no_result() -> None:
    request = request_of([1, 2, 3])
    assert request.status == Status.WAITING_IN_QUEUE
    assert (request.prompt_length, request.generated_length, request.is_finished) == (3, 0, False)
    assert (request.ttft, request.tpot, request.error, request.finish_reason) == (None, None, None, None)


@pytest.mark.parametrize("status", Status)
def test_only_the_last_three_states_are_final(status: Status) -> None:
    assert status.is_final == (status in {Status.COMPLETED, Status.FAILED, Status.CANCELLED})


def test_times_are_measured_from_arrival() -> None:
    timings = RequestTimings(10.0, admitted=10.5, first_token=12.0, finished=16.0)
    assert (timings.queue_s, timings.ttft_s, timings.latency_s) == (0.5, 2.0, 6.0)
    assert timings.tpot_s(5) == 1.0


def test_time_per_token_needs_two_tokens() -> None:
    timings = RequestTimings(0.0, first_token=1.0, finished=2.0)
    assert [timings.tpot_s(count) for count in (0, 1, 2)] == [None, None, 1.0]


def test_times_that_have_not_come_are_none() -> None:
    timings = RequestTimings(0.0)
    assert (timings.queue_s, timings.ttft_s, timings.latency_s, timings.tpot_s(9)) == (None, None, None, None)


def test_requests_are_compared_by_identity() -> None:
    one, other = request_of([1]), request_of([1])
    assert one != other
    assert len({one, other}) == 2


def test_request_with_many_choices_can_be_shown() -> None:
    """Its choices hold it, and it holds them."""
    first = request_of([1])
    first.choices = [first, *(request_of([1]) for _ in range(63))]
    for sibling in first.choices[1:]:
        sibling.choices = [first]
    assert len(repr(first)) < 200_000
    assert len(repr(first.choices[-1])) < 200_000
