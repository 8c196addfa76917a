"""TokenCounts: what became of prompt tokens so far, in numbers that only grow."""

from dataclasses import dataclass

from kilotron.scheduling.cross_blocks import CrossBlocks
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
    encoder_computed: int = 0
    """Tokens that encoders ran on; again after a preemption, if it was not found any more."""
    encoder_cached: int = 0
    """Encoder tokens of admitted requests whose output was found whole in the cache."""

    def admit(self, item: ScheduledRequest, *, may_read_cache: bool) -> None:
        """A request is admitted for the first time, with the tokens that were found computed."""
        cached = item.num_computed
        self.prompt_cached += cached
        if may_read_cache:
            self.queried += item.num_prompt_left
            self.hit += cached
        item.num_prompt_left -= cached

    def encode(self, cross: CrossBlocks) -> None:
        """A request is admitted, with what was found of its encoder's output."""
        if cross.is_computed:
            self.encoder_cached += len(cross.token_ids)
        else:
            self.encoder_computed += len(cross.token_ids)

    def compute(self, item: ScheduledRequest) -> None:
        """A step computed more of a request's prompt."""
        left = max(item.request.prompt_length - item.num_computed, 0)
        if left < item.num_prompt_left:
            self.prompt_computed += item.num_prompt_left - left
            item.num_prompt_left = left
