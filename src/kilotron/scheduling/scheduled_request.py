"""ScheduledRequest: what the scheduler knows of one request, or of one beam of it, waiting or running."""

from collections.abc import Sequence
from typing import NamedTuple

from kilotron.inference_request import InferenceRequest
from kilotron.scheduling.cross_blocks import CrossBlocks
from kilotron.scheduling.prefix_cache import chain_root, chain_value


class FoundPrefix(NamedTuple):
    """Cached blocks that hold a request's first tokens; still right while the last one's registration is the same."""

    block_ids: list[int]
    registration: int | None


class QueuePlace:
    """What decides when a waiting request's turn comes."""

    __slots__ = ("arrival_order", "num_bypassed", "queued_step")

    def __init__(self, arrival_order: int, queued_step: int) -> None:
        self.arrival_order = arrival_order
        self.queued_step = queued_step
        self.num_bypassed = 0
        """Requests admitted around this one because it did not fit."""


class BeamPlace:
    """A beam's place among its request's."""

    __slots__ = ("beams", "index", "is_moved", "is_parked")

    def __init__(self, beams: "list[ScheduledRequest]", index: int) -> None:
        self.beams = beams
        """All of them, this one too; they run and wait together."""
        self.index = index
        self.is_parked = False
        """Whether it has a slot but has to wait for another beam that computes what they have in common."""
        self.is_moved = False
        """Whether its tokens or blocks are others than those that its slot's tables hold."""


class ScheduledRequest(QueuePlace):
    """A request with its tokens, its blocks and how far it is computed."""

    __slots__ = (
        "block_ids",
        "chains",
        "cross",
        "found",
        "is_private",
        "num_computed",
        "num_prompt_left",
        "num_registered",
        "num_scored",
        "place",
        "request",
        "scores_prompt",
        "slot",
        "token_ids",
    )

    def __init__(
        self,
        request: InferenceRequest,
        *,
        salt: str,
        arrival_order: int,
        queued_step: int,
        cross: CrossBlocks | None = None,
    ) -> None:
        super().__init__(arrival_order, queued_step)
        self.request = request
        self.token_ids = list(request.prompt_tokens)
        self.num_prompt_left = len(self.token_ids)
        """Prompt tokens that were never computed or found cached, not even before a preemption."""
        self.num_computed = 0
        self.block_ids: list[int] = []
        self.slot: int | None = None
        self.chains = [chain_root(salt) if cross is None else cross.decoder_root]
        """chains[i + 1] identifies block i; chains[0] is the root."""
        self.cross = cross
        """Of its encoder input, if it has one; the same for all its beams."""
        self.num_registered = 0
        """Leading blocks that the prefix cache knows as this request's own."""
        self.is_private = False
        """Whether it found its content registered by another's block, or its own one dropped, so that its later blocks
        must stay private: a cached block's owners own all its ancestors."""
        self.found: FoundPrefix | None = None
        """Cached blocks found when last looked for."""
        self.scores_prompt = request.sampling_params.wants_prompt_log_probs
        """Whether it gives log-probabilities of the prompt; the first of a request's beams does it for all."""
        self.num_scored = 0
        """Prompt positions whose log-probabilities were returned."""
        self.place: BeamPlace | None = None
        """Of a beam, among the others of its request. A beam without tokens has not begun, or has ended."""

    @property
    def importance(self) -> tuple[int, int]:
        """Sort key; smaller is more important."""
        return (self.request.sampling_params.priority, self.arrival_order)

    @property
    def family(self) -> "Sequence[ScheduledRequest]":
        """All that run and wait together: its request's beams, or itself."""
        return (self,) if self.place is None else self.place.beams

    @property
    def first(self) -> "ScheduledRequest":
        """The first of the family that has tokens, which starts when the family does."""
        return next(item for item in self.family if item.token_ids)

    @property
    def is_parked(self) -> bool:
        """Whether it is a beam that must not compute yet; see `BeamPlace`."""
        return self.place is not None and self.place.is_parked

    @property
    def num_wanted(self) -> int:
        """Tokens known but not computed."""
        return len(self.token_ids) - self.num_computed

    def chain(self, num_blocks: int, block_size: int) -> bytes:
        """The chain value after the first `num_blocks` full blocks."""
        while len(self.chains) <= num_blocks:
            index = len(self.chains) - 1
            tokens = self.token_ids[index * block_size : (index + 1) * block_size]
            self.chains.append(chain_value(self.chains[-1], tokens))
        return self.chains[num_blocks]

    def rewind(self) -> list[int]:
        """Forgets all computation; returns the blocks it owned."""
        block_ids, self.block_ids = self.block_ids, []
        if self.cross is not None:
            block_ids = block_ids + self.cross.rewind()
        self.num_computed = 0
        self.num_registered = 0
        self.is_private = False
        self.slot = None
        if self.place is not None:
            self.place.is_parked = self.place.is_moved = False
        return block_ids
