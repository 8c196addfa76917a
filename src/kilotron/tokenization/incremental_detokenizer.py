"""Turns ids into text while they are generated: whole characters only, in constant time and memory per id.

Two ways, chosen by the tokenizer. `PieceDetokenizer` joins the exact bytes of each id and decodes UTF-8 as a stream.
`WindowDetokenizer` serves the tokenizers whose text is not the sum of its tokens: it decodes a short window of ids
again and again and gives out what was added. Neither knows how ids get their text.

Why not `tokenizers.decoders.DecodeStream`: it holds back everything while the text ends in U+FFFD, decoding all of it
at each step (quadratic on a run of invalid bytes or of skipped special tokens), gives out the whole prompt when that
ends inside a character, and fails with "Invalid prefix" when a decoder changes its mind.
"""

from codecs import utf_8_decode
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Protocol

from kilotron.tokenization.token_pieces import TokenPieces

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_PENDING = 8  # ids a window waits for the rest of a character: UTF-8 has at most 4 bytes
_MAX_PROMPT_WINDOW = 16
_MAX_UTF8_TAIL = 3  # the longest beginning of a UTF-8 character that is not the whole


class IncrementalDetokenizer(Protocol):
    """The text of one generated sequence, given out as it becomes certain.

    All text given out, `flush` included, is what `detokenize(prompt_ids + generated_ids)` has after the prompt's text.
    A character whose bytes are not complete yet is held back; bytes that can no longer become a character turn into
    U+FFFD at once; an unfinished character at the very end turns into U+FFFD in `flush`. A character that begins in
    the prompt and ends in the generated ids is given out whole. Ids the tokenizer does not know have no text.
    """

    def put(self, token_id: int) -> str:
        """Takes one generated id and returns the text that became certain, possibly none."""
        ...

    def put_many(self, token_ids: Sequence[int]) -> str:
        """Takes several generated ids at once; the same as the joined results of `put`."""
        ...

    def flush(self) -> str:
        """Returns what is still held back, because no more ids will come."""
        ...


class PieceDetokenizer:
    """Detokenizer for tokenizers whose every id stands for fixed bytes."""

    __slots__ = ("_at_start", "_held", "_pieces", "_skipped")

    def __init__(self, pieces: TokenPieces, prompt_ids: Sequence[int], skipped: frozenset[int]) -> None:
        """Starts after the prompt, of which only the last few ids are looked at.

        Args:
            pieces: The bytes of each id.
            prompt_ids: The ids before the first generated one.
            skipped: Ids that give no text.
        """
        self._pieces = pieces
        self._skipped = skipped
        self._at_start = True
        self._held = b""
        tail = b""
        for token_id in reversed(prompt_ids):
            if token_id not in skipped:
                tail = pieces[token_id] + tail
            if len(tail) >= _MAX_UTF8_TAIL:
                break
        if tail:
            # A tail may start inside a character; what it ends with does not depend on that.
            self._at_start = False
            self._held = tail[utf_8_decode(tail, "replace", False)[1] :]

    def put(self, token_id: int) -> str:
        """See `IncrementalDetokenizer`."""
        if token_id in self._skipped:
            return ""
        piece = self._pieces[token_id]
        if self._at_start and piece:
            self._at_start = False
            piece = self._pieces.first(token_id)
        data = self._held + piece
        text, used = utf_8_decode(data, "replace", False)
        self._held = data[used:]
        return text

    def put_many(self, token_ids: Sequence[int]) -> str:
        """See `IncrementalDetokenizer`."""
        pieces, skipped = self._pieces, self._skipped
        kept = [token_id for token_id in token_ids if token_id not in skipped]
        head = ""
        done = 0
        while self._at_start and done < len(kept):
            head += self.put(kept[done])
            done += 1
        data = self._held + b"".join([pieces[token_id] for token_id in kept[done:]])
        text, used = utf_8_decode(data, "replace", False)
        self._held = data[used:]
        return head + text

    def flush(self) -> str:
        """See `IncrementalDetokenizer`."""
        held, self._held = self._held, b""
        return held.decode("utf-8", "replace")


class WindowDetokenizer:
    """Detokenizer for any decode function.

    Where a decoder rewrites text that was already given out, or cannot make up its mind for more than a few ids, the
    text given out stands and the window starts afresh.
    """

    __slots__ = ("_decode", "_given", "_num_given", "_skipped", "_window")

    def __init__(
        self, decode: Callable[[Sequence[int]], str], prompt_ids: Sequence[int], skipped: frozenset[int]
    ) -> None:
        """Starts after the prompt, of which only the last few ids are looked at.

        Args:
            decode: Text of a few ids; ids in `skipped` are never passed.
            prompt_ids: The ids before the first generated one.
            skipped: Ids that give no text.
        """
        self._decode = decode
        self._skipped = skipped
        kept = (token_id for token_id in reversed(prompt_ids) if token_id not in skipped)
        self._window = list(islice(kept, _MAX_PROMPT_WINDOW))[::-1]
        self._num_given = len(self._window)
        self._given = decode(self._window).rstrip(_REPLACEMENT)

    def put(self, token_id: int) -> str:
        """See `IncrementalDetokenizer`."""
        if token_id in self._skipped:
            return ""
        self._window.append(token_id)
        text = self._decode(self._window)
        is_patient = len(self._window) - self._num_given < _MAX_PENDING
        if is_patient and (len(text) <= len(self._given) or text.endswith(_REPLACEMENT)):
            return ""
        if text == self._given:  # ids without text: drop them, but keep the ones the next text is joined to
            del self._window[self._num_given :]
            return ""
        return self._give(text)

    def put_many(self, token_ids: Sequence[int]) -> str:
        """See `IncrementalDetokenizer`."""
        return "".join([self.put(token_id) for token_id in token_ids])

    def flush(self) -> str:
        """See `IncrementalDetokenizer`."""
        if len(self._window) == self._num_given:
            return ""
        return self._give(self._decode(self._window))

    def _give(self, text: str) -> str:
        pending = self._window[self._num_given :]
        added = text[len(self._given) :] if text.startswith(self._given) else self._decode(pending)
        self._window = pending
        self._num_given = len(pending)
        self._given = self._decode(pending)
        return added
