"""Random numbers that decide the order of training data: they must never change."""

import numpy as np

from modelchain_trainer.data.randomness import Purpose, bits, key, permutation, uniforms


def test_numbers_are_those_of_the_first_release() -> None:
    state = key(Purpose.BLOCKS, 7, 3)
    assert int(state) == 18122175632341392594
    assert bits(state, 3).tolist() == [370265650698525299, 17567992981633000139, 9261468734040475127]
    assert permutation(state, 8).tolist() == [0, 5, 2, 4, 6, 7, 3, 1]


def test_outputs_follow_splitmix64() -> None:
    # The reference implementation's first outputs for seed 1234567 (Vigna, splitmix64.c).
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert bits(np.array(1234567, np.uint64), 4).tolist() == expected


def test_a_key_of_an_array_gives_each_element_its_own_stream() -> None:
    together = key(Purpose.CROP, 1, 2, np.arange(5, dtype=np.uint64))
    alone = [int(key(Purpose.CROP, 1, 2, number)) for number in range(5)]
    assert together.tolist() == alone
    assert bits(together, 2)[3].tolist() == bits(key(Purpose.CROP, 1, 2, 3), 2).tolist()


def test_keys_differ_in_every_word() -> None:
    keys = {
        int(key(purpose, seed, epoch)) for purpose in Purpose for seed in range(20) for epoch in range(20)
    }
    assert len(keys) == len(Purpose) * 400


def test_uniforms_fill_the_unit_interval_evenly() -> None:
    numbers = uniforms(key(Purpose.CROP, 0, 0, np.arange(1000, dtype=np.uint64)), 20).ravel()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert np.abs(counts - 1000).max() < 150  # 4.8 standard deviations
