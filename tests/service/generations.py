"""What tests of running services generate, the answers that are right, and the check that every request ended once."""

from collections.abc import Iterable, Sequence
from typing import Any

from service.http_calls import Call
from service.running_service import RunningService


def story(index: int, num_tokens: int = 300, **more: Any) -> dict[str, Any]:
    """The body of a request whose answer depends on nothing but itself."""
    return {
        "prompt": f"Story {index}: once upon a time",
        "max_tokens": num_tokens,
        "temperature": 0.8,
        "seed": index,
        "ignore_eos": True,
        **more,
    }


def right_texts(service: RunningService, bodies: Iterable[dict[str, Any]]) -> list[str]:
    """What each request gets when nothing happens."""
    calls = [service.start({**body, "stream": False}) for body in bodies]
    for call in calls:
        call.wait()
    assert [call.outcome for call in calls] == ["finished"] * len(calls), [call.error for call in calls]
    return [call.text for call in calls]


def check_texts(calls: Sequence[Call], expected: Sequence[str]) -> None:
    """Who finished has the right text, byte for byte; who did not has a beginning of it."""
    for call, text in zip(calls, expected, strict=True):
        if call.outcome == "finished":
            assert call.text == text
        else:
            assert text.startswith(call.text.rstrip("�"))


class Counts:
    """The service's own count of ends, from here to the check; its coordinator must stay the same."""

    def __init__(self, service: RunningService) -> None:
        self._service = service
        self._before = service.metrics()

    def grown(self, name: str) -> int:
        """Sum over all labels."""
        return int(_total(self._service.metrics(), name) - _total(self._before, name))

    def check(self, calls: Sequence[Call]) -> None:
        """Every request ended, once, and the service counted what its clients saw (one continuation each)."""
        outcomes = [call.wait().outcome for call in calls]
        self._service.wait_idle()
        # An engine's pulse tells of tokens; ends are counted as they pass.
        num_refused = self.grown("admission_rejections_total")
        num_failed = self.grown("request_failures_total")
        num_left = int(
            self._service.metrics().get("request_success_total/abort", 0)
            - self._before.get("request_success_total/abort", 0)
        )
        assert self.grown("request_success_total") - num_left == outcomes.count("finished")
        assert num_failed + num_refused == outcomes.count("error")
        assert num_left == outcomes.count("cut")


def _total(figures: dict[str, float], name: str) -> float:
    return sum(value for key, value in figures.items() if key.partition("/")[0] == name)
