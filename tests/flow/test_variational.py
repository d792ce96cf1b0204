"""The variational bound of DDPM against the formulas of the papers, and against the entropy of Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate
from scipy.stats import norm

from lumina_jax.flow import paths
from lumina_jax.flow.losses import flow_loss
from lumina_jax.flow.schedule import time_of_step
from lumina_jax.flow.variational import variational_bits

BETAS = 0.0001 + np.arange(1000) * (0.02 - 0.0001) / 999
terms = jax.jit(variational_bits)
ALPHA_BAR = np.cumprod(1 - BETAS)


def bits_by_the_papers(noise, fraction, x0, x1, step):
    """One term in float64, written with the means of x_(s-1) that the papers give."""
    before = ALPHA_BAR[step - 1] if step else 1.0
    x = np.sqrt(ALPHA_BAR[step]) * x1 + np.sqrt(1 - ALPHA_BAR[step]) * x0
    beta = BETAS[step]

    def posterior_variance(step):
        return BETAS[step] * (1 - ALPHA_BAR[step - 1]) / (1 - ALPHA_BAR[step])

    least = posterior_variance(max(step, 1))
    deviation = np.sqrt(beta ** ((fraction + 1) / 2) * least ** ((1 - fraction) / 2))
    predicted = (x - beta / np.sqrt(1 - ALPHA_BAR[step]) * noise) / np.sqrt(1 - beta)  # DDPM, equation 11
    if step == 0:
        start = -np.inf if x1 < -0.999 else x1 - 1 / 255
        end = np.inf if x1 > 0.999 else x1 + 1 / 255
        return -np.log2(integrate.quad(norm(predicted, deviation).pdf, start, end)[0])
    mean = np.sqrt(before) * beta / (1 - ALPHA_BAR[step]) * x1
    mean += np.sqrt(1 - beta) * (1 - before) / (1 - ALPHA_BAR[step]) * x  # DDPM, equation 7
    nats = np.log(deviation**2 / least) / 2 + (least + (mean - predicted) ** 2) / (2 * deviation**2) - 1 / 2
    return nats / np.log(2)


@pytest.mark.parametrize("step", [0, 1, 2, 57, 500, 999])
def test_a_term_is_that_of_the_papers(step):
    random = np.random.default_rng(step)
    noise, x0 = random.standard_normal((2, 6))
    noise = x0 + 0.3 * noise
    x1, fraction = np.array([-1.0, -0.6, 0.0, 0.2, 0.7, 1.0]), np.linspace(-1, 1, 6)
    arrays = (jnp.asarray(value, jnp.float32)[None, None] for value in (noise, fraction, x0, x1))
    found = terms(*arrays, jnp.full((1, 1), step))[0, 0]
    expected = [bits_by_the_papers(*values, step) for values in zip(noise, fraction, x0, x1)]
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)


DEVIATION = 0.3


def bound(shift=0.0):
    """The bits of data N(0, DEVIATION^2) under the exact model, with the fraction of the variance shifted.

    The noise and the variance of the reverse of a Gaussian chain are known. Expectations are sums over nodes.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(21)
    x0, x1 = (grid.ravel() for grid in np.meshgrid(nodes, DEVIATION * nodes))
    weights = np.outer(weights, weights).ravel() / weights.sum() ** 2
    bar, before = ALPHA_BAR[:, None], np.append(1.0, ALPHA_BAR[:-1])[:, None]
    x = np.sqrt(bar) * x1 + np.sqrt(1 - bar) * x0
    variance = bar * DEVIATION**2 + 1 - bar
    noise = np.sqrt(1 - bar) * x / variance
    posterior = BETAS[:, None] * (1 - before) / (1 - bar)
    exact = posterior + (np.sqrt(before) * BETAS[:, None] / (1 - bar)) ** 2 * DEVIATION**2 * (1 - bar) / variance
    least, largest = np.log(np.append(posterior[1], posterior[1:])), np.log(BETAS)
    fraction = 2 * (np.log(exact[:, 0]) - least) / (largest - least) - 1 + shift
    arrays = (noise, np.broadcast_to(fraction[:, None], x.shape), *(np.broadcast_to(y, x.shape) for y in (x0, x1)))
    bits = terms(*(jnp.asarray(y, jnp.float32)[None] for y in arrays), jnp.arange(1000)[None])
    last = 0.5 * (variance[-1, 0] - 1 - np.log(1 - bar[-1, 0])) / np.log(2)
    return float(np.sum(np.asarray(bits[0], np.float64) @ weights) + last)


def test_the_bound_of_the_exact_model_is_the_entropy_of_its_data_and_another_variance_is_worse():
    entropy = 0.5 * np.log2(2 * np.pi * np.e * DEVIATION**2) + np.log2(255 / 2)
    found = bound()
    assert found == pytest.approx(entropy, abs=0.04)  # the bin is nearly as wide as the noise of the first step
    assert bound(0.6) > found + 0.03
    assert bound(-0.6) > found + 0.03


def test_the_term_is_added_to_the_loss_of_noise_and_teaches_the_variance_alone():
    random = np.random.default_rng(0)
    output, fraction, x0, x1 = jnp.asarray(random.standard_normal((4, 1, 3, 2)), jnp.float32)
    steps = np.array([[7, 400]])
    kinds, ids = np.ones((1, 3), np.int32), np.array([[1, 1, 2]], np.int32)

    @jax.jit
    def loss(output, fraction):
        rest = (x0, x1, time_of_step(steps), kinds, ids)
        return flow_loss(output, *rest, path=paths.path("ddpm"), prediction="noise", fraction=fraction).per_sample

    bits = terms(output, fraction, x0, x1, jnp.array([[7, 7, 400]]))
    values = (output - x0) ** 2 + bits
    np.testing.assert_allclose(loss(output, fraction)[0], [values[0, :2].mean(), values[0, 2].mean()], rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda *outputs: loss(*outputs).sum(), argnums=(0, 1)))
    (of_noise, of_variance), (without, _) = gradient(output, fraction), gradient(output, None)
    np.testing.assert_allclose(of_noise, without, rtol=1e-6)
    assert (of_variance != 0).all()


def test_a_variance_on_another_path_is_refused():
    ones = jnp.ones((1, 1, 2))
    rest = (ones, ones, jnp.ones((1, 1)), np.ones((1, 1), np.int32), np.ones((1, 1), np.int32))
    with pytest.raises(ValueError, match="a variance is learned with noise on the 'ddpm' path"):
        flow_loss(ones, *rest, path=paths.path("vp"), prediction="noise", fraction=ones)
