"""Each seed of 64 bits has a key of its own."""

import jax
import numpy as np
import pytest

from lumina_jax.seeds import LARGEST_SEED, key_of_seed


def test_small_seeds_have_the_keys_of_jax():
    for seed in (0, 1, 2**32 - 1):
        assert (jax.random.key_data(key_of_seed(seed)) == jax.random.key_data(jax.random.key(seed))).all()


def test_no_two_seeds_share_a_key():
    seeds = [0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**40, 2**63, LARGEST_SEED]
    assert len({tuple(jax.random.key_data(key_of_seed(seed)).tolist()) for seed in seeds}) == len(seeds)


@pytest.mark.parametrize("seed", [-1, 2**64, 10**20])
def test_other_seeds_are_refused(seed):
    with pytest.raises(ValueError, match="between 0 and"):
        key_of_seed(seed)


def test_integers_of_numpy_are_seeds_like_those_of_python():
    for seed in (np.uint64(2**40), np.int64(7), np.uint32(7)):
        assert (jax.random.key_data(key_of_seed(seed)) == jax.random.key_data(key_of_seed(int(seed)))).all()
