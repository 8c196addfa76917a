"""One uniform number per (seed, position), without a state: the same pair gives the same number for ever.

The hash is the output function of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators",
OOPSLA 2014; constants as in Vigna's public-domain splitmix64.c). The seed is hashed to a start, and the position
counts steps of the generator from there, so a row's numbers are one SplitMix64 stream that can be entered anywhere.
"""

import numpy as np

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_STEP = np.uint64(0x9E37_79B9_7F4A_7C15)
_FACTORS = (np.uint64(0xBF58_476D_1CE4_E5B9), np.uint64(0x94D0_49BB_1331_11EB))
# Keeps derived seeds off the path that positions walk.
_CHOICE_STEP = np.uint64(0xD134_2543_DE82_EF95)


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) of one row; a seed counts modulo 2**64."""
    return float(uniforms(np.array([seed & _MASK], dtype=np.uint64), np.array([position]))[0])


def uniforms(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """[R] uint64 seeds, [R] integer positions -> [R] float64 in [0, 1), multiples of 2**-53."""
    hashed = _mix(_mix(seeds + _STEP) + (positions.astype(np.uint64) + np.uint64(1)) * _STEP)
    return (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def derive_seed(seed: int, index: int) -> int:
    """The seed of the index-th of several continuations, in [0, 2**64) for all but the first, which keeps `seed`."""
    if index == 0:
        return seed
    start = np.array([seed & _MASK], dtype=np.uint64)
    return int(_mix(_mix(start + _CHOICE_STEP) + np.array([index], dtype=np.uint64) * _CHOICE_STEP)[0])


def _mix(values: np.ndarray) -> np.ndarray:
    """A bijection of 64 bits in which every input bit moves about half of the output bits."""
    values = (values ^ (values >> np.uint64(30))) * _FACTORS[0]
    values = (values ^ (values >> np.uint64(27))) * _FACTORS[1]
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
