"""Who is next."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kilotron.inference_request import InferenceRequest, RequestTimings
from kilotron.sampling_params import SamplingParams
from kilotron.scheduling.scheduled_request import ScheduledRequest
from kilotron.scheduling.waiting_queue import WaitingQueue


def item_of(order: int, *, priority: int = 0, queued_step: int = 0) -> ScheduledRequest:
    request = InferenceRequest(order, [1], SamplingParams(priority=priority), RequestTimings(0.0))
    return ScheduledRequest(request, salt="", arrival_order=order, queued_step=queued_step)


def queue_of(*items: ScheduledRequest, aging_steps: int = 10) -> WaitingQueue:
    queue = WaitingQueue(aging_steps)
    for item in items:
        queue.append(item)
    return queue


def order_of(queue: WaitingQueue, step: int = 0) -> list[int]:
    return [item.arrival_order for item in queue.in_order(step)]


def test_lower_priority_number_goes_first_then_arrival() -> None:
    queue = queue_of(item_of(0), item_of(1, priority=-1), item_of(2), item_of(3, priority=-1), item_of(4, priority=5))
    assert order_of(queue) == [1, 3, 0, 2, 4]


def test_waiting_gains_one_priority_level_every_aging_steps() -> None:
    queue = queue_of(item_of(0, priority=1), item_of(1, queued_step=5), aging_steps=10)
    assert order_of(queue, step=9) == [1, 0]
    assert order_of(queue, step=10) == [0, 1]


def test_one_put_back_stands_in_front_of_those_that_came_later() -> None:
    first, second, third = item_of(0), item_of(1), item_of(2)
    queue = queue_of(second, third)
    queue.put_back(first)
    assert order_of(queue) == [0, 1, 2]


def test_one_put_back_stands_behind_those_that_came_earlier() -> None:
    """An earlier request may still wait because a smaller one was let past it."""
    queue = queue_of(item_of(0), item_of(1), item_of(3))
    queue.put_back(item_of(2))
    assert order_of(queue) == [0, 1, 2, 3]


def test_removal_from_the_middle_leaves_the_others_in_order() -> None:
    items = [item_of(order) for order in range(4)]
    queue = queue_of(*items)
    queue.remove(items[2])
    assert (order_of(queue), len(queue)) == ([0, 1, 3], 3)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 5)), max_size=12), st.integers(1, 4), st.integers(0, 20))
def test_order_is_that_of_sorting_by_aged_priority_and_arrival(
    arrivals: list[tuple[int, int]], aging_steps: int, wait: int
) -> None:
    items, now = [], 0
    for order, (priority, pause) in enumerate(arrivals):
        now += pause
        items.append(item_of(order, priority=priority, queued_step=now))
    step = now + wait
    ages = {item.arrival_order: (step - item.queued_step) // aging_steps for item in items}
    ranked = sorted(items, key=lambda item: (item.importance[0] - ages[item.arrival_order], item.arrival_order))
    assert order_of(queue_of(*items, aging_steps=aging_steps), step) == [item.arrival_order for item in ranked]
