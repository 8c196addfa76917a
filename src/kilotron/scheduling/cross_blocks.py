"""CrossBlocks: one request's encoder input, and the blocks that hold what its decoder sees of that.

An encoder's token depends on all others, so that all blocks of an input hang on a root made of the whole of it. Equal
inputs share blocks, the last one too, which may not be full. Pure: integers and lists.
"""

import hashlib
from array import array
from collections.abc import Sequence

from kilotron.scheduling.prefix_cache import PrefixCache, chain_root, chain_value


def encoder_root(salt: str, encoder_tokens: Sequence[int]) -> bytes:
    """The chain value in front of the first block of an encoder input. No request's own first block ever has it."""
    tokens = array("q", encoder_tokens).tobytes()
    return hashlib.sha256(b"kilotron/encoder/1:" + chain_root(salt) + tokens).digest()


class CrossBlocks:
    """Blocks of one request's encoder input, and whether they are computed."""

    __slots__ = ("block_ids", "chains", "is_computed", "num_cached", "parts", "token_ids")

    def __init__(self, salt: str, token_ids: list[int], block_size: int) -> None:
        self.token_ids = token_ids
        self.parts = [token_ids[first : first + block_size] for first in range(0, len(token_ids), block_size)]
        """The tokens of each block."""
        self.chains = [encoder_root(salt, token_ids)]
        """chains[i + 1] identifies block i; chains[0] is the root."""
        for part in self.parts:
            self.chains.append(chain_value(self.chains[-1], part))
        self.block_ids: list[int] = []
        self.num_cached = 0
        """Leading blocks that were found in the cache when the request was last admitted."""
        self.is_computed = False

    @property
    def decoder_root(self) -> bytes:
        """The chain value in front of the decoder's first block: what it computes depends on the encoder's input."""
        return hashlib.sha256(b"kilotron/decoder/1:" + self.chains[0]).digest()

    @property
    def num_to_compute(self) -> int:
        """Tokens that the encoder has to run on: all or none."""
        return 0 if self.is_computed else len(self.token_ids)

    def find(self, cache: PrefixCache) -> list[int]:
        """The leading blocks that are cached."""
        found = []
        for index, part in enumerate(self.parts):
            block_id = cache.find(self.chains[index + 1], self.chains[index], part)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def start(self, cached: list[int]) -> None:
        """Begins with blocks that were found."""
        self.block_ids = cached
        self.num_cached = len(cached)
        self.is_computed = len(cached) == len(self.parts)

    def register(self, cache: PrefixCache) -> None:
        """The step that computed the blocks is over: others can find them."""
        self.is_computed = True
        for index in range(self.num_cached, len(self.parts)):
            is_continued = index == 0 or self.block_ids[index - 1] in cache
            chain, parent = self.chains[index + 1], self.chains[index]
            if not is_continued or not cache.insert(self.block_ids[index], chain, parent, self.parts[index]):
                return

    def rewind(self) -> list[int]:
        """Forgets all computation; returns the blocks."""
        block_ids, self.block_ids = self.block_ids, []
        self.num_cached = 0
        self.is_computed = False
        return block_ids
