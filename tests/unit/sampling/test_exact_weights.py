"""Tests of fixed-point weights: exact sums, the greatest logit, the inverse cumulative distribution."""

from collections.abc import Callable

import pytest
import torch

from kilotron.sampling.exact_weights import (
    draw,
    find_targets,
    max_by_blocks,
    max_of_rows,
    sum_weights,
    to_exponents,
    to_weights,
)

# The first is for the CPU, the other for all other devices.
Find = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
both_ways = pytest.mark.parametrize("find", [max_of_rows, max_by_blocks])


def random_logits(rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, tokens, generator=torch.Generator().manual_seed(seed)) * 4


@both_ways
@pytest.mark.parametrize("num_tokens", [1, 5, 63, 64, 65, 128, 1000])
def test_greatest_logit_is_found_with_its_lowest_id(num_tokens: int, find: Find) -> None:
    logits = random_logits(50, num_tokens).round()  # many equals

    best, ids = find(logits)

    assert best.tolist() == logits.amax(1).tolist()
    assert ids.tolist() == [row.index(max(row)) for row in logits.tolist()]


@both_ways
def test_greatest_logit_of_a_row_with_nan_is_nan(find: Find) -> None:
    logits = random_logits(3, 200)
    logits[1, 170] = torch.nan

    best, _ = find(logits)

    assert best.isnan().tolist() == [False, True, False]


@both_ways
def test_greatest_logit_works_on_columns_of_a_wider_matrix(find: Find) -> None:
    logits = random_logits(4, 200)

    assert find(logits[:, :130])[1].tolist() == logits[:, :130].clone().argmax(1).tolist()


def test_weights_are_probabilities_relative_to_the_greatest() -> None:
    logits = random_logits(2, 300)
    exponents = to_exponents(logits, logits.amax(1))

    expected = (logits.double() - logits.amax(1, keepdim=True).double()).exp()

    assert to_weights(exponents).double() / 2**44 == pytest.approx(expected, rel=1e-5, abs=2**-44)
    assert to_weights(exponents).amax(1).tolist() == [2**44, 2**44]


def test_a_weight_does_not_depend_on_its_place() -> None:
    # torch.exp2, for one, gives other bits to the last few values of a loop.
    exponents = -torch.rand(1, 4099, generator=torch.Generator().manual_seed(0)) * 25
    weights = to_weights(exponents)

    for start in range(40):
        for length in (1, 2, 3, 7, 8, 9, 15, 17, 31, 33, 150):
            end = start + length
            assert torch.equal(to_weights(exponents[:, start:end].clone()), weights[:, start:end])


@pytest.mark.parametrize("threads", [1, 2])
def test_total_of_a_long_row_is_the_same_for_any_order_and_number_of_threads(threads: int) -> None:
    logits = random_logits(1, 128_256)
    exponents = to_exponents(logits, logits.amax(1))
    expected = sum(to_weights(exponents)[0].tolist())

    torch.set_num_threads(threads)

    assert sum_weights(exponents).tolist() == [expected]
    assert sum_weights(exponents.flip(1)).tolist() == [expected]
    assert sum_weights(exponents.repeat(3, 1)).tolist() == [expected] * 3


def test_draw_walks_through_the_ids_in_order() -> None:
    exponents = torch.log(torch.tensor([[0.5, 0.25, 1.0, 0.25]])).repeat(8, 1)
    uniforms = torch.tensor([0.0, 0.2499, 0.2501, 0.3749, 0.3751, 0.8749, 0.8751, 1 - 2**-53], dtype=torch.float64)

    tokens = draw(exponents, torch.full((8,), -torch.inf), uniforms)

    assert tokens.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_dropped_tokens_are_not_drawn_by_the_least_and_the_greatest_uniform() -> None:
    exponents = torch.tensor([[-5.0, -5.0, 0.0, -5.0, -1.0, -5.0]]).repeat(2, 1)
    uniforms = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)

    assert draw(exponents, torch.full((2,), -2.0), uniforms).tolist() == [2, 4]


def test_the_greatest_uniform_stays_below_any_total() -> None:
    totals = torch.tensor([1, 2**44, *(2**power + delta for power in (53, 54, 61, 62) for delta in range(-9, 10))])
    uniforms = torch.full((len(totals),), 1 - 2**-53, dtype=torch.float64)

    assert (find_targets(totals, uniforms) < totals).all()


def test_draw_agrees_with_a_walk_in_whole_numbers() -> None:
    logits = random_logits(40, 700)
    exponents = to_exponents(logits, logits.amax(1))
    uniforms = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    thresholds = torch.linspace(-9, 0, 40)

    tokens = draw(exponents, thresholds, uniforms).tolist()

    for row, token in enumerate(tokens):
        kept = exponents[row] >= thresholds[row]
        cumulative = (to_weights(exponents[row]) * kept).cumsum(0)
        target = int(uniforms[row].item() * float(cumulative[-1]))
        assert token == int((cumulative > target).nonzero()[0])
        assert kept[token]
