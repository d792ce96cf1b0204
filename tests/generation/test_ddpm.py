"""A model of DDPM, from its training step to its samples, against the papers' formulas in numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.config import FlowConfig, SampleConfig
from lumina_jax.flow.variational import variational_bits
from lumina_jax.generation.pipeline import new_pipeline
from lumina_jax.models.flag_dit import FlagDiT
from lumina_jax.tokens import tokens_of, unpatchify
from lumina_jax.training.step import batch_losses, noise_and_times
from tests.models.random_models import random_model, random_parameters
from tests.training.tiny import config, label_config, packed_batch

FLOW = FlowConfig(path="ddpm", prediction="noise", times="uniform")
LABEL = label_config()
LABEL = dataclasses.replace(LABEL, flow=FLOW, model=LABEL.model.replace(block="dit", qk_norm=False, predict_sigma=True))
ALPHA_BAR = np.cumprod(1 - (0.0001 + np.arange(1000) * (0.02 - 0.0001) / 999))

run = jax.jit(FlagDiT.__call__, static_argnames="keep_sigma")


@pytest.fixture(scope="module")
def pipeline():
    return new_pipeline(LABEL, random_parameters(LABEL.model), None)


def drawn_by_hand(x, draws, steps, labels, scale, solver):
    """DDPM (arXiv 2006.11239, algorithm 2) with the variance of the network (arXiv 2102.09672, equation 15), or DDIM
    (arXiv 2010.02502, equation 12); the guided noise is used with the variance of the prompt alone."""
    model = random_model(LABEL.model)
    null = np.full_like(labels, LABEL.model.classes)
    for index, step in enumerate(steps):
        bar, after = ALPHA_BAR[step], ALPHA_BAR[steps[index + 1]] if step else 1.0
        tokens, grid = tokens_of(jnp.asarray(x, jnp.float32), patch_size=8, nextline=False, nextframe=False)
        told = jnp.full((len(x), 1), float(step))
        with_label, without = (np.asarray(run(model, tokens, told, y, keep_sigma=True)) for y in (labels, null))
        noise, fraction = np.split(with_label, 2, axis=-1)
        noise = np.split(without, 2, axis=-1)[0] * (1 - scale) + noise * scale
        noise, fraction = (np.asarray(unpatchify(jnp.asarray(value), grid, 8)) for value in (noise, fraction))
        kick = np.asarray(unpatchify(jnp.asarray(draws[:, index]), grid, 8))
        data = (x - np.sqrt(1 - bar) * noise) / np.sqrt(bar)
        if solver == "ddim":
            x = np.sqrt(after) * data + np.sqrt(1 - after) * noise
            continue
        beta = 1 - bar / after
        least = beta * (1 - after) / (1 - bar)
        mean = np.sqrt(after) * beta / (1 - bar) * data + np.sqrt(bar / after) * (1 - after) / (1 - bar) * x
        deviation = np.sqrt(beta ** ((fraction + 1) / 2) * least ** ((1 - fraction) / 2)) if step else 0.0
        x = mean + deviation * kick
    return x


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_samples_are_drawn_by_the_formulas_with_guidance_of_the_noise_alone(pipeline, solver):
    noise = np.random.default_rng(0).standard_normal((2, 1, 32, 32, 3)).astype(np.float32)
    keys = jax.random.split(jax.random.key(5), 2)
    settings = SampleConfig(solver=solver, steps=3, guidance=2.5)
    found = pipeline.latents(noise, ["3", "11"], settings, keys=keys)
    draws = np.stack([jax.random.normal(key, (3, 16, 192)) for key in keys])
    expected = drawn_by_hand(noise.astype(np.float64), draws, [999, 500, 0], jnp.array([[3], [11]]), 2.5, solver)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_the_probability_flow_of_the_same_model_can_be_followed_and_walked_back(pipeline):
    noise = np.random.default_rng(1).standard_normal((1, 1, 16, 16, 3)).astype(np.float32)
    small = jax.tree.map(lambda leaf: 0.3 * leaf, random_parameters(LABEL.model))
    pipeline = new_pipeline(LABEL, small, None)
    settings = SampleConfig(solver="heun", steps=200, guidance=1.0)
    latents = pipeline.latents(noise, ["3"], settings)
    assert np.isfinite(latents).all()
    np.testing.assert_allclose(pipeline.invert(latents, ["3"], settings), noise, atol=0.05)
    with pytest.raises(ValueError, match="solver='ddim' is for denoising alone"):
        pipeline.invert(latents, ["3"], SampleConfig(solver="ddim"))


def test_training_draws_discrete_times_and_adds_the_bound_to_the_error_of_the_noise():
    model_config = config().model.replace(predict_sigma=True)
    batch, model = packed_batch(), random_model(model_config)
    drawn = noise_and_times(jax.random.key(1), batch, FLOW)
    steps = np.round(1000 * (1 - np.asarray(drawn.t)) - 1).astype(int)
    np.testing.assert_allclose(drawn.t, 1 - (steps + 1) / 1000, atol=1e-6)
    assert len(np.unique(steps)) > 4
    tokens = jax.tree.map(np.asarray, batch.tokens)
    of_token = np.where(tokens.segment_ids == 2, steps[:, 1:], steps[:, :1])
    bar = ALPHA_BAR[of_token][..., None]
    x = np.sqrt(bar) * tokens.patches + np.sqrt(1 - bar) * np.asarray(drawn.x0)
    said = run(
        model, batch.tokens._replace(patches=jnp.asarray(x, jnp.float32)), steps * 1.0, batch.condition, keep_sigma=True
    )
    noise, fraction = jnp.split(said, 2, axis=-1)
    bits = variational_bits(noise, fraction, drawn.x0, tokens.patches, jnp.asarray(of_token))
    values = np.asarray((noise - drawn.x0) ** 2 + bits)
    found = jax.jit(batch_losses, static_argnums=3)(model, batch, drawn, FLOW).per_sample
    for row, segment in np.argwhere(np.asarray(batch.present) > 0):
        patches = (tokens.segment_ids[row] == segment + 1) & (tokens.kinds[row] == 1)
        assert float(found[row, segment]) == pytest.approx(values[row, patches].mean(), rel=1e-3)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"flow": {"prediction": "velocity"}}, "flow.path='ddpm' learns the noise with equal weights"),
        ({"flow": {"loss_weight": "velocity"}}, "set them to 'noise' and 'none'"),
        ({"model": {"time_scale": 1000.0}}, "model.time_scale=1000.0 must be 1"),
        ({"flow": {"path": "vp"}, "sample": {"solver": "ddim"}}, "this one has flow.path='vp'; choose an ODE solver"),
        ({"sample": {"solver": "ddpm", "steps": 1001}}, "ask for at most 1000"),
        ({"sample": {"eta": 1.5}}, "sample.eta=1.5 must be between 0 and 1"),
    ],
)
def test_what_ddpm_cannot_do_is_refused(sections, message):
    with pytest.raises(ValueError, match=message):
        LABEL.replace(**sections)


def test_a_solver_of_ddpm_is_refused_to_another_model_before_it_draws():
    other = new_pipeline(label_config(), random_parameters(label_config().model), None)
    with pytest.raises(ValueError, match=r"sample\.solver='ddpm' is for models of flow\.path='ddpm'"):
        other(["3"], SampleConfig(solver="ddpm"))
