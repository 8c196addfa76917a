"""Tests of the uniform numbers: fixed for ever, uniform, and independent across positions, seeds and choices."""

import numpy as np

from kilotron.sampling.random_uniform import derive_seed, uniform, uniforms

MASK = 2**64 - 1
COUNT = 20_000


def splitmix64(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def distance_from_uniform(numbers: np.ndarray) -> float:
    """Kolmogorov-Smirnov statistic times the square root of the count; above 1.95 in one of a thousand samples."""
    ordered, count = np.sort(numbers), len(numbers)
    above = np.arange(1, count + 1) / count - ordered
    below = ordered - np.arange(count) / count
    return max(above.max(), below.max()) * count**0.5


def test_oracle_gives_the_published_first_output_of_splitmix64() -> None:
    assert splitmix64(0) == 0xE220A8397B1DCDAF


def test_uniform_is_splitmix64_entered_at_the_position() -> None:
    for seed in (0, 1, 2**63, MASK):
        start = splitmix64(seed)
        for position in (0, 1, 5000, 2**40):
            expected = splitmix64((start + position * 0x9E3779B97F4A7C15) & MASK) >> 11
            assert uniform(seed, position) == expected / 2**53


def test_array_form_agrees_with_single_numbers() -> None:
    seeds, positions = np.array([3, 3, 7], dtype=np.uint64), np.array([0, 9, 9])

    assert uniforms(seeds, positions).tolist() == [uniform(3, 0), uniform(3, 9), uniform(7, 9)]


def test_negative_seed_counts_modulo_two_to_the_64() -> None:
    assert uniform(-1, 4) == uniform(MASK, 4)


def test_numbers_over_positions_are_uniform_and_uncorrelated() -> None:
    for seed in (0, 1, 42, MASK):
        numbers = uniforms(np.full(COUNT, seed, dtype=np.uint64), np.arange(COUNT))
        assert distance_from_uniform(numbers) < 1.95
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / COUNT**0.5


def test_numbers_over_seeds_are_uniform_and_uncorrelated() -> None:
    for position in (0, 1, 1000):
        numbers = uniforms(np.arange(COUNT, dtype=np.uint64), np.full(COUNT, position))
        assert distance_from_uniform(numbers) < 1.95
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / COUNT**0.5


def test_numbers_of_neighbouring_positions_fill_the_square_evenly() -> None:
    numbers = uniforms(np.full(COUNT, 5, dtype=np.uint64), np.arange(COUNT))

    counts, *_ = np.histogram2d(numbers[0::2], numbers[1::2], bins=10, range=[[0, 1], [0, 1]])

    expected = COUNT / 2 / 100
    assert ((counts - expected) ** 2 / expected).sum() < 160  # chi-square, 99 degrees: one in ten thousand


def test_first_choice_keeps_the_seed_and_the_others_differ() -> None:
    derived = [derive_seed(12, index) for index in range(1000)]

    assert derived[0] == 12
    assert len(set(derived)) == 1000


def test_choices_draw_independent_numbers() -> None:
    seeds = np.array([derive_seed(12, index) for index in range(COUNT)], dtype=np.uint64)
    numbers = uniforms(seeds, np.zeros(COUNT, dtype=np.int64))

    assert distance_from_uniform(numbers) < 1.95
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / COUNT**0.5
