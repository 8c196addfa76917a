"""The state table of a service."""

import pytest

from kilotron.coordinator.core.lifecycle import Lifecycle, next_state
from kilotron.coordinator.wire import ServiceState, Verb
from kilotron.errors import LifecycleError

ALLOWED = [
    ("running", "pause", "paused"),
    ("paused", "unpause", "running"),
    ("paused", "suspend", "suspended"),
    ("suspended", "resume", "paused"),
]
REPEATS = [
    ("paused", "pause"),
    ("suspended", "pause"),
    ("running", "unpause"),
    ("suspended", "suspend"),
    ("paused", "resume"),
]
WRONG = [("running", "suspend", "pause"), ("running", "resume", "pause"), ("suspended", "unpause", "resume")]


@pytest.mark.parametrize(("state", "verb", "after"), ALLOWED)
def test_a_verb_leads_to_the_next_state(state: ServiceState, verb: Verb, after: ServiceState) -> None:
    assert next_state(state, verb) == after


@pytest.mark.parametrize(("state", "verb"), REPEATS)
def test_a_repeat_changes_nothing(state: ServiceState, verb: Verb) -> None:
    assert next_state(state, verb) == state


@pytest.mark.parametrize(("state", "verb", "remedy"), WRONG)
def test_wrong_order_names_the_state_and_the_verb_to_use_first(state: ServiceState, verb: Verb, remedy: str) -> None:
    with pytest.raises(LifecycleError, match=rf"{verb} .* {state}: {remedy}"):
        next_state(state, verb)


def test_the_table_is_complete() -> None:
    assert len(ALLOWED) + len(REPEATS) + len(WRONG) == 3 * 4


def test_newcomers_are_led_into_the_state() -> None:
    lifecycle = Lifecycle()
    assert lifecycle.way_for_newcomers == ()
    lifecycle.state = "suspended"
    assert lifecycle.way_for_newcomers == ("pause", "suspend")
