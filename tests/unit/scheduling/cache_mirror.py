"""CacheMirror: what somebody far away believes to be cached, from the prefix cache's events alone."""

from kilotron.scheduling.cache_events import BlockRemoved, BlockStored, CacheEvent
from kilotron.scheduling.prefix_cache import PrefixCache


class CacheMirror:
    """Hears of every event and can be held against the cache at any time."""

    def __init__(self, cache: PrefixCache) -> None:
        self.stored = {block.chain: block for block in cache.list_stored()}
        self.cache = cache
        cache.on_event = self.take

    def take(self, event: CacheEvent) -> None:
        if isinstance(event, BlockStored):
            assert event.chain not in self.stored, "stored twice"
            self.stored[event.chain] = event
        elif isinstance(event, BlockRemoved):
            del self.stored[event.chain]
        else:
            self.stored.clear()

    def check(self) -> None:
        assert self.stored == {block.chain: block for block in self.cache.list_stored()}, "the mirror is wrong"
