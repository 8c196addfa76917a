"""GenerationProgress: one request's growing output, token by token, until something ends it.

Owns the stop conditions: end ids, stop texts, length. Knows nothing of logits or of other requests.
"""

import time

from kilotron.errors import KilotronError
from kilotron.inference_request import InferenceRequest
from kilotron.scheduling.step_plan import TokenScores
from kilotron.text_generation_controllers.output_text import OutputText
from kilotron.text_generation_controllers.stream_item import StreamItem
from kilotron.text_generation_controllers.token_tables import complete_tables
from kilotron.tokenization.tokenizer import Tokenizer


class GenerationProgress:
    """Takes a request's new tokens and says when it is done.

    Text is made token by token only where somebody needs it early: a reader of the stream, or a stop text.
    """

    __slots__ = ("_num_taken", "_text", "_tokenizer", "request")

    def __init__(self, request: InferenceRequest, tokenizer: Tokenizer | None) -> None:
        self.request = request
        self._tokenizer = tokenizer
        self._text: OutputText | None = None
        self._num_taken = 0
        params = request.sampling_params
        if params.return_log_probs:
            request.generated_log_probs = []
            request.generated_top_n_ids = [] if params.top_n_logprobs else None
        if params.wants_prompt_log_probs:
            request.prompt_log_probs = []
            request.prompt_top_n_ids = [] if params.top_n_logprobs else None
        if tokenizer is not None and (params.stop_words or params.streaming):
            self._text = OutputText(request, tokenizer)

    def advance(self, token_id: int) -> str | None:
        """Adds a sampled token; returns the finish reason if it was the last."""
        request = self.request
        generated = request.generated_tokens
        if not generated:
            request.timings.first_token = time.monotonic()
        generated.append(token_id)
        if token_id in request.end_ids:
            params = request.sampling_params
            if token_id in params.stop_token_ids or token_id == params.termination_id:
                request.stop_reason = token_id
            return "stop"
        if self._text is not None:
            stop = self._text.put_token(token_id)
            if stop is not None:
                request.stop_reason = stop
                return "stop"
        if len(generated) >= request.max_generated:
            return "length"
        return None

    def add_scores(self, scores: TokenScores) -> None:
        """Adds the log-probability of the token that `advance` takes next."""
        request = self.request
        if request.generated_log_probs is not None:
            request.generated_log_probs += scores.log_probs
        if request.generated_top_n_ids is not None:
            request.generated_top_n_ids += scores.top_n or []

    def add_prompt_scores(self, scores: TokenScores) -> None:
        """Adds the log-probabilities of the next prompt tokens."""
        request = self.request
        if request.prompt_log_probs is not None:
            request.prompt_log_probs += scores.log_probs
        if request.prompt_top_n_ids is not None:
            request.prompt_top_n_ids += scores.top_n or []

    def finish(self, reason: str, error: KilotronError | None = None) -> None:
        """Completes the request's text and tables; no token will follow."""
        request = self.request
        request.finish_reason = reason
        request.error = error
        tokenizer = self._tokenizer
        if tokenizer is None:
            return
        self._complete_text(tokenizer)
        complete_tables(request, tokenizer)

    def replace_text(self, text: str) -> None:
        """Takes another text for a request that has ended, up to its stop text, if that ended it."""
        request = self.request
        if isinstance(request.stop_reason, str) and not request.sampling_params.detokenize_stop_sequence:
            text = text.split(request.stop_reason, 1)[0]
        request.generated_text = text

    def take_item(self) -> StreamItem | None:
        """What is new since the last call; None while that is less than the caller's streaming interval."""
        request = self.request
        first = self._num_taken
        num_generated = len(request.generated_tokens)
        if request.finish_reason is None and num_generated - first < request.sampling_params.streaming_interval:
            return None
        self._num_taken = num_generated
        log_probs, top_n = request.generated_log_probs, request.generated_top_n_ids
        return StreamItem(
            self._text.take() if self._text is not None else "",
            tuple(request.generated_tokens[first:]),
            None if log_probs is None else tuple(log_probs[first:]),
            None if top_n is None else tuple(top_n[first:]),
            request.finish_reason,
        )

    def _complete_text(self, tokenizer: Tokenizer) -> None:
        request = self.request
        ends_by_token = bool(request.generated_tokens) and request.generated_tokens[-1] in request.end_ids
        shown = shown_tokens(request, request.generated_tokens)
        if self._text is None:
            self._text = OutputText(request, tokenizer)
            self._text.put(shown)
        elif ends_by_token:
            self._text.put(shown[len(request.generated_tokens) - 1 :])
        stop = self._text.close()
        if stop is not None and request.finish_reason == "length":
            # The last bytes that were held back completed a stop text.
            request.finish_reason, request.stop_reason = "stop", stop
        request.generated_text = str(self._text)


def shown_tokens(request: InferenceRequest, token_ids: list[int]) -> list[int]:
    """Those that become text: without the id that ended them, unless it is asked for."""
    ends_by_token = bool(token_ids) and token_ids[-1] in request.end_ids
    return token_ids[:-1] if ends_by_token and not request.sampling_params.detokenize_stop_sequence else token_ids
