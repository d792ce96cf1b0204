"""Arrays whose shapes, ranks or types do not belong together are refused where they enter, before they broadcast."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from lumina_jax.config import ModelConfig
from lumina_jax.flow.guidance import guide
from lumina_jax.flow.likelihood import log_likelihood
from lumina_jax.flow.losses import flow_loss
from lumina_jax.flow.ode import integrate
from lumina_jax.flow.paths import path
from lumina_jax.kernels.attention import attend
from lumina_jax.tokens import spread, tokens_of, unpack
from tests.models.random_models import random_model

IDS = jnp.ones((2, 4), jnp.int32)


def ones(*shape):
    return jnp.ones(shape)


def loss(output=(2, 4, 3), noise=(2, 4, 3), t=(2, 1), kinds=IDS):
    arrays = ones(*output), ones(*noise), ones(2, 4, 3), ones(*t), kinds, IDS
    return jax.eval_shape(lambda: flow_loss(*arrays, path=path("linear"), prediction="velocity"))


def attention(k=(2, 4, 2, 6), v=(2, 4, 2, 6), ids=IDS):
    return attend(ones(2, 4, 2, 6), ones(*k), ones(*v), segment_ids=ids, scale=1.0, implementation="reference")


def network(channels=3, times=1):
    config = ModelConfig(layers=1, heads=2, width=8, patch_size=1, channels=3, conditioning="label", mlp_multiple_of=8)
    tokens, _ = tokens_of(np.ones((1, 1, 2, 2, channels), np.float32), patch_size=1, nextline=False, nextframe=False)
    model, tokens = random_model(config), jax.tree.map(jnp.asarray, tokens)
    return jax.eval_shape(lambda: model(tokens, ones(times, 1), jnp.zeros((1, 1), jnp.int32)))


WRONG = {
    "noise of other patches": lambda: loss(noise=(2, 1, 3)),
    "one time for all rows": lambda: loss(t=(1, 1)),
    "times without an axis of segments": lambda: loss(t=(2,)),
    "kinds of other rows": lambda: loss(kinds=IDS[:1]),
    "kinds that are no integers": lambda: loss(kinds=ones(2, 4)),
    "values of fewer tokens than keys": lambda: attention(v=(2, 1, 2, 6)),
    "keys of another head width": lambda: attention(k=(2, 4, 2, 5), v=(2, 4, 2, 5)),
    "segment ids of one row": lambda: attention(ids=IDS[:1]),
    "patches of another model": lambda: network(channels=4),
    "times of other rows": lambda: network(times=2),
    "a table of other rows": lambda: spread(ones(1, 2, 5), IDS),
    "grids of other rows": lambda: unpack(ones(2, 4, 3), [[]], patch_size=1),
    "pictures without an axis of frames": lambda: tokens_of(
        np.ones((1, 2, 2, 3), np.float32), patch_size=1, nextline=False, nextframe=False
    ),
    "guidance by the output of one row": lambda: guide(ones(2, 4, 3), ones(1, 4, 3), 2.0, patch_size=1),
    "signs of one sample": lambda: log_likelihood(
        lambda t, x, args: x, ones(2, 3), ones(1, 3), jnp.array([1.0, 0.0]), solver="euler"
    ),
    "a grid of times for each row": lambda: integrate(lambda t, x, args: x, ones(2), ones(2, 3), solver="euler"),
}


@pytest.fixture(autouse=True)
def without_checks_of_annotations():
    """As everywhere but in tests."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.mark.parametrize("case", WRONG)
def test_arrays_that_do_not_belong_together_are_refused(case):
    with pytest.raises(AssertionError):
        WRONG[case]()


def test_arrays_that_belong_together_are_not():
    loss()
    attention()
    network()
