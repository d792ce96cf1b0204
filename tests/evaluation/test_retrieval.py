"""Nearest pictures, against scipy."""

import numpy as np
from scipy.spatial.distance import cdist

from lumina_jax.evaluation.retrieval import nearest


def test_nearest_is_the_smallest_distance_of_pixels():
    random = np.random.default_rng(0)
    drawn, true = (random.integers(0, 256, (count, 4, 5, 3), dtype=np.uint8) for count in (7, 9))
    expected = cdist(drawn.reshape(7, -1).astype(float), true.reshape(9, -1).astype(float)).argmin(1)
    np.testing.assert_array_equal(nearest(drawn, true), expected)


def test_a_noisy_copy_is_nearest_to_its_original():
    random = np.random.default_rng(1)
    true = random.integers(20, 236, (12, 8, 8, 3), dtype=np.uint8)
    noisy = (true + random.integers(-20, 20, true.shape)).astype(np.uint8)
    np.testing.assert_array_equal(nearest(noisy, true), np.arange(12))
