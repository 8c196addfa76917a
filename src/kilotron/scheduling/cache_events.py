"""What happens to the prefix cache, as plain values, so that somebody elsewhere (a router) can know what is cached."""

from collections.abc import Callable
from typing import NamedTuple


class BlockStored(NamedTuple):
    """A full block can be found from now on."""

    chain: bytes
    """Identifies the block with all that comes before it; see `prefix_cache.chain_value`."""
    parent: bytes
    """The chain value of the block before, or the root of a salt."""
    tokens: tuple[int, ...]


class BlockRemoved(NamedTuple):
    """A block was evicted or found faulty and cannot be found any more."""

    chain: bytes


class CacheCleared(NamedTuple):
    """No block can be found any more."""


CacheEvent = BlockStored | BlockRemoved | CacheCleared
# Called in the thread that changes the cache, in the middle of scheduling: it must be quick and must not raise.
CacheEventSink = Callable[[CacheEvent], None]
