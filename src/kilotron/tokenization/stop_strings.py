"""Finds stop strings in text that arrives in pieces, and says how much of it may be shown already.

Works on characters; knows nothing of tokens.
"""

from collections import deque
from collections.abc import Sequence

from kilotron.errors import InvalidRequestError


class StopStringMatcher:
    """An Aho-Corasick automaton over the stop strings, fed with text piece by piece.

    The stop string that is complete first ends the text; of several that are complete at the same character, the
    longest. The outcome therefore depends on the text alone, never on how it was cut into pieces. Text is held back
    exactly as long as it could still be the beginning of a stop string, so no part of a stop string is ever released
    (with `include_stop` it is released whole). Time is linear in the text, memory bounded by the stop strings.

    Example:
        >>> matcher = StopStringMatcher(["</end>"])
        >>> matcher.put("done </"), matcher.put("end> ignored")
        (('done ', None), ('', '</end>'))
    """

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        """Builds the automaton.

        Args:
            stops: The stop strings; duplicates are harmless, none at all means that nothing is held back.
            include_stop: Release the stop string itself as the last text.

        Raises:
            InvalidRequestError: a stop string is empty, or not a string.
        """
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                raise InvalidRequestError(f"a stop string must be a non-empty string, not {stop!r}")
        self._include_stop = include_stop
        self._held = ""  # always the longest end of the text that begins a stop string
        self._matched: str | None = None
        self._state = 0
        self._next: list[dict[str, int]] = [{}]  # state -> character -> state; state 0 is the root
        self._depth: list[int] = [0]  # characters from the root, that is, how much is held in this state
        self._fallback: list[int] = [0]  # the state of the longest proper suffix
        self._complete: list[str | None] = [None]  # the longest stop string that ends in this state
        for stop in stops:
            self._add(stop)
        self._link_fallbacks()

    def put(self, text: str) -> tuple[str, str | None]:
        """Takes the next piece of text.

        Args:
            text: New text, possibly empty.

        Returns:
            The text that is safe to show now, and the stop string if it is complete. After a match all further text
            is dropped and the same stop string is returned again.
        """
        if self._matched is not None:
            return "", self._matched
        state, transitions, fallback, complete = self._state, self._next, self._fallback, self._complete
        for position, character in enumerate(text):
            following = transitions[state].get(character)
            while following is None and state:
                state = fallback[state]
                following = transitions[state].get(character)
            state = following or 0
            stop = complete[state]
            if stop is not None:
                return self._finish(self._held + text[: position + 1], stop), stop
        self._state = state
        text = self._held + text
        keep = len(text) - self._depth[state]
        self._held = text[keep:]
        return text[:keep], None

    def flush(self) -> str:
        """Releases what is still held back, because no more text will come."""
        held, self._held, self._state = self._held, "", 0
        return held

    def _finish(self, text: str, stop: str) -> str:
        self._matched, self._held = stop, ""
        return text if self._include_stop else text[: len(text) - len(stop)]

    def _add(self, stop: str) -> None:
        state = 0
        for character in stop:
            following = self._next[state].get(character)
            if following is None:
                following = len(self._next)
                self._next[state][character] = following
                self._next.append({})
                self._depth.append(self._depth[state] + 1)
                self._fallback.append(0)
                self._complete.append(None)
            state = following
        self._complete[state] = stop

    def _link_fallbacks(self) -> None:
        # Breadth first, so that a state's fallback, which is less deep, is finished before the state itself.
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            for character, following in self._next[state].items():
                waiting.append(following)
                candidate = self._fallback[state]
                while candidate and character not in self._next[candidate]:
                    candidate = self._fallback[candidate]
                self._fallback[following] = self._next[candidate].get(character, 0)
                if self._complete[following] is None:
                    self._complete[following] = self._complete[self._fallback[following]]
