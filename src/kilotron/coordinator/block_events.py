"""BlockEventLog: a prefix cache's events between two messages, neighbouring blocks of one chain put together."""

from kilotron.coordinator import wire
from kilotron.scheduling.cache_events import BlockRemoved, BlockStored, CacheCleared

# Together far below the size of a frame, whatever the size of a block.
_MOST_EVENTS = 256
_MOST_TOKENS = 4096


class BlockEventLog:
    """Give `put` to a prefix cache as its `on_event`."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._events: list[wire.BlockEvent] = []

    def put(self, event: BlockStored | BlockRemoved | CacheCleared) -> None:
        """Adds an event."""
        last = self._events[-1] if self._events else None
        match event:
            case BlockStored(chain, parent, tokens):
                if isinstance(last, wire.BlockStored) and last.block_hashes[-1] == parent and _has_room(last):
                    last.block_hashes.append(chain)
                    last.token_ids.extend(tokens)
                else:
                    self._events.append(wire.BlockStored([chain], parent, list(tokens), self._block_size))
            case BlockRemoved(chain):
                if isinstance(last, wire.BlockRemoved):
                    last.block_hashes.append(chain)
                else:
                    self._events.append(wire.BlockRemoved([chain]))
            case CacheCleared():
                self._events.append(wire.AllBlocksCleared())

    def clear(self) -> None:
        """Forgets what was not taken."""
        self._events.clear()

    def take(self) -> list[wire.BlockEvent]:
        """The oldest events that were not taken yet, as many as fit into a message."""
        taken, self._events = self._events[:_MOST_EVENTS], self._events[_MOST_EVENTS:]
        return taken


def _has_room(event: wire.BlockStored) -> bool:
    return len(event.token_ids) < _MOST_TOKENS
