"""Drawings that are followed: they are the same as others, tell what they lead to, and stop."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from lumina_jax.config import SampleConfig
from lumina_jax.generation.composition import PictureRegion
from lumina_jax.generation.following import Follower
from lumina_jax.generation.noise import NoiseOrigin, noise_of
from lumina_jax.generation.style import StyleOf
from lumina_jax.modalities import Shape
from tests.generation.test_pipeline import Words, new_pipeline
from tests.training.tiny import config, label_config

STEPS = 3


def followed(settings, encoder=None):
    """Two pipelines of the same weights, of which the second is followed."""
    plain, second = new_pipeline(settings, encoder), new_pipeline(settings, encoder)
    second.follower = Follower()
    return plain, second


@pytest.fixture(scope="module")
def pair():
    return followed(config(), Words())


SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("midpoint", "bosh3", "euler_maruyama", "explicit_adams", "dpmpp_2m")
]


@pytest.mark.parametrize("solver", ["euler", *SLOW])
def test_a_followed_drawing_is_the_same_and_tells_how_far_it_is(pair, solver):
    plain, second = pair
    settings = SampleConfig(solver=solver, steps=STEPS, guidance=2.0)
    wanted = plain(["a b"], settings, seed=3)[0]
    second.follower.begin()
    np.testing.assert_array_equal(second(["a b"], settings, seed=3)[0], wanted)
    seen = second.follower.seen()
    assert 0.6 < seen.time <= 1
    assert seen.calls >= STEPS
    assert seen.data.shape == (1, 1, 32, 32, 3)


DIFFERENCE = """
import numpy as np
from tests.generation.test_following import *
plain, second = followed(config(), Words())
settings = SampleConfig(solver="explicit_adams", steps=20, guidance=2.0)
noise, _ = noise_of([NoiseOrigin(3, 0)], (1, 32, 32, 3))
drawn = [np.asarray(one.latents(noise, ["a b"], settings)) for one in (plain, second)]
print(np.abs(drawn[0] - drawn[1]).max())
"""


@pytest.mark.slow
def test_a_followed_drawing_rounds_as_a_plain_one_where_high_orders_amplify_it():
    """As XLA compiles for users: tests compile with fewer fusions, which round alike anyway."""
    root = Path(__file__).parents[2]
    usual = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-P", "-c", DIFFERENCE], cwd=root, env=usual, capture_output=True, text=True)
    assert done.stdout.split() == ["0.0"], done.stderr[-1000:]


def test_the_last_prediction_is_the_sample_itself_where_the_path_is_straight(pair):
    """Euler's last step leads to what the network predicts at its start."""
    settings = SampleConfig(solver="euler", steps=STEPS, guidance=2.0)
    _, second = pair
    sample = second(["a b"], settings, seed=3)[0]
    data = second.follower.seen().data
    np.testing.assert_array_equal(second.modality().shown(data)[0], sample)


def test_a_model_of_noise_and_variance_is_followed():
    settings = label_config(flow={"path": "ddpm", "prediction": "noise"})
    settings = settings.replace(model={"predict_sigma": True})
    plain, second = followed(settings)
    asked = SampleConfig(solver="ddim", steps=STEPS, guidance=2.0)
    wanted = plain(["3"], asked, seed=1)[0]
    np.testing.assert_array_equal(second(["3"], asked, seed=1)[0], wanted)
    assert second.follower.seen().calls == STEPS
    assert second.follower.seen().data.shape == (1, 1, 32, 32, 3)


@pytest.mark.slow
def test_references_and_regions_are_not_among_what_is_seen(pair):
    settings = SampleConfig(solver="euler", steps=STEPS, guidance=2.0)
    _, second = pair
    options = {"style": StyleOf(0), "regions": [PictureRegion("b", (0, 0, 16, 16))], "shape": Shape(16, 24)}
    second(["a", "b"], settings, seed=3, **options)
    assert second.follower.seen().data.shape == (2, 1, 16, 24, 3)


def test_the_way_back_to_noise_is_not_followed(pair):
    settings = SampleConfig(solver="euler", steps=STEPS, guidance=2.0)
    _, second = pair
    second.follower.begin()
    second.invert(np.zeros((1, 1, 32, 32, 3), np.float32), ["a b"], settings)
    assert second.follower.seen().calls == 0


@pytest.mark.parametrize("solver", ["euler", "bosh3"])
def test_a_drawing_that_is_stopped_calls_the_network_no_more(pair, solver):
    _, second = pair
    settings = SampleConfig(solver=solver, steps=5000, guidance=2.0, rtol=1e-7, atol=1e-9)
    second.follower.begin()
    second.follower.stop()
    stopped = second(["a b"], settings, seed=3)[0]
    assert second.follower.seen().calls == 0
    noise, _ = noise_of([NoiseOrigin(3, 0)], (1, 32, 32, 3))
    np.testing.assert_array_equal(stopped, second.modality().shown(np.asarray(noise))[0])
    second.follower.begin()
    threading.Thread(target=stopped_after, args=(second.follower, 5)).start()
    began = time.monotonic()
    second(["a b"], settings, seed=4)
    assert second.follower.is_stopped
    assert 5 <= second.follower.seen().calls < 5000
    assert time.monotonic() - began < 20


def stopped_after(follower, calls):
    while follower.seen().calls < calls:
        time.sleep(0.001)
    follower.stop()
