"""Bookkeeping of requests under way."""

import pytest

from kilotron.coordinator.core.request_ledger import RequestLedger, TrackedRequest
from kilotron.errors import DuplicateRequestError, QueueFullError, QuotaExceededError
from unit.coordinator.core.core_world import submission_of


def add(
    ledger: RequestLedger, request_id: str, priority: int = 0, client: bytes = b"c", **fields: object
) -> TrackedRequest:
    return ledger.add(submission_of(request_id, **fields), client, 10.0, 1, priority)


def order_of(ledger: RequestLedger) -> list[str]:
    order = []
    while (request := ledger.first_queued()) is not None:
        order.append(request.request_id)
        ledger.assign(request, "r", 11.0)
    return order


def test_the_queue_goes_by_priority_then_arrival() -> None:
    ledger = RequestLedger(9, 9)
    for request_id, priority in (("a", 1), ("b", 0), ("c", 1), ("d", -1)):
        add(ledger, request_id, priority)
    assert [request.request_id for request in ledger.queued] == order_of(ledger) == list("dbac")


def test_a_request_that_comes_back_is_first_again() -> None:
    ledger = RequestLedger(9, 9)
    first = add(ledger, "a")
    ledger.assign(first, "r", 11.0)
    add(ledger, "b")
    ledger.requeue(first)
    assert order_of(ledger) == ["a", "b"]


def test_count_and_tokens_of_the_queue_are_exact() -> None:
    ledger = RequestLedger(9, 9)
    one, two = add(ledger, "a", prompt_tokens=[1] * 5), add(ledger, "b", prompt_tokens=[1] * 7)
    assert (ledger.num_queued, ledger.num_queued_tokens) == (2, 12)
    ledger.assign(one, "r", 11.0)
    assert (ledger.num_queued, ledger.num_queued_tokens) == (1, 7)
    ledger.requeue(one)
    ledger.end(two)
    assert (ledger.num_queued, ledger.num_queued_tokens) == (1, 5)
    ledger.end(one)
    assert (ledger.num_queued, ledger.num_queued_tokens, len(ledger)) == (0, 0, 0)


def test_bounds_of_the_queue_are_told_with_the_wait() -> None:
    ledger = RequestLedger(2, 9)
    add(ledger, "a", prompt_tokens=[1] * 5)
    ledger.check_queue(5, 10, 3.0)
    with pytest.raises(QueueFullError, match="limit of 10") as refusal:
        ledger.check_queue(6, 10, 3.0)
    assert refusal.value.retry_after_s == 3.0
    add(ledger, "b")
    with pytest.raises(QueueFullError, match="2 requests wait"):
        ledger.check_queue(1, 100, 3.0)


def test_an_owner_has_a_quota_and_nobody_has_none() -> None:
    ledger = RequestLedger(9, 1)
    first = add(ledger, "a", owner="me")
    with pytest.raises(QuotaExceededError):
        ledger.check_identity(submission_of("b", owner="me"))
    ledger.check_identity(submission_of("b", owner="you"))
    add(ledger, "c")
    ledger.check_identity(submission_of("d"))
    ledger.end(first)
    ledger.check_identity(submission_of("b", owner="me"))


def test_ids_and_idempotency_keys_are_unique_while_under_way() -> None:
    ledger = RequestLedger(9, 9)
    request = add(ledger, "a", owner="me", idempotency_key="k")
    with pytest.raises(DuplicateRequestError):
        ledger.check_identity(submission_of("a"))
    with pytest.raises(DuplicateRequestError):
        ledger.check_identity(submission_of("b", owner="me", idempotency_key="k"))
    ledger.check_identity(submission_of("b", owner="you", idempotency_key="k"))
    ledger.end(request)
    ledger.check_identity(submission_of("a", owner="me", idempotency_key="k"))


def test_only_queued_requests_expire_here() -> None:
    ledger = RequestLedger(9, 9)
    running, waiting = add(ledger, "a", timeout_s=1.0), add(ledger, "b", timeout_s=2.0)
    add(ledger, "c")
    ledger.assign(running, "r", 10.0)
    assert ledger.expired(11.9) == []
    assert ledger.expired(12.0) == [waiting]


def test_requests_are_found_by_client_and_replica() -> None:
    ledger = RequestLedger(9, 9)
    one, two = add(ledger, "a", client=b"x"), add(ledger, "b", client=b"y")
    ledger.assign(one, "r", 10.0)
    assert (ledger.of_client(b"x"), ledger.of_client(b"y"), ledger.of_replica("r")) == ([one], [two], [one])
    ledger.end(one)
    assert (ledger.of_client(b"x"), ledger.of_replica("r")) == ([], [])


def test_requests_that_end_while_they_wait_leave_nothing_behind() -> None:
    ledger = RequestLedger(9, 9)
    for number in range(1000):
        ledger.end(add(ledger, f"r{number}", priority=number % 7, timeout_s=1e6))
    assert len(ledger._queue) <= 64
    assert len(ledger._deadlines) <= 64
