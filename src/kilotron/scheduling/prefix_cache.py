"""Finds computed blocks by what they hold, and names the one to give up when room is needed.

A full block is identified by a SHA-256 chain over its tokens, the chain value of the block before it, and at the
root the request's salt. Every hit compares the tokens as well, so that a hash is never believed alone. Works on block
ids; who owns a block is `block_allocator`'s business, which tells this class when a block's last owner leaves and
when the first comes back.

Order of giving up: among the unowned blocks that no cached block continues (leaves), the one unused longest.
"""

import hashlib
import heapq
from array import array
from collections.abc import Sequence

from kilotron.scheduling.cache_events import BlockRemoved, BlockStored, CacheCleared, CacheEventSink


class _Entry:
    """A cached block."""

    __slots__ = (
        "block_id",
        "chain",
        "is_owned",
        "last_used",
        "num_children",
        "number",
        "parent",
        "parent_entry",
        "tokens",
    )

    def __init__(
        self, block_id: int, chain: bytes, parent: bytes, parent_entry: "_Entry | None", tokens: tuple[int, ...]
    ) -> None:
        self.block_id = block_id
        self.chain = chain
        self.parent = parent
        self.parent_entry = parent_entry
        self.tokens = tokens
        self.number = 0
        self.num_children = 0
        self.last_used = 0
        self.is_owned = True


def chain_root(salt: str) -> bytes:
    """The chain value in front of a request's first block. Different salts never share a block."""
    return hashlib.sha256(b"kilotron/1:" + salt.encode(errors="surrogatepass")).digest()


def chain_value(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The chain value of a block with these tokens after `parent`."""
    return hashlib.sha256(parent + array("q", tokens).tobytes()).digest()


class PrefixCache:
    """Cached blocks by chain value, with leaf-first least-recently-used eviction."""

    def __init__(self) -> None:
        self.on_event: CacheEventSink | None = None
        """Told of every block stored and removed, if anybody wants to know."""
        self._by_chain: dict[bytes, _Entry] = {}
        self._by_block: dict[int, _Entry] = {}
        # (last_used, block id) of leaves; an entry that changed since is stale and skipped when popped.
        self._leaves: list[tuple[int, int]] = []
        self._clock = 0
        self._num_registered = 0
        self._num_unowned = 0

    @property
    def num_unowned(self) -> int:
        """Cached blocks that nobody owns; all of them can be evicted, one by one."""
        return self._num_unowned

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._by_block

    def find(self, chain: bytes, parent: bytes, tokens: Sequence[int]) -> int | None:
        """The block that holds exactly these tokens after `parent`, or None."""
        entry = self._by_chain.get(chain)
        if entry is None or entry.parent != parent or entry.tokens != tuple(tokens):
            return None
        return entry.block_id

    def registration(self, block_id: int) -> int | None:
        """A number that a block has as long as it holds what it was registered for, and so do all before it."""
        entry = self._by_block.get(block_id)
        return None if entry is None else entry.number

    def insert(self, block_id: int, chain: bytes, parent: bytes, tokens: Sequence[int]) -> bool:
        """Registers an owned block; False when the same content is registered already (the block stays private)."""
        if chain in self._by_chain:
            return False
        entry = _Entry(block_id, chain, parent, self._by_chain.get(parent), tuple(tokens))
        self._num_registered += 1
        entry.number = self._num_registered
        self._by_chain[chain] = entry
        self._by_block[block_id] = entry
        if entry.parent_entry is not None:
            entry.parent_entry.num_children += 1
        if self.on_event is not None:
            self.on_event(BlockStored(chain, parent, entry.tokens))
        return True

    def mark_owned(self, block_id: int) -> None:
        """The first owner came back to a cached block."""
        self._by_block[block_id].is_owned = True
        self._num_unowned -= 1

    def mark_unowned(self, block_ids: Sequence[int]) -> None:
        """The last owner of these cached blocks left; they count as used just now."""
        self._clock += 1
        for block_id in block_ids:
            entry = self._by_block[block_id]
            entry.is_owned = False
            entry.last_used = self._clock
            self._num_unowned += 1
            self._offer(entry)

    def evict(self) -> int | None:
        """Forgets the least recently used unowned leaf and returns its block; None when nothing is unowned."""
        while self._leaves:
            last_used, block_id = heapq.heappop(self._leaves)
            entry = self._by_block.get(block_id)
            if entry is not None and self._is_leaf(entry) and entry.last_used == last_used:
                self._drop(entry)
                return block_id
        return None

    def forget(self, block_ids: Sequence[int]) -> list[int]:
        """Drops blocks, owned or not, and all that continue them; returns those of them that nobody owns."""
        entries = [self._by_block[block_id] for block_id in block_ids if block_id in self._by_block]
        if not entries:
            return []
        dropped = dict.fromkeys(entries)
        # In order of registration, so that a block comes after the one it continues.
        for entry in self._by_block.values():
            if entry.parent_entry in dropped:
                dropped[entry] = None
        for entry in dropped:
            self._drop(entry)
        return [entry.block_id for entry in dropped if not entry.is_owned]

    def clear(self) -> list[int]:
        """Drops all blocks, owned or not; returns those that nobody owns."""
        unowned = [entry.block_id for entry in self._by_block.values() if not entry.is_owned]
        self._by_chain.clear()
        self._by_block.clear()
        self._leaves.clear()
        self._num_unowned = 0
        if self.on_event is not None:
            self.on_event(CacheCleared())
        return unowned

    def list_stored(self) -> list[BlockStored]:
        """All that can be found, each block after the one it continues: what a newcomer has to be told first."""
        return [BlockStored(entry.chain, entry.parent, entry.tokens) for entry in self._by_block.values()]

    def _drop(self, entry: _Entry) -> None:
        del self._by_block[entry.block_id]
        del self._by_chain[entry.chain]
        if not entry.is_owned:
            self._num_unowned -= 1
        parent = entry.parent_entry
        if parent is not None:
            parent.num_children -= 1
            if self._by_block.get(parent.block_id) is parent:
                self._offer(parent)
        if self.on_event is not None:
            self.on_event(BlockRemoved(entry.chain))

    def _is_leaf(self, entry: _Entry) -> bool:
        return not entry.is_owned and entry.num_children == 0

    def _offer(self, entry: _Entry) -> None:
        if self._is_leaf(entry):
            heapq.heappush(self._leaves, (entry.last_used, entry.block_id))
            if len(self._leaves) > 64 + 2 * len(self._by_block):
                self._drop_stale()

    def _drop_stale(self) -> None:
        self._leaves = [(e.last_used, e.block_id) for e in self._by_block.values() if self._is_leaf(e)]
        heapq.heapify(self._leaves)
