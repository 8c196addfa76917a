"""UsageCount: the tokens of one call, as they come."""

from collections.abc import Sequence

from kilotron.coordinator.wire import Output
from kilotron.text_generation_server.response_types import Usage, usage_of


class UsageCount:
    """Sums over all prompts and continuations; `prompt_lengths` are the prompts' in tokens."""

    __slots__ = ("_num_cached", "_num_generated", "_num_prompt")

    def __init__(self, prompt_lengths: Sequence[int]) -> None:
        self._num_prompt = sum(prompt_lengths)
        self._num_generated = 0
        self._num_cached = [0] * len(prompt_lengths)

    def add(self, index: int, outputs: Sequence[Output]) -> None:
        """Counts new output of prompt `index`."""
        for output in outputs:
            self._num_generated += len(output.token_ids)
            if output.choice == 0 and output.finish is not None:
                self._num_cached[index] = output.finish.num_cached_tokens

    def read(self) -> Usage:
        """The sums so far."""
        return usage_of(self._num_prompt, self._num_generated, sum(self._num_cached))
