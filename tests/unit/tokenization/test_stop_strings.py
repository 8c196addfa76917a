import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilotron.errors import InvalidRequestError
from kilotron.tokenization import StopStringMatcher

# Few letters, so that stop strings occur, overlap and contain each other.
TEXT = st.text(alphabet="ab🎉", max_size=24)
STOPS = st.lists(st.text(alphabet="ab🎉", min_size=1, max_size=5), max_size=5)
PIECES = st.lists(st.text(alphabet="ab🎉", max_size=6), max_size=8)


def first_match(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The slow oracle: text before the stop string that is complete first (the longest of those), and that string."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


def run(matcher: StopStringMatcher, pieces: list[str]) -> tuple[str, str | None]:
    shown, matched = "", None
    for piece in pieces:
        text, matched = matcher.put(piece)
        shown += text
    return shown + matcher.flush(), matched


@given(TEXT, STOPS)
def test_the_outcome_is_the_oracles_at_every_split(text: str, stops: list[str]) -> None:
    expected = first_match(text, stops)

    for split in range(len(text) + 1):
        assert run(StopStringMatcher(stops), [text[:split], text[split:]]) == expected


@given(PIECES, STOPS)
def test_the_outcome_is_the_oracles_however_the_text_is_cut(pieces: list[str], stops: list[str]) -> None:
    assert run(StopStringMatcher(stops), pieces) == first_match("".join(pieces), stops)


@given(PIECES, STOPS)
def test_include_stop_adds_exactly_the_stop_string(pieces: list[str], stops: list[str]) -> None:
    before, stop = first_match("".join(pieces), stops)

    assert run(StopStringMatcher(stops, include_stop=True), pieces) == (before + (stop or ""), stop)


@given(PIECES, STOPS)
def test_it_holds_back_exactly_what_may_become_a_stop_string(pieces: list[str], stops: list[str]) -> None:
    matcher = StopStringMatcher(stops)
    shown, text = "", ""
    for piece in pieces:
        released, matched = matcher.put(piece)
        shown += released
        text += piece
        if matched is None:
            starts = {stop[:length] for stop in stops for length in range(1, len(stop))}
            held = max((len(start) for start in starts if text.endswith(start)), default=0)
            assert shown == text[: len(text) - held]


def test_a_stop_string_across_pieces_is_never_shown_in_part() -> None:
    matcher = StopStringMatcher(["</end>"])

    assert [matcher.put(piece) for piece in ("ok <", "/en", "d> more")] == [("ok ", None), ("", None), ("", "</end>")]


def test_text_that_turns_out_harmless_is_released() -> None:
    matcher = StopStringMatcher(["</end>"])

    assert [matcher.put(piece) for piece in ("a</en", "jo")] == [("a", None), ("</enjo", None)]


def test_the_string_that_is_complete_first_wins() -> None:
    assert run(StopStringMatcher(["abcd", "bc"]), ["xabcd"]) == ("xa", "bc")


def test_of_two_complete_at_once_the_longer_wins() -> None:
    assert run(StopStringMatcher(["bc", "abc"]), ["xabc"]) == ("x", "abc")


def test_text_after_a_match_is_dropped() -> None:
    matcher = StopStringMatcher(["."])
    matcher.put("one. two")

    assert (matcher.put("three"), matcher.flush()) == (("", "."), "")


def test_without_stop_strings_nothing_is_held() -> None:
    assert StopStringMatcher([]).put("anything") == ("anything", None)


@pytest.mark.parametrize("stop", ["", 7, None])
def test_a_stop_string_that_is_none_is_refused(stop: object) -> None:
    with pytest.raises(InvalidRequestError, match="non-empty string"):
        StopStringMatcher([stop])  # type: ignore[list-item]
