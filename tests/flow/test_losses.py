"""Losses of packed rows against plain numpy, one sample at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow import paths
from lumina_jax.flow.losses import Losses, flow_loss, sample_means

# Two rows: samples of 3 and 2 patches with markers and padding; and one sample of 6 patches.
KINDS = np.array([[1, 2, 1, 1, 2, 1, 1, 0], [1, 1, 1, 2, 1, 1, 1, 3]], np.int32)
SEGMENTS = np.array([[1, 1, 1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1, 1, 1]], np.int32)
TIMES = np.array([[0.3, 0.8], [0.55, 0.0]], np.float32)
SAMPLES = [(0, 1), (0, 2), (1, 1)]


def arrays(seed=0):
    return np.random.default_rng(seed).standard_normal((3, 2, 8, 4)).astype(np.float32)


def expected_loss(output, x0, x1, row, segment, path, prediction, weighting):
    t = float(TIMES[row, segment - 1])
    alpha, sigma, d_alpha, d_sigma = (float(c) for c in path.coefficients(t))
    patches = (SEGMENTS[row] == segment) & (KINDS[row] == 1)
    output, x0, x1 = output[row, patches].astype(np.float64), x0[row, patches], x1[row, patches]
    score_weight = d_alpha / alpha * sigma**2 - sigma * d_sigma
    weight = {"none": 1.0, "velocity": (score_weight / sigma) ** 2, "likelihood": score_weight / sigma**2}
    if prediction == "data":  # an error of the data is one of the noise times alpha / sigma
        weight |= {name: weight[name] * (alpha / sigma) ** 2 for name in ("velocity", "likelihood")}
    errors = {
        "data": output - x1,
        "velocity": output - (d_alpha * x1 + d_sigma * x0),
        "noise": output - x0,
        "score": output * sigma + x0,
    }
    return weight[weighting] * np.mean(errors[prediction] ** 2)


@pytest.mark.parametrize(
    ("prediction", "weighting"),
    [("velocity", "none")] + [(p, w) for p in ("noise", "score", "data") for w in ("none", "velocity", "likelihood")],
)
@pytest.mark.parametrize("name", ["linear", "gvp", "vp"])
def test_packed_rows_give_each_sample_the_loss_it_has_alone(name, prediction, weighting):
    path, (output, x0, x1) = paths.path(name), arrays()
    losses = flow_loss(
        jnp.array(output), x0, x1, TIMES, KINDS, SEGMENTS, path=path, prediction=prediction, weighting=weighting
    )
    np.testing.assert_array_equal(losses.present, [[1, 1], [1, 0]])
    expected = [expected_loss(output, x0, x1, *sample, path, prediction, weighting) for sample in SAMPLES]
    np.testing.assert_allclose([losses.per_sample[r, s - 1] for r, s in SAMPLES], expected, rtol=1e-4)
    assert float(losses.mean()) == pytest.approx(np.mean(expected), rel=1e-4)


def test_velocity_weighted_noise_prediction_is_the_velocity_loss():
    path, (output, x0, x1) = paths.path("linear"), arrays(1)
    t = paths.over(np.where(SEGMENTS == 2, 0.8, np.where(np.arange(2)[:, None] == 0, 0.3, 0.55)), x1)
    x = paths.interpolate(path, x0, x1, t).x
    noise = paths.noise_from_velocity(path, output, x, t)
    rest = (TIMES, KINDS, SEGMENTS)
    by_velocity = flow_loss(jnp.array(output), x0, x1, *rest, path=path, prediction="velocity")
    by_noise = flow_loss(noise, x0, x1, *rest, path=path, prediction="noise", weighting="velocity")
    np.testing.assert_allclose(by_noise.per_sample, by_velocity.per_sample, rtol=1e-4)


@pytest.mark.parametrize("name", ["linear", "gvp", "vp"])
def test_velocity_weighted_data_prediction_is_the_velocity_loss_until_its_weight_is_held(name):
    path, (output, x0, x1) = paths.path(name), arrays(1)

    def both(t):
        tokens = jnp.full((2, 8), t)
        x = paths.interpolate(path, x0, x1, tokens).x
        rest = (x0, x1, np.full((2, 2), t, np.float32), KINDS, SEGMENTS)
        velocity = paths.velocity_from_data(path, output, x, tokens)
        by_velocity = flow_loss(velocity, *rest, path=path, prediction="velocity")
        by_data = flow_loss(jnp.array(output), *rest, path=path, prediction="data", weighting="velocity")
        return by_data.per_sample, by_velocity.per_sample

    for t in (0.05, 0.5, 0.94):
        np.testing.assert_allclose(*both(t), rtol=1e-3)
    held, (late, exact) = both(0.95)[0], both(0.99)
    np.testing.assert_allclose(late, held, rtol=1e-5)
    assert (exact > 2 * late)[np.array([[1, 1], [1, 0]], bool)].all()


def test_samples_count_equally_whatever_their_size():
    losses = Losses(jnp.array([[1.0, 3.0], [8.0, 99.0]]), jnp.array([[1.0, 1.0], [1.0, 0.0]]))
    assert float(losses.mean()) == pytest.approx(4)
    assert float(Losses(jnp.ones((1, 1)), jnp.zeros((1, 1))).mean()) == 0


def test_markers_and_padding_have_no_gradient():
    output, x0, x1 = arrays(2)

    def loss(output):
        return flow_loss(
            output, x0, x1, TIMES, KINDS, SEGMENTS, path=paths.path("gvp"), prediction="score", weighting="likelihood"
        ).mean()

    gradient = np.asarray(jax.grad(loss)(jnp.array(output)))
    assert np.isfinite(gradient).all()
    assert (gradient[KINDS != 1] == 0).all()
    assert (gradient[KINDS == 1] != 0).all()


def test_a_bfloat16_output_is_compared_in_float32():
    output, x0, x1 = arrays(3)
    losses = flow_loss(
        jnp.array(output, jnp.bfloat16), x0, x1, TIMES, KINDS, SEGMENTS, path=paths.path("linear"), prediction="noise"
    )
    assert losses.per_sample.dtype == jnp.float32


def test_means_of_samples_ignore_other_segments():
    values = np.where(SEGMENTS == 2, 100.0, 1.0).astype(np.float32)[..., None]
    found = sample_means(values, KINDS, SEGMENTS, segments=3)
    np.testing.assert_allclose(found.per_sample, [[1, 100, 0], [1, 0, 0]])


def test_a_weighting_of_a_velocity_is_refused():
    output, x0, x1 = arrays()
    with pytest.raises(ValueError, match="velocity loss has none"):
        flow_loss(
            jnp.array(output),
            x0,
            x1,
            TIMES,
            KINDS,
            SEGMENTS,
            path=paths.path("linear"),
            prediction="velocity",
            weighting="likelihood",
        )


def test_values_beyond_those_of_a_patch_do_not_count():
    values, _, _ = arrays()
    counted = np.where(SEGMENTS == 1, 3, 1)
    losses = sample_means(values, KINDS, SEGMENTS, segments=2, patch_values=counted)
    for row, segment in SAMPLES:
        patches = values[row, (SEGMENTS[row] == segment) & (KINDS[row] == 1)][:, : 3 if segment == 1 else 1]
        np.testing.assert_allclose(losses.per_sample[row, segment - 1], patches.mean(), rtol=1e-5)
