"""Tests of the order of runs: interleaved, disturbed ones again, failing systems left out."""

from pathlib import Path

import pytest

from workloads.definitions import Request
from workloads.foreign_load import LoadMeter
from workloads.session import Session, Settings, Turn
from workloads.systems import SystemFailure


def make_session(tmp_path: Path, **changes: int) -> Session:
    options = {"num_repetitions": 2, "num_retries": 2} | changes
    return Session(
        [], Settings(letters="A", num_threads=1, quiet_timeout_s=0, divisor=1, log_folder=tmp_path, **options)
    )


def make_turn(foreign: list[float], seen: list[list[Request]] | None = None) -> Turn:
    """A turn during which others use these shares, one run after the other; an empty list fails."""
    shares = iter(foreign)

    def take(requests: list[Request]) -> tuple[dict[str, float], LoadMeter]:
        if seen is not None:
            seen.append(requests)
        load = LoadMeter()
        try:
            load.foreign = next(shares)
        except StopIteration:
            raise SystemFailure("broken") from None
        return {"decode_tokens_per_s": 1.0}, load

    return take


def test_systems_take_turns_within_each_repetition(tmp_path: Path) -> None:
    session = make_session(tmp_path)

    session.repeat("A", {"one": make_turn([0.0] * 4), "two": make_turn([0.0] * 4)})

    order = [(run.repetition, run.system) for run in session.runs]
    assert order == [(0, "one"), (0, "two"), (1, "one"), (1, "two")]


def test_all_systems_get_the_same_requests_and_fresh_ones_each_time(tmp_path: Path) -> None:
    seen: list[list[Request]] = []

    make_session(tmp_path).repeat("A", {"one": make_turn([0.0] * 4, seen), "two": make_turn([0.0] * 4, seen)})

    assert seen[0] == seen[1]
    assert seen[1] != seen[2]


def test_a_disturbed_run_is_kept_and_made_up_for(tmp_path: Path) -> None:
    session = make_session(tmp_path)

    session.repeat("A", {"one": make_turn([0.3, 0.0, 0.0, 0.0]), "two": make_turn([0.0] * 4)})

    of_one = [run.is_counted for run in session.runs if run.system == "one"]
    assert of_one == [False, True, True]
    assert sum(run.system == "two" for run in session.runs) == 2


def test_retries_end(tmp_path: Path) -> None:
    session = make_session(tmp_path, num_retries=1)

    session.repeat("A", {"one": make_turn([0.3] * 9)})

    assert len(session.runs) == 3


def test_a_system_that_fails_is_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    session = make_session(tmp_path)

    session.repeat("A", {"one": make_turn([]), "two": make_turn([0.0] * 4)})

    assert session.failures == {"one": "broken"}
    assert len(session.runs) == 2


@pytest.mark.parametrize("letters", ["", "F", "AB"])
def test_a_session_without_systems_does_nothing(tmp_path: Path, letters: str) -> None:
    session = Session(
        [],
        Settings(
            letters=letters,
            num_repetitions=1,
            num_retries=0,
            num_threads=1,
            quiet_timeout_s=0,
            divisor=1,
            log_folder=tmp_path,
        ),
    )

    session.run()

    assert session.runs == []
