"""Router: which replica gets a request, by cached prefixes and load, within each replica's credits.

Pure: it is told what replicas exist, what they cache and what they were given. Knows nothing of messages or clocks.
"""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from kilotron.coordinator.wire import AllBlocksCleared, BlockEvent, BlockStored, EngineFacts

Policy: TypeAlias = Literal["longest_prefix", "least_load", "round_robin"]


@dataclass(slots=True)
class ReplicaShare:
    """One replica's part of the work."""

    num_blocks: int
    block_size: int
    max_requests: int
    num_sequences: int = 0
    """Credits in use."""
    num_tokens: int = 0
    """Outstanding: prompt tokens still to be computed and output expected, of all that it was given."""
    last_used: int = 0
    is_open: bool = True
    """Whether it gets new work."""
    blocks: dict[bytes, None] = field(default_factory=dict)
    """Chain values of what its prefix cache holds, oldest first."""

    @property
    def num_credits(self) -> int:
        """Sequences that may be at the replica: a full batch, and as many that wait so that no step starts short."""
        return 2 * self.max_requests

    @property
    def load(self) -> float:
        """In [0, 1]: of its batch or of its KV cache, whichever is fuller."""
        by_tokens = self.num_tokens / (self.num_blocks * self.block_size)
        return min(1.0, max(by_tokens, self.num_sequences / self.max_requests))


class Router:
    """Chooses among replicas; equal ones take turns.

    Args:
        policy: longest_prefix scores `alpha * matched share of the prompt + (1 - alpha) * free share`; least_load takes
            the fewest outstanding tokens; round_robin takes the one used longest ago.
        alpha: in [0, 1].
    """

    def __init__(self, policy: Policy, alpha: float) -> None:
        self._policy = policy
        self._alpha = alpha
        self._shares: dict[str, ReplicaShare] = {}
        self._uses = itertools.count(1)

    def add(self, replica: str, facts: EngineFacts) -> None:
        """A replica has joined, and caches nothing."""
        self._shares[replica] = ReplicaShare(facts.num_blocks, facts.block_size, facts.max_requests)

    def remove(self, replica: str) -> None:
        """A replica is gone, and with it all that it cached. Idempotent."""
        self._shares.pop(replica, None)

    def set_open(self, replica: str, *, is_open: bool) -> None:
        """Whether it may get new work; a replica that is not known stays so."""
        if replica in self._shares:
            self._shares[replica].is_open = is_open

    def share_of(self, replica: str) -> ReplicaShare | None:
        """What a replica was given; for reading."""
        return self._shares.get(replica)

    @property
    def num_cached_tokens_possible(self) -> int:
        """Tokens that the KV caches of all replicas hold."""
        return sum(share.num_blocks * share.block_size for share in self._shares.values())

    def has_room(self, num_sequences: int) -> bool:
        """Whether any replica has credit for a request that runs so many sequences."""
        return any(share.is_open and _fits(share, num_sequences) for share in self._shares.values())

    def choose(
        self, num_sequences: int, num_prompt_tokens: int, block_hashes: Sequence[bytes], without: Collection[str] = ()
    ) -> str | None:
        """The replica for a request, or None when none has credit for it.

        Args:
            num_sequences: its continuations, each with its beams. More than all credits of a replica fit once nothing
                else is there.
            num_prompt_tokens: length of its prompt.
            block_hashes: chain values of the prompt's full blocks.
            without: replicas that must not get it.
        """
        best, best_key = None, (0.0, 0)
        for replica, share in self._shares.items():
            if not share.is_open or replica in without or not _fits(share, num_sequences):
                continue
            key = (self._badness(share, num_prompt_tokens, block_hashes), share.last_used)
            if best is None or key < best_key:
                best, best_key = replica, key
        return best

    def take(self, replica: str, num_sequences: int, num_tokens: int) -> None:
        """A replica was given a request."""
        share = self._shares[replica]
        share.num_sequences += min(num_sequences, share.num_credits)
        share.num_tokens += num_tokens
        share.last_used = next(self._uses)

    def progress(self, replica: str, num_tokens: int) -> None:
        """So many of its outstanding tokens are done."""
        self._shares[replica].num_tokens -= num_tokens

    def give_back(self, replica: str, num_sequences: int, num_tokens: int) -> None:
        """A request left the replica, with so many tokens still outstanding."""
        share = self._shares.get(replica)
        if share is not None:
            share.num_sequences -= min(num_sequences, share.num_credits)
            share.num_tokens -= num_tokens

    def take_block_events(self, replica: str, events: Sequence[BlockEvent]) -> None:
        """Keeps the map of cached prefixes; never more entries than the replica has blocks."""
        share = self._shares.get(replica)
        if share is None:
            return
        blocks = share.blocks
        for event in events:
            if isinstance(event, AllBlocksCleared):
                blocks.clear()
            elif isinstance(event, BlockStored):
                blocks.update(dict.fromkeys(event.block_hashes))
                while len(blocks) > share.num_blocks:
                    del blocks[next(iter(blocks))]
            else:
                for block_hash in event.block_hashes:
                    blocks.pop(block_hash, None)

    def num_matched_blocks(self, replica: str, block_hashes: Sequence[bytes]) -> int:
        """The longest run of leading blocks that a replica has cached; a chain value stands for all before it too."""
        return _num_leading(self._shares[replica].blocks, block_hashes)

    def _badness(self, share: ReplicaShare, num_prompt_tokens: int, block_hashes: Sequence[bytes]) -> float:
        if self._policy == "round_robin":
            return 0.0
        if self._policy == "least_load":
            return float(share.num_tokens)
        matched = _num_leading(share.blocks, block_hashes) * share.block_size / max(num_prompt_tokens, 1)
        return -(self._alpha * min(matched, 1.0) + (1.0 - self._alpha) * (1.0 - share.load))


def _fits(share: ReplicaShare, num_sequences: int) -> bool:
    return share.num_sequences + min(num_sequences, share.num_credits) <= share.num_credits


def _num_leading(blocks: Collection[bytes], block_hashes: Sequence[bytes]) -> int:
    for index, block_hash in enumerate(block_hashes):
        if block_hash not in blocks:
            return index
    return len(block_hashes)
