"""StreamItem: a piece of a request's output. Plain values, so that it is known where there is no model."""

from typing import NamedTuple


class StreamItem(NamedTuple):
    """What is new in a request since the item before."""

    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...] | None
    """One per token, when asked."""
    top_n_ids: tuple[dict[int, float], ...] | None
    finish_reason: str | None
    """Set on the last item."""

    def followed_by(self, other: "StreamItem") -> "StreamItem":
        """Both items as one."""
        return other._replace(
            text=self.text + other.text,
            token_ids=self.token_ids + other.token_ids,
            log_probs=None if self.log_probs is None else self.log_probs + (other.log_probs or ()),
            top_n_ids=None if self.top_n_ids is None else self.top_n_ids + (other.top_n_ids or ()),
        )
