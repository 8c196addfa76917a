"""OutputText: a request's text as its tokens come, cut at the first stop text."""

from collections.abc import Sequence

from kilotron.inference_request import InferenceRequest
from kilotron.tokenization.stop_strings import StopStringMatcher
from kilotron.tokenization.tokenizer import Tokenizer


class OutputText:
    """Detokenizes a request's output and looks for its stop texts; what may still become one is held back."""

    __slots__ = ("_detokenizer", "_is_closed", "_matcher", "_num_taken", "_parts")

    def __init__(self, request: InferenceRequest, tokenizer: Tokenizer) -> None:
        params = request.sampling_params
        self._detokenizer = tokenizer.create_detokenizer(
            request.prompt_tokens, skip_special_tokens=params.skip_special_tokens
        )
        self._matcher = None
        if params.stop_words:
            self._matcher = StopStringMatcher(params.stop_words, include_stop=params.detokenize_stop_sequence)
        self._parts: list[str] = []
        self._num_taken = 0
        self._is_closed = False

    def put_token(self, token_id: int) -> str | None:
        """Adds the text of the next token; returns the stop text it completes, if any."""
        return self._add(self._detokenizer.put(token_id))

    def put(self, token_ids: Sequence[int]) -> str | None:
        """Adds the text of further tokens; returns the stop text it completes, if any."""
        return self._add(self._detokenizer.put_many(token_ids))

    def close(self) -> str | None:
        """No token will follow: adds what was held back; returns a stop text that this completes."""
        stop = self._add(self._detokenizer.flush())
        if self._matcher is not None and not self._is_closed:
            self._parts.append(self._matcher.flush())
        self._is_closed = True
        return stop

    def take(self) -> str:
        """The text since the last call."""
        text = "".join(self._parts[self._num_taken :])
        self._num_taken = len(self._parts)
        return text

    def __str__(self) -> str:
        return "".join(self._parts)

    def _add(self, text: str) -> str | None:
        if self._is_closed or not text:
            return None
        stop = None
        if self._matcher is not None:
            text, stop = self._matcher.put(text)
            self._is_closed = stop is not None
        if text:
            self._parts.append(text)
        return stop
