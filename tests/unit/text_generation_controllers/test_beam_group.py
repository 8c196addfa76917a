"""BeamGroup on a toy language whose probabilities are a table, against searches written another way."""

import itertools
import math
import random
from collections.abc import Callable

import pytest

from kilotron.text_generation_controllers.beam_group import BeamGroup, BeamRules

NUM_TOKENS = 6
END = 5
Model = Callable[[tuple[int, ...]], list[float]]
Scored = list[tuple[tuple[int, ...], float]]


def make_model(seed: int) -> Model:
    """Log-probabilities of the token after a text, at random but fixed."""

    def log_probs(text: tuple[int, ...]) -> list[float]:
        rng = random.Random(f"{seed} {text}")
        weights = [math.exp(rng.gauss(0.0, 1.5)) for _ in range(NUM_TOKENS)]
        return [math.log(weight / sum(weights)) for weight in weights]

    return log_probs


def make_rules(**changes: object) -> BeamRules:
    fields: dict[str, object] = {
        "width": 4,
        "num_groups": 1,
        "max_length": 5,
        "end_ids": frozenset({END}),
        "length_penalty": 1.0,
        "early_stopping": False,
        "diversity_penalty": 0.0,
    }
    return BeamRules(**fields | changes)  # type: ignore[arg-type]


def search(model: Model, rules: BeamRules, *, seed: int = 0) -> tuple[Scored, int]:
    """Plays scheduler to a group, beams in any order; returns what it found and how many moves stayed in place."""
    group, beams, num_in_place = BeamGroup(rules), {0: ()}, 0
    count = max(2, 1 + len(rules.end_ids)) * rules.width
    rng = random.Random(seed)
    while beams:
        moves = None
        for beam in rng.sample(sorted(beams), len(beams)):
            assert moves is None, "it went on before all beams were there"
            ranked = sorted(enumerate(model(beams[beam])), key=lambda pair: (-pair[1], pair[0]))
            moves = group.put_candidates(beam, ranked[:count])
        assert moves is not None, "it did not go on though all beams were there"
        num_in_place += sum(move.beam == move.parent for move in moves)
        beams = {move.beam: (*beams[move.parent], move.token_id) for move in moves}
        assert len(beams) == len(moves)
        assert rules.num_groups > 1 or len(moves) == len(set(beams.values()))
    return [(tuple(each.sequence.token_ids), each.score) for each in group.finished], num_in_place


def diverse_search(model: Model, rules: BeamRules) -> Scored:
    """The paper's algorithm (Vijayakumar et al. 2016), plainly: in each round group after group, from all tokens."""
    size = rules.width // rules.num_groups
    live: list[list[tuple[float, tuple[int, ...]]]] = [[(0.0, ())] for _ in range(rules.num_groups)]
    ended: list[Scored] = [[] for _ in range(rules.num_groups)]
    for length in range(1, rules.max_length + 1):
        earlier: list[int] = []
        for index in range(rules.num_groups):
            options = [
                (total + log_prob - rules.diversity_penalty * earlier.count(token), total + log_prob, (*text, token))
                for total, text in live[index]
                for token, log_prob in enumerate(model(text))
            ]
            options.sort(key=lambda option: -option[0])
            is_end = [text[-1] == END or length == rules.max_length for _, _, text in options]
            for (_, total, text), ends in list(zip(options, is_end, strict=True))[:size]:
                if ends:
                    ended[index].append((text, total / length**rules.length_penalty))
            ended[index] = sorted(ended[index], key=lambda pair: -pair[1])[:size]
            going = [option for option, ends in zip(options, is_end, strict=True) if not ends][:size]
            live[index] = [(total, text) for _, total, text in going]
            best = max((total for total, _ in live[index]), default=-math.inf) / length**rules.length_penalty
            if len(ended[index]) == size and best <= ended[index][-1][1]:
                live[index] = []
            earlier += [text[-1] for _, text in live[index]]
    return sorted((pair for group in ended for pair in group), key=lambda pair: -pair[1])


def assert_same(found: Scored, expected: Scored) -> None:
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected])


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 2.0])
def test_beams_that_hold_everything_find_the_best_text(length_penalty: float) -> None:
    rules = make_rules(width=64, max_length=3, length_penalty=length_penalty, early_stopping="never")
    for seed in range(5):
        model = make_model(seed)
        texts = [
            text
            for length in (1, 2, 3)
            for text in itertools.product(range(NUM_TOKENS), repeat=length)
            if END not in text[:-1] and (text[-1] == END or length == 3)
        ]
        totals = {text: sum(model(text[:i])[text[i]] for i in range(len(text))) for text in texts}
        best = max(texts, key=lambda text: totals[text] / len(text) ** length_penalty)
        found, _ = search(model, rules)
        assert found[0][0] == best
        assert found[0][1] == pytest.approx(totals[best] / len(best) ** length_penalty)


@pytest.mark.parametrize(("width", "num_groups"), [(4, 1), (4, 2), (6, 3), (4, 4)])
@pytest.mark.parametrize("penalty", [0.0, 0.5, 3.0])
def test_diverse_groups_are_those_of_the_paper(width: int, num_groups: int, penalty: float) -> None:
    rules = make_rules(width=width, num_groups=num_groups, diversity_penalty=penalty, max_length=7)
    for seed in range(20):
        model = make_model(seed)
        assert_same(search(model, rules, seed=seed)[0], diverse_search(model, rules))


def test_a_strong_penalty_makes_groups_begin_with_different_tokens() -> None:
    rules = make_rules(width=4, num_groups=4, diversity_penalty=100.0, end_ids=frozenset())
    found, _ = search(make_model(1), rules)
    assert len({text[0] for text, _ in found}) == 4


def test_most_beams_stay_in_their_place() -> None:
    rules = make_rules(width=4, max_length=30, end_ids=frozenset())
    _, num_in_place = search(make_model(0), rules)
    assert num_in_place > 29


def test_it_ends_early_only_when_told() -> None:
    found = {stop: search(make_model(3), make_rules(max_length=12, early_stopping=stop))[0] for stop in (True, "never")}
    assert found["never"][0][1] >= found[True][0][1]
    assert max(len(text) for text, _ in found["never"]) >= max(len(text) for text, _ in found[True])


def test_beams_without_candidates_die_and_the_search_goes_on() -> None:
    group = BeamGroup(make_rules(width=2, max_length=3))
    assert len(group.put_candidates(0, [(1, -1.0), (2, -2.0)]) or ()) == 2
    assert group.put_candidates(1, []) is None
    moves = group.put_candidates(0, [(3, -1.0)])
    assert [(move.parent, move.token_id) for move in moves or ()] == [(0, 3)]
    assert group.put_candidates(0, []) == []
    assert group.finished == []
