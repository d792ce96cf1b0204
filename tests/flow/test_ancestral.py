"""Samplers of DDPM: on Gaussian data, whose chain is Gaussian in both directions, and against the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.flow.ancestral import NoisePrediction, sample, spaced_steps
from tests.flow.gaussian import DEVIATION, MEAN

ALPHA_BAR = np.cumprod(1 - (0.0001 + np.arange(1000) * (0.02 - 0.0001) / 999))


def exact(steps):
    """The noise that is expected at a step of data N(MEAN, DEVIATION^2), and the variance of the reverse step."""
    bar = ALPHA_BAR[steps]
    after = np.append(bar[1:], 1.0)
    beta = 1 - bar / after
    variance = bar * DEVIATION**2 + 1 - bar
    least = beta * (1 - after) / (1 - bar)
    reverse = least + (np.sqrt(after) * beta / (1 - bar)) ** 2 * DEVIATION**2 * (1 - bar) / variance
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (np.log(reverse) - np.log(least)) / (np.log(beta) - np.log(least))
    fractions = np.where(after == 1, 0.0, 2 * share - 1)
    tables = np.zeros((3, 1000))
    tables[:, steps] = np.sqrt(bar), np.sqrt(1 - bar) / variance, fractions
    alpha, slope, fraction = jnp.asarray(tables, jnp.float32)
    return lambda step, x: NoisePrediction(slope[step] * (x - alpha[step] * MEAN), fraction[step])


def law(steps, predict, solver, **settings):
    """Mean and deviation of what the solver draws: it is linear in x and in the noise, so gradients tell both."""

    def end(x, noise):
        return sample(predict, x, steps, solver=solver, noise=noise, **settings)

    mean, (of_x, of_noise) = jax.jit(jax.value_and_grad(end, argnums=(0, 1)))(0.0, jnp.zeros(len(steps)))
    return float(mean), float(jnp.sqrt(of_x**2 + jnp.sum(of_noise**2)))


@pytest.mark.parametrize("count", [1000, 50, 7])
def test_ddpm_with_the_exact_variance_draws_the_data_however_few_steps_it_takes(count):
    steps = np.asarray(spaced_steps(count))
    mean, deviation = law(steps, exact(steps), "ddpm")
    assert mean == pytest.approx(MEAN, abs=2e-2)  # a trace of the data is left at the last step
    assert deviation == pytest.approx(DEVIATION, rel=2e-3)


def test_ddpm_without_a_learned_variance_and_ddim_come_near_with_many_steps():
    for settings in ({"solver": "ddpm"}, {"solver": "ddim"}, {"solver": "ddim", "eta": 0.5}):
        errors = []
        for count in (50, 1000):
            steps = np.asarray(spaced_steps(count))
            said = exact(steps)
            mean, deviation = law(steps, lambda step, x, said=said: NoisePrediction(said(step, x).noise), **settings)
            assert mean == pytest.approx(MEAN, abs=3e-2)
            errors.append(abs(deviation - DEVIATION))
        assert errors[1] < 0.01
        assert errors[1] < errors[0]


def predict(step, x):
    """A made-up network."""
    return NoisePrediction(jnp.sin(2 * x + step / 300.0))


def draws(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count + 1, 5)).astype(np.float32)


def test_ddim_with_all_the_noise_is_ddpm():
    steps, (x, *noise) = spaced_steps(20), draws(20)
    noise = np.stack(noise)
    by_ddim = sample(predict, x, steps, solver="ddim", noise=noise, eta=1.0)
    np.testing.assert_allclose(by_ddim, sample(predict, x, steps, solver="ddpm", noise=noise), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim_is_equation_12_of_its_paper(eta):
    steps, (x, *noise) = np.array([999, 600, 250, 40]), draws(4)
    expected = x.astype(np.float64)
    for index, step in enumerate(steps):
        bar, after = ALPHA_BAR[step], ALPHA_BAR[steps[index + 1]] if index < 3 else 1.0
        said = np.sin(2 * expected + step / 300)
        sigma = eta * np.sqrt((1 - after) / (1 - bar)) * np.sqrt(1 - bar / after)
        data = np.sqrt(after) * (expected - np.sqrt(1 - bar) * said) / np.sqrt(bar)
        expected = data + np.sqrt(1 - after - sigma**2) * said + sigma * noise[index]
    found = sample(predict, x, steps, solver="ddim", noise=np.stack(noise), eta=eta)
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_the_variance_of_ddpm_lies_where_the_network_says_between_those_of_the_posterior_and_of_beta():
    steps, x = np.array([500, 400, 0]), jnp.zeros(())
    bar, after = ALPHA_BAR[500], ALPHA_BAR[400]
    beta = 1 - bar / after
    least = beta * (1 - after) / (1 - bar)

    def end(noise, fraction):
        said = NoisePrediction(x, jnp.asarray(fraction, jnp.float32))
        return sample(lambda step, x: said, x, steps[:2], solver="ddpm", noise=jnp.stack([noise, 0.0]))

    for fraction, variance in ((-1.0, least), (1.0, beta), (0.0, np.sqrt(least * beta))):
        kick = jax.grad(end)(jnp.zeros(()), fraction)
        last = jax.grad(lambda x: sample(predict_nothing, x, steps[1:2], solver="ddim", noise=None))(x)
        assert float(kick / last) == pytest.approx(np.sqrt(variance), rel=1e-3)


def predict_nothing(step, x):
    return NoisePrediction(jnp.zeros(()))


def test_steps_are_spaced_as_in_the_released_code():
    for count in (2, 7, 50, 250, 999, 1000):
        exact, expected = 0.0, []
        for _ in range(count):
            expected.append(round(exact))
            exact += 999 / (count - 1)
        apart = np.abs(np.asarray(spaced_steps(count))[::-1] - expected)
        assert apart.max() <= 1
        assert apart.mean() < 0.01  # halves are rounded either way
    assert spaced_steps(1).tolist() == [999]
    assert np.all(np.diff(spaced_steps(100, 3.0)) <= 0)
    assert spaced_steps(100, 3.0)[50] > spaced_steps(100)[50], "more steps near noise"
    with pytest.raises(ValueError, match="from 1 to the 1000"):
        spaced_steps(1001)


def test_a_repeated_step_changes_nothing_and_predicted_data_are_clipped():
    (x, *noise) = draws(4)
    plain = sample(predict, x, np.array([900, 300]), solver="ddpm", noise=np.stack(noise[:2]))
    twice = sample(predict, x, np.array([900, 900, 300]), solver="ddpm", noise=np.stack([noise[2], *noise[:2]]))
    np.testing.assert_allclose(twice, plain, atol=1e-5)
    for solver in ("ddpm", "ddim"):
        clipped = sample(predict, 9 * x, np.array([900, 300]), solver=solver, noise=np.stack(noise[:2]), largest=0.5)
        assert np.abs(clipped).max() <= 0.5 + 1e-6
        assert np.abs(plain).max() > 0.5


def test_what_a_sampler_lacks_is_named():
    with pytest.raises(ValueError, match="needs a noise array for each of the 2 steps"):
        sample(predict, np.zeros(3), np.array([9, 0]), solver="ddpm", noise=None)
    with pytest.raises(ValueError, match="unknown; choose one of"):
        sample(predict, np.zeros(3), np.array([9, 0]), solver="euler", noise=None)
