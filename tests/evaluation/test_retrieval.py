"""Nearest pictures, against scipy and against draws; frames that cannot be told apart."""

import numpy as np
from scipy.spatial.distance import cdist

from lumina_jax.evaluation.retrieval import (
    ALIKE,
    DISTRACTORS,
    distractor_report,
    frame_report,
    look_alike,
    nearest,
)


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


def test_pictures_look_alike_up_to_a_root_mean_squared_difference():
    grey = np.full((3, 4, 4, 3), 100, np.uint8)
    other = grey.copy()
    other[0] += np.uint8(ALIKE)
    other[1] += np.uint8(ALIKE + 1)
    other[2, 0, 0] += np.uint8(ALIKE * 4)  # a sixteenth of the values, four times as far
    np.testing.assert_array_equal(look_alike(grey, other), [True, False, True])


def test_views_of_a_round_thing_count_as_any_of_its_sides_and_others_do_not():
    random = np.random.default_rng(2)
    round_thing = np.repeat(random.integers(40, 216, (1, 8, 8, 3)), 4, axis=0) + np.arange(4)[:, None, None, None]
    true = np.stack([round_thing, random.integers(40, 216, (4, 8, 8, 3))]).astype(np.uint8)
    drawn = np.roll(true, 1, axis=1)  # every view is that of the side before
    found = [*frame_report(drawn, true)]
    said = "\n".join(finding.text for finding in found)
    assert found[0].numbers == {"nearest_frame_of_sample": 1.0, "nearest_frame_alike": 0.5, "nearest_frame": 0.0}
    assert "one of their own sample: 100.0%" in said
    assert "looks like it: 50.0% (to the same frame itself: 0.0%)" in said


def test_the_share_among_distractors_is_that_of_many_draws_of_the_same_style():
    random = np.random.default_rng(3)
    names = [f"thing {index}, {style} style" for index in range(60) for style in ("flat", "round")]
    distances = random.uniform(size=(120, 120))
    distances[np.arange(120), np.arange(120)] *= 0.05
    distances[::2, 1::2] = 0.0  # the other style never counts
    is_held_out = np.arange(120) < 40
    found = {
        key: value for one in distractor_report(distances, names, is_held_out) for key, value in one.numbers.items()
    }

    hits = np.zeros(120)
    for _ in range(400):
        for index in range(120):
            others = [other for other in range(index % 2, 120, 2) if other != index]
            rivals = random.choice(others, DISTRACTORS, replace=False)
            hits[index] += distances[index, index] < distances[index, rivals].min()
    assert 0.2 < hits.mean() / 400 < 0.8
    np.testing.assert_allclose(found["nearest_among_50_held_out"], hits[:40].mean() / 400, atol=0.02)
    np.testing.assert_allclose(found["nearest_among_50_trained_on"], hits[40:].mean() / 400, atol=0.02)


def test_nothing_is_said_of_distractors_where_there_are_too_few():
    names = [f"thing {index}, flat style" for index in range(DISTRACTORS)]
    assert not [*distractor_report(np.eye(DISTRACTORS), names, np.zeros(DISTRACTORS, bool))]
