"""AllocatorWorld: a block allocator beside a naive model of it, compared at every action.

The model knows owners by counting and cached blocks by the whole text in front of them: no hashes, no heaps, no
links. It says which blocks a prompt finds and exactly which blocks have to be evicted, in order.
"""

from dataclasses import dataclass, field

from kilotron.scheduling.block_allocator import DynamicBlockAllocator
from kilotron.scheduling.prefix_cache import chain_root, chain_value
from unit.scheduling.cache_mirror import CacheMirror

BLOCK_SIZE = 2
Path = tuple[str, tuple[int, ...]]


@dataclass(eq=False)
class Sequence:
    """What owns blocks."""

    salt: str
    tokens: list[int]
    block_ids: list[int]
    num_registered: int
    is_private: bool = False

    def path(self, num_blocks: int) -> Path:
        return self.salt, tuple(self.tokens[: num_blocks * BLOCK_SIZE])


@dataclass
class Model:
    """Says by scanning what the allocator should do."""

    num_blocks: int
    num_owners: dict[int, int] = field(default_factory=dict)
    cached: dict[int, Path] = field(default_factory=dict)
    released: dict[int, int] = field(default_factory=dict)
    clock: int = 0

    @property
    def owned(self) -> set[int]:
        return {block for block, count in self.num_owners.items() if count}

    @property
    def unowned(self) -> set[int]:
        return set(self.cached) - self.owned

    @property
    def free(self) -> set[int]:
        return set(range(1, self.num_blocks)) - self.owned - set(self.cached)

    def find(self, path: Path) -> int | None:
        return next((block for block, other in self.cached.items() if other == path), None)

    def is_leaf(self, block: int) -> bool:
        salt, tokens = self.cached[block]
        return not any(
            p[0] == salt and len(p[1]) > len(tokens) and is_inside(p, self.cached[block]) for p in self.cached.values()
        )

    def evict(self) -> int:
        leaves = [block for block in self.unowned if self.is_leaf(block)]
        oldest = min(self.released[block] for block in leaves)
        (block,) = (block for block in leaves if self.released[block] == oldest)
        del self.cached[block]
        return block

    def release(self, blocks: list[int]) -> None:
        self.clock += 1
        for block in blocks:
            self.num_owners[block] -= 1
            self.released[block] = self.clock

    def forget(self, blocks: list[int]) -> None:
        paths = [self.cached[block] for block in blocks if block in self.cached]
        self.cached = {b: p for b, p in self.cached.items() if not any(is_inside(p, start) for start in paths)}


def is_inside(path: Path, start: Path) -> bool:
    return path[0] == start[0] and path[1][: len(start[1])] == start[1]


