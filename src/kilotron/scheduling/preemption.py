"""Whom to stop when blocks run out: the least important running request, newest first."""

from collections.abc import Sequence

from kilotron.scheduling.scheduled_request import ScheduledRequest


def choose_victim(running: Sequence[ScheduledRequest]) -> ScheduledRequest:
    """The last of the running requests, which are in order of importance."""
    return running[-1]
