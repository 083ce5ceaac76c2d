"""Random numbers that are a function of named whole numbers, and stay the same in every release of every
library.

SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"), used as a
counter-based generator: `key` hashes any number of words into a state, `bits` gives the outputs that follow
it. numpy's own generators do not promise that `shuffle` or `permutation` stay as they are.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


class Purpose(IntEnum):
    """What a number is drawn for: the first word of every key, so that no two uses share a stream."""

    BLOCKS = 1
    ROTATION = 2
    WINDOW = 3
    CROP = 4
    SUBSTITUTE = 5
    SEQUENCES = 6
    PATCHES = 7
    TURNS = 8
    PLACES = 9


def key(*words: int | U64) -> U64:
    """Hash words, the last of which may be an array of shape [N], into states of that shape."""
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for word in words:
            state = _mix(state + _GAMMA + np.asarray(word, np.uint64))
    return state


def bits(state: U64, count: int) -> U64:
    """The next `count` 64-bit numbers of each state: shape [..., count]."""
    with np.errstate(over="ignore"):
        return _mix(np.asarray(state)[..., None] + _GAMMA * np.arange(1, count + 1, dtype=np.uint64))


def uniforms(state: U64, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) for each state: shape [..., count]."""
    return (bits(state, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(state: U64, count: int) -> NDArray[np.int64]:
    """0 .. count-1 in random order: the order of `count` random numbers (ties keep their order)."""
    return np.argsort(bits(state, count), kind="stable")


def _mix(state: U64) -> U64:
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))
