"""How the beams of one request share KV blocks: at a fork, and when they are computed again. Copies no block.

Which beam continues which is decided elsewhere (`text_generation_controllers/beam_group.py`) and comes as `BeamMove`s.
"""

from collections.abc import Sequence
from typing import NamedTuple

from kilotron.scheduling.block_allocator import DynamicBlockAllocator
from kilotron.scheduling.scheduled_request import BeamPlace, ScheduledRequest
from kilotron.scheduling.step_plan import BeamMove


def add_beams(first: ScheduledRequest, width: int) -> None:
    """Gives a new request its other beams, which have no tokens before the first fork."""
    beams = [first]
    first.place = BeamPlace(beams, 0)
    for index in range(1, width):
        beam = ScheduledRequest(
            first.request,
            salt="",
            arrival_order=first.arrival_order,
            queued_step=first.queued_step,
            cross=first.cross,
        )
        beam.token_ids = []
        beam.num_prompt_left = 0
        beam.scores_prompt = False
        beam.place = BeamPlace(beams, index)
        beams.append(beam)


class _Inheritance(NamedTuple):
    """What a beam takes over from its parent."""

    token_ids: list[int]
    block_ids: list[int]
    chains: list[bytes]
    num_computed: int
    num_registered: int
    is_private: bool
    is_parked: bool


def fork(
    beams: Sequence[ScheduledRequest], moves: Sequence[BeamMove], allocator: DynamicBlockAllocator, block_size: int
) -> None:
    """Lets each beam continue its parent; one without a move ends.

    All children of a beam share its full blocks. One of them, the beam itself if it is among them, takes over the last,
    partly filled one; the others compute those few tokens again, with the same bits. Where a beam is still being
    computed again after it was stopped, that one goes on with it, and the others are parked.
    """
    heirs = {move.parent: move.beam for move in moves if move.beam == move.parent}
    for move in moves:
        heirs.setdefault(move.parent, move.beam)
    inherited = {
        move.beam: _inherit(beams[move.parent], move, block_size, takes_all=heirs[move.parent] == move.beam)
        for move in moves
    }
    dropped: list[int] = []
    for index, beam in enumerate(beams):
        taken = inherited.get(index)
        block_ids = [] if taken is None else taken.block_ids
        num_kept = _num_equal(beam.block_ids, block_ids)
        allocator.share(block_ids[num_kept:])
        dropped += beam.block_ids[num_kept:]
    allocator.free(dropped)
    for index, beam in enumerate(beams):
        _settle(beam, inherited.get(index))


def find_source(beam: ScheduledRequest, cached: list[int], block_size: int) -> list[int] | None:
    """Blocks from which a parked beam can start: those found in the cache, or more that another beam has.

    None while another beam is computing some that both need, so that nothing is computed, or kept, twice.
    """
    best = cached
    usable = (len(beam.token_ids) - 1) // block_size
    for other in beam.family:
        if other is beam or other.is_parked or not other.token_ids:
            continue
        num_common = _num_common(beam, other, usable, block_size)
        if num_common > len(best):
            if other.num_computed // block_size < num_common:
                return None
            best = other.block_ids[:num_common]
    return best


def start_parked(
    beam: ScheduledRequest, block_ids: list[int], allocator: DynamicBlockAllocator, block_size: int
) -> None:
    """The beam begins where these blocks end."""
    allocator.share(block_ids)
    beam.block_ids = block_ids.copy()
    beam.num_computed = len(block_ids) * block_size
    beam.num_registered = 0
    while beam.num_registered < len(block_ids) and block_ids[beam.num_registered] in allocator.cache:
        beam.num_registered += 1
    beam.is_private = beam.num_registered < len(block_ids)
    place = _place_of(beam)
    place.is_parked, place.is_moved = False, True


def _inherit(parent: ScheduledRequest, move: BeamMove, block_size: int, *, takes_all: bool) -> _Inheritance:
    tokens, chains = [*parent.token_ids, move.token_id], parent.chains.copy()
    if parent.num_wanted and not takes_all:
        return _Inheritance(tokens, [], chains, 0, 0, is_private=False, is_parked=True)
    num_full = parent.num_computed // block_size
    return _Inheritance(
        tokens,
        parent.block_ids.copy() if takes_all else parent.block_ids[:num_full],
        chains,
        parent.num_computed if takes_all else num_full * block_size,
        parent.num_registered,
        parent.is_private,
        parent.is_parked,
    )


def _settle(beam: ScheduledRequest, taken: _Inheritance | None) -> None:
    place = _place_of(beam)
    beam.found = None
    place.is_moved = taken is not None
    place.is_parked = taken is not None and taken.is_parked
    if taken is None:
        beam.token_ids, beam.block_ids, beam.num_computed, beam.num_registered = [], [], 0, 0
        return
    beam.token_ids, beam.block_ids, beam.chains = taken.token_ids, taken.block_ids, taken.chains
    beam.num_computed, beam.num_registered, beam.is_private = taken.num_computed, taken.num_registered, taken.is_private


def _place_of(beam: ScheduledRequest) -> BeamPlace:
    if beam.place is None:
        raise RuntimeError(f"request {beam.request.request_id} has no beams")
    return beam.place


def _num_equal(before: list[int], after: list[int]) -> int:
    """Leading blocks that two lists have in common."""
    if before == after:
        return len(before)
    pairs = enumerate(zip(before, after, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(before), len(after)))


def _num_common(one: ScheduledRequest, other: ScheduledRequest, most: int, block_size: int) -> int:
    """Leading full blocks, `most` at most, that hold the same tokens."""
    most = min(most, len(other.token_ids) // block_size)
    for index in range(1, most + 1):
        if one.chain(index, block_size) != other.chain(index, block_size):
            return index - 1
    return max(most, 0)
