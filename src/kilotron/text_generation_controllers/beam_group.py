"""BeamGroup: which sequences a beam search keeps, which are finished, and when it ends. Pure: ids and numbers.

Decides as transformers' `_beam_search` does; diverse groups after Vijayakumar et al. 2016, where a group's tokens cost
what earlier groups took at the same place (Hamming diversity), in choosing only: scores stay sums of log-probabilities.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Literal, NamedTuple

from kilotron.inference_request import InferenceRequest
from kilotron.scheduling.step_plan import BeamMove

Candidates = list[tuple[int, float]]


class BeamRules(NamedTuple):
    """What a search is asked for."""

    width: int
    num_groups: int
    max_length: int
    """Most tokens of a sequence."""
    end_ids: frozenset[int]
    length_penalty: float
    early_stopping: bool | Literal["never"]
    diversity_penalty: float

    @classmethod
    def of(cls, request: InferenceRequest) -> "BeamRules":
        """Those of a request."""
        params = request.sampling_params
        return cls(
            params.beam_width,
            params.num_beam_groups,
            request.max_generated,
            request.end_ids,
            params.length_penalty,
            params.early_stopping,
            params.diversity_penalty,
        )

    def score(self, total: float, length: int) -> float:
        """What sequences are compared by: a sum of log-probabilities over the length to the power of the penalty."""
        return float(total / length**self.length_penalty)


class Sequence(NamedTuple):
    """A sequence of generated tokens."""

    token_ids: list[int]
    log_probs: list[float]
    total: float
    """Sum of the log-probabilities."""
    beam: int
    """The beam that computes it, if it goes on."""


class FinishedSequence(NamedTuple):
    """A sequence with its end."""

    sequence: Sequence
    score: float


class BeamGroup:
    """One request's search. Every live beam brings its candidates; when the last one has, all are advanced."""

    def __init__(self, rules: BeamRules) -> None:
        self._rules = rules
        size = rules.width // rules.num_groups
        self._groups = [_DiverseGroup(rules, index * size, size) for index in range(rules.num_groups)]
        self._arrived: dict[int, Candidates] = {}

    @property
    def finished(self) -> list[FinishedSequence]:
        """Finished sequences, best first."""
        found = [each for group in self._groups for each in group.finished]
        return sorted(found, key=lambda each: -each.score)

    @property
    def unfinished(self) -> list[FinishedSequence]:
        """Live sequences as if they ended here, best first."""
        live = [each for group in self._groups for each in group.live if each.token_ids]
        found = [FinishedSequence(each, self._rules.score(each.total, len(each.token_ids))) for each in live]
        return sorted(found, key=lambda each: -each.score)

    def put_candidates(self, beam: int, candidates: Candidates) -> list[BeamMove] | None:
        """A live beam's most likely next tokens; from the last beam to bring them: how all go on.

        Returns:
            None while other beams' candidates are missing. Else the moves of those that live on; none: it is over.
        """
        self._arrived[beam] = candidates
        if len(self._arrived) < len({each.beam for group in self._groups for each in group.live}):
            return None
        arrived, self._arrived = self._arrived, {}
        taken: Counter[int] = Counter()
        moves = []
        for group in self._groups:
            ahead = group.advance(arrived, taken)
            taken.update(move.token_id for move in ahead)
            moves += ahead
        return moves


class _Continuation(NamedTuple):
    """A candidate among those of all beams. Sorts with the best first, of equals that of the better beam."""

    negated_rank: float
    place: int
    """Of its sequence among the live ones."""
    token_id: int
    log_prob: float


class _DiverseGroup:
    """The beams `first` to `first + size - 1`. All groups start from beam 0."""

    def __init__(self, rules: BeamRules, first: int, size: int) -> None:
        self._rules = rules
        self._beams = range(first, first + size)
        self.live = [Sequence([], [], 0.0, 0)]
        """Best first."""
        self.finished: list[FinishedSequence] = []
        """The best so far, best first; as many as beams at most."""

    def advance(self, arrived: Mapping[int, Candidates], taken: Counter[int]) -> list[BeamMove]:
        """Takes one more token; returns the moves of the sequences that live on. `taken`: by earlier groups."""
        rules = self._rules
        num_kept = max(2, 1 + len(rules.end_ids)) * len(self._beams)
        continuations: list[_Continuation] = []
        for place, continuation in enumerate(self._rank(arrived, taken)[:num_kept]):
            if not self._is_end(continuation):
                if len(continuations) < len(self._beams):
                    continuations.append(continuation)
            elif place < len(self._beams):
                self._finish(continuation)
        moves = list(zip(continuations, self._place(continuations), strict=True))
        before, self.live = self.live, [self._extend(each, beam) for each, beam in moves]
        if self._is_done():
            self.live = []
            return []
        return [BeamMove(beam, before[each.place].beam, each.token_id) for each, beam in moves]

    def _rank(self, arrived: Mapping[int, Candidates], taken: Counter[int]) -> list[_Continuation]:
        penalty = self._rules.diversity_penalty
        return sorted(
            _Continuation(penalty * taken[token_id] - (sequence.total + log_prob), place, token_id, log_prob)
            for place, sequence in enumerate(self.live)
            for token_id, log_prob in arrived[sequence.beam]
        )

    def _is_end(self, continuation: _Continuation) -> bool:
        length = len(self.live[continuation.place].token_ids) + 1
        return continuation.token_id in self._rules.end_ids or length >= self._rules.max_length

    def _extend(self, continuation: _Continuation, beam: int) -> Sequence:
        parent, log_prob = self.live[continuation.place], continuation.log_prob
        return Sequence(
            [*parent.token_ids, continuation.token_id], [*parent.log_probs, log_prob], parent.total + log_prob, beam
        )

    def _finish(self, continuation: _Continuation) -> None:
        ended = self._extend(continuation, 0)
        self.finished.append(FinishedSequence(ended, self._rules.score(ended.total, len(ended.token_ids))))
        self.finished.sort(key=lambda each: -each.score)
        del self.finished[len(self._beams) :]

    def _place(self, continuations: list[_Continuation]) -> list[int]:
        """Which beam computes each continuation: its parent's own if that is free, so that little has to move."""
        free = list(self._beams)
        places: list[int | None] = []
        for continuation in continuations:
            parent = self.live[continuation.place].beam
            places.append(parent if parent in free else None)
            if parent in free:
                free.remove(parent)
        return [free.pop(0) if beam is None else beam for beam in places]

    def _is_done(self) -> bool:
        """Whether nothing can live on, or nothing that does is expected to become better than what is finished."""
        rules = self._rules
        if not self.live:
            return True
        if len(self.finished) < len(self._beams):
            return False
        if rules.early_stopping is True:
            return True
        length = len(self.live[0].token_ids)
        if rules.early_stopping == "never" and rules.length_penalty > 0.0:
            length = rules.max_length
        best = max(sequence.total for sequence in self.live)
        return rules.score(best, length) <= self.finished[-1].score
