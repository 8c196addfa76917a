"""TokenCounts: what became of prompt tokens so far, in numbers that only grow."""

from dataclasses import dataclass

from kilotron.scheduling.scheduled_request import ScheduledRequest


@dataclass(slots=True)
class TokenCounts:
    """Plain numbers, so that any thread may read them. A token counts once, however often it is computed again."""

    prompt_computed: int = 0
    """Prompt tokens that steps computed."""
    prompt_cached: int = 0
    """Prompt tokens found in the prefix cache when their request was first admitted."""
    queried: int = 0
    """Prompt tokens of admitted requests that were allowed to read the prefix cache (vLLM's prefix_cache_queries)."""
    hit: int = 0
    """How many of those were found (vLLM's prefix_cache_hits)."""

    def admit(self, item: ScheduledRequest, *, may_read_cache: bool) -> None:
        """A request is admitted for the first time, with the tokens that were found computed."""
        cached = item.num_computed
        self.prompt_cached += cached
        if may_read_cache:
            self.queried += item.num_prompt_left
            self.hit += cached
        item.num_prompt_left -= cached

    def compute(self, item: ScheduledRequest) -> None:
        """A step computed more of a request's prompt."""
        left = max(item.request.prompt_length - item.num_computed, 0)
        if left < item.num_prompt_left:
            self.prompt_computed += item.num_prompt_left - left
            item.num_prompt_left = left