class AllocatorWorld:
    """Drives both and asserts that they agree."""

    def __init__(self, allocator: DynamicBlockAllocator) -> None:
        self.allocator = allocator
        self.mirror = CacheMirror(allocator.cache)
        self.model = Model(allocator.num_blocks)
        self.sequences: list[Sequence] = []
        self.evicted: list[int] = []

    def start(self, salt: str, tokens: list[int]) -> Sequence | None:
        """A prompt comes: shares what is cached and takes blocks for the rest, or leaves if there are too few."""
        sequence = Sequence(salt, [], self._find(salt, tokens), 0)
        sequence.num_registered = len(sequence.block_ids)
        sequence.tokens = tokens[: len(sequence.block_ids) * BLOCK_SIZE]
        self._share(sequence.block_ids)
        self.sequences.append(sequence)
        if not self.extend(sequence, tokens[len(sequence.tokens) :]):
            self.finish(sequence)
            return None
        return sequence

    def extend(self, sequence: Sequence, tokens: list[int]) -> bool:
        """Computes more tokens; False when there are no blocks for them."""
        count = -(-(len(sequence.tokens) + len(tokens)) // BLOCK_SIZE) - len(sequence.block_ids)
        granted = self._allocate(max(count, 0))
        if granted is None:
            return False
        sequence.tokens = sequence.tokens + tokens
        sequence.block_ids = sequence.block_ids + granted
        self._register(sequence)
        return True

    def fork(self, sequence: Sequence) -> None:
        """Another sequence goes on from this one's registered blocks."""
        count = sequence.num_registered
        copy = Sequence(sequence.salt, sequence.tokens[: count * BLOCK_SIZE], sequence.block_ids[:count], count)
        self._share(copy.block_ids)
        self.sequences.append(copy)

    def finish(self, sequence: Sequence) -> None:
        self.sequences.remove(sequence)
        self.allocator.free(sequence.block_ids)
        self.model.release(sequence.block_ids)

    def discard(self, sequence: Sequence) -> None:
        """It went wrong: nobody may find what it computed, nor what was computed after that."""
        self.sequences.remove(sequence)
        self.model.forget(sequence.block_ids)
        self.allocator.discard(sequence.block_ids)
        self.model.release(sequence.block_ids)

    def clear_cache(self) -> None:
        """Nothing cached counts any more; who owns blocks keeps them."""
        self.model.cached = {}
        self.allocator.clear_cache()

    def check(self) -> None:
        self.mirror.check()
        model, allocator = self.model, self.allocator
        assert allocator.check_ledger([sequence.block_ids for sequence in self.sequences]) == []
        assert allocator.num_free == len(model.free), "free blocks differ"
        assert allocator.num_owned == len(model.owned), "owned blocks differ"
        assert set(allocator.used_block_ids()) == model.owned | set(model.cached)
        assert allocator.num_available == len(model.free) + len(model.unowned), "available blocks differ"
        cached = {block for block in range(allocator.num_blocks) if block in allocator.cache}
        assert cached == set(model.cached), f"cached: {sorted(cached)}, should be {sorted(model.cached)}"
        for salt, tokens in model.cached.values():
            self._find(salt, list(tokens))

    def tear_down(self) -> None:
        """Everybody leaves; all blocks can be granted again, each in its turn."""
        for sequence in list(self.sequences):
            self.finish(sequence)
        self.check()
        everything = self._allocate(self.model.num_blocks - 1)
        assert everything is not None, "blocks were lost"
        assert sorted(everything) == list(range(1, self.model.num_blocks))

    def _find(self, salt: str, tokens: list[int]) -> list[int]:
        found: list[int] = []
        parent = chain_root(salt)
        for end in range(BLOCK_SIZE, len(tokens) + 1, BLOCK_SIZE):
            block_tokens = tokens[end - BLOCK_SIZE : end]
            chain = chain_value(parent, block_tokens)
            block = self.allocator.cache.find(chain, parent, block_tokens)
            expected = self.model.find((salt, tuple(tokens[:end])))
            assert block == expected, f"found block {block} for {salt!r} {tokens[:end]}, should be {expected}"
            if block is None:
                break
            found.append(block)
            parent = chain
        return found

    def _share(self, blocks: list[int]) -> None:
        self.allocator.share(blocks)
        for block in blocks:
            self.model.num_owners[block] = self.model.num_owners.get(block, 0) + 1

    def _allocate(self, count: int) -> list[int] | None:
        model = self.model
        free, num_available = model.free, len(model.free) + len(model.unowned)
        granted = self.allocator.allocate(count)
        if granted is None:
            assert count > num_available, f"refused {count} blocks though {num_available} are available"
            return None
        assert count == len(granted) <= num_available
        from_free, evicted = granted[: len(free)], granted[len(free) :]
        expected = [model.evict() for _ in evicted]
        assert evicted == expected, f"evicted {evicted}, should be {expected}"
        assert len(set(from_free)) == len(from_free)
        assert set(from_free) <= free, f"granted {from_free} of which only {sorted(free)} are free"
        model.num_owners.update(dict.fromkeys(granted, 1))
        self.evicted += evicted
        return granted

    def _register(self, sequence: Sequence) -> None:
        """As the scheduler does: until its content turns out to be registered by another's block."""
        while (sequence.num_registered + 1) * BLOCK_SIZE <= len(sequence.tokens) and not sequence.is_private:
            index = sequence.num_registered
            if index and sequence.block_ids[index - 1] not in self.allocator.cache:
                sequence.is_private = True
                break
            path = sequence.path(index + 1)
            parent = self._chain(sequence, index)
            tokens = sequence.tokens[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE]
            is_new = self.allocator.cache.insert(sequence.block_ids[index], chain_value(parent, tokens), parent, tokens)
            assert is_new == (self.model.find(path) is None), f"{path} registered: {is_new}"
            if is_new:
                self.model.cached[sequence.block_ids[index]] = path
                sequence.num_registered += 1
            sequence.is_private = not is_new

    def _chain(self, sequence: Sequence, num_blocks: int) -> bytes:
        chain = chain_root(sequence.salt)
        for index in range(num_blocks):
            chain = chain_value(chain, sequence.tokens[index * BLOCK_SIZE : (index + 1) * BLOCK_SIZE])
        return chain
