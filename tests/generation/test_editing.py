"""Editing: the path from a source, what is kept of it, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.config import SampleConfig
from lumina_jax.flow import dpm_solver, paths
from lumina_jax.flow.ancestral import spaced_steps
from lumina_jax.generation.editing import KnownPath
from lumina_jax.generation.originals import normalized_channels, originals
from lumina_jax.generation.trajectories import denoised, flow, noised_back, resampled, stochastic
from lumina_jax.modalities import Shape, modality_of
from lumina_jax.modalities.encoding import LatentScale
from tests.generation.test_pipeline import MASK, OTHER, PICTURE, SHAPE
from tests.modalities.test_modalities import SOUNDS, modality
from tests.training.tiny import config, label_config

RANDOM = np.random.default_rng(0)
NOISE, SOURCE = RANDOM.standard_normal((2, 2, 3, 4)).astype(np.float32)


def known_path(name, strength, kept=False):
    kept = np.broadcast_to(np.asarray(kept), NOISE.shape)
    return KnownPath(paths.path(name), *map(jnp.asarray, (NOISE, SOURCE, kept)), jnp.float32(strength))


@functools.partial(jax.jit, static_argnums=0)
def followed(drift, x, times):
    """By the midpoint method."""

    def step(x, ends):
        (start, end), middle = ends, jnp.mean(ends)
        return x + (end - start) * drift(middle, x + (middle - start) * drift(start, x, None), None), None

    return jax.lax.scan(step, x, jnp.stack([times[:-1], times[1:]], axis=1))[0]


# The path, with networks that are known


@pytest.mark.parametrize(("name", "strength", "shift"), [("linear", 0.7, 1.0), ("gvp", 0.4, 3.0), ("vp", 0.6, 0.5)])
def test_the_path_begins_at_the_time_1_minus_the_strength_with_the_noised_source(name, strength, shift):
    """Data are normal with deviation 2: the flow scales x by the ratio of the deviations of p_t."""
    path, known = paths.path(name), known_path(name, strength)

    def velocity(t, x):
        c = path.coefficients(t)
        return (4 * c.alpha * c.d_alpha + c.sigma * c.d_sigma) / (4 * c.alpha**2 + c.sigma**2) * x

    of_flow = config(flow={"path": name})
    settings = SampleConfig(steps=100)
    drift, times = flow(velocity, of_flow, settings, jnp.float32(shift), known)
    assert times[0] == pytest.approx(1 - strength, abs=1e-6)
    assert len(times) == 101
    found = known.end(followed(drift, known.start(times[0]), times))
    c, end = path.coefficients(1 - strength), path.coefficients(times[-1])
    begun = c.alpha * SOURCE + c.sigma * NOISE
    deviation = [np.sqrt(4 * now.alpha**2 + now.sigma**2) for now in (c, end)]
    np.testing.assert_allclose(found, begun * (deviation[1] / deviation[0]), rtol=2e-3, atol=2e-3)


def test_what_is_kept_leads_what_is_drawn_along_its_path():
    """Each value follows the first, which is kept: dx/dt = t x1 + (1 - t) x0, and so x(1) - x(0) is their mean."""
    known = known_path("linear", 1.0, np.arange(4) == 0)
    settings = SampleConfig(steps=5)
    drift, times = flow(lambda t, x: jnp.broadcast_to(x[..., :1], x.shape), config(), settings, jnp.float32(1), known)
    found = known.end(followed(drift, known.start(times[0]), times))
    np.testing.assert_array_equal(found[..., 0], SOURCE[..., 0])
    expected = NOISE + (SOURCE + NOISE)[..., :1] / 2
    np.testing.assert_allclose(found[..., 1:], expected[..., 1:], rtol=1e-5, atol=1e-5)
    by_data = dpm_solver.integrate(drift, known.start(times[0]), times, path=known.path)
    np.testing.assert_allclose(by_data[..., 0], SOURCE[..., 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(drift(jnp.float32(0.3), found, None)[..., 0], (SOURCE - NOISE)[..., 0], rtol=1e-6)


@pytest.mark.parametrize(
    "solver",
    [
        "euler_maruyama",
        pytest.param("sde_heun", marks=pytest.mark.slow),
        "ddpm",
        pytest.param("ddim", marks=pytest.mark.slow),
    ],
)
def test_solvers_that_add_noise_begin_at_the_strength_and_show_the_network_the_path_of_what_is_kept(solver):
    name = "ddpm" if solver.startswith("dd") else "linear"
    known = known_path(name, 0.8, np.arange(4) < 2)
    settings = SampleConfig(solver=solver, steps=6, eta=0.5)

    def network(t, x):
        """Not finite where it sees something else."""
        path = known.at(t).x
        sees = jnp.allclose(x[..., :2], path[..., :2], rtol=1e-6, atol=1e-6) & (t > 0.2 - 1e-3)
        if solver != "sde_heun":  # which adds noise before its first call
            sees &= (t > 0.2 + 1e-3) | jnp.allclose(x, path, rtol=1e-5, atol=1e-5)
        return jnp.where(sees, 0.1 * x, jnp.nan)

    increments = RANDOM.standard_normal((6, *NOISE.shape)).astype(np.float32)
    asked = network, jnp.asarray(NOISE), jnp.asarray(increments)
    if name == "ddpm":
        found = denoised(*asked, settings, jnp.float32(1), False, known)
    else:
        found = stochastic(*asked, config(), settings, jnp.float32(1), known)
    found = known.end(found)
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[..., :2], SOURCE[..., :2])
    assert np.abs(found - SOURCE)[..., 2:].min() > 0


def test_strength_0_returns_the_source_of_a_path_that_ends_before_the_data():
    known = known_path("vp", 0.0)
    end = known.start(jnp.float32(paths.interval(known.path, "velocity")[1]))
    assert np.abs(end - SOURCE).max() > 1e-3
    np.testing.assert_array_equal(known.end(end), SOURCE)


def test_steps_of_ddpm_begin_at_the_strength_of_the_thousand():
    interval = paths.interval(paths.path("ddpm"), "noise")
    for shift in (1.0, 4.0):
        first = known_path("ddpm", 0.25).first(interval, shift)
        assert list(spaced_steps(3, shift, first)[::2]) == [249, 0]
        assert list(spaced_steps(1, shift, first)) == [249]
        whole = spaced_steps(7, shift, known_path("ddpm", 1.0).first(interval, shift))
        np.testing.assert_array_equal(whole, spaced_steps(7, shift))


@pytest.mark.parametrize("name", ["linear", "vp"])
def test_noise_leads_a_point_of_the_path_back_to_an_earlier_time(name):
    """alpha(t) x1 + sigma(t) x0 with noise e is alpha(s) x1 + a x0 + b e, where a^2 + b^2 = sigma(s)^2."""
    path, (t, s) = paths.path(name), (0.7, 0.4)
    now, before = path.coefficients(jnp.float32(t)), path.coefficients(jnp.float32(s))
    data, old, new = (
        noised_back(path, *(jnp.full((1, 1, 1), one) for one in point), jnp.float32(t), jnp.float32(s)).item()
        for point in ((now.alpha, 0.0), (now.sigma, 0.0), (0.0, 1.0))
    )
    assert data == pytest.approx(float(before.alpha), rel=1e-5)
    assert old**2 + new**2 == pytest.approx(float(before.sigma) ** 2, rel=1e-5)
    assert new > 0.1


def test_each_step_is_taken_again_from_noise_in_between():
    """By Euler's method; the network sees what is kept as it was."""
    known = known_path("linear", 1.0, np.arange(4) == 0)
    settings = SampleConfig(solver="euler", steps=3, resamplings=3)
    draws = RANDOM.standard_normal((3, 2, *NOISE.shape)).astype(np.float32)
    drift, times = flow(lambda t, x: -x + x[..., :1], config(), settings, jnp.float32(1), known)
    found = known.end(resampled(drift, known.start(times[0]), times, jnp.asarray(draws), known.path, settings))
    x = NOISE[..., 1:]
    for step, (start, end) in enumerate([(0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1)]):
        seen = start * SOURCE[..., :1] + (1 - start) * NOISE[..., :1]
        for again in range(3):
            x = x + (end - start) * (seen - x)
            if again < 2:
                ratio = start / end
                deviation = np.sqrt((1 - start) ** 2 - (ratio * (1 - end)) ** 2)
                x = ratio * x + deviation * draws[step, again, ..., 1:]
    np.testing.assert_allclose(found[..., 1:], x, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[..., 0], SOURCE[..., 0])


def test_channels_of_a_source_get_the_mean_0_and_the_deviation_1():
    latents = RANDOM.normal(3.0, 2.0, (1, 5, 7, 2)) * np.array([1.0, 4.0])
    found = normalized_channels(np.concatenate([latents, np.full((1, 5, 7, 1), 2.0)], axis=-1))
    np.testing.assert_allclose(found.mean(axis=(0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(found.std(axis=(0, 1, 2)), [1, 1, 0], rtol=1e-5, atol=1e-6)
    asked = {"source": PICTURE, "mask": None, "strength": 0.5, "normalized": True}
    shape, pictures = Shape(16, 24), modality_of(config())
    edit = originals(pictures, [shape], **asked).edit([0], shape, pictures, None)
    np.testing.assert_allclose(edit.source.std(axis=(0, 1, 2, 3)), 1, rtol=1e-4)


# What is asked for


class Encoding:
    """Of an autoencoder that halves pictures, which are 2 z + 1 in its scale."""

    scale = LatentScale(shift=1.0, scaling=0.5)

    def encode(self, samples):
        means = np.stack([sample[:, ::2, ::2] for sample in samples]).astype(np.float32)
        return np.concatenate([2 * means + 1, np.full_like(means, 9)], axis=-1)


def test_a_latent_is_kept_only_if_all_of_its_pixels_are_and_sources_are_encoded_in_the_scale_of_training(monkeypatch):
    halving = dataclasses.replace(modality_of(config()), factor=2)
    monkeypatch.setattr(type(halving), "encoding", lambda self, autoencoder: Encoding())
    mask = np.zeros((16, 24), bool)
    mask[3, 4] = mask[8:10, 0:3] = True
    found = originals(halving, [Shape(16, 24)], PICTURE, mask, None).edit([0, 0], Shape(16, 24), halving, "one")
    redrawn = np.zeros((8, 12), bool)
    redrawn[1, 2] = redrawn[4, 0] = redrawn[4, 1] = True
    np.testing.assert_array_equal(found.kept, np.broadcast_to(~redrawn[:, :, None], (2, 1, 8, 12, 1)))
    np.testing.assert_array_equal(found.source[1, 0], PICTURE[::2, ::2])


def test_a_source_that_is_shorter_in_time_is_continued():
    pictures, sounds = modality_of(config()), modality(SOUNDS)
    clip, sound = np.stack([PICTURE, OTHER]), RANDOM.standard_normal((10, 80)).astype(np.float32)
    of_clip = originals(pictures, [Shape(16, 24, 5)], clip, None, None).of_each[0]
    np.testing.assert_array_equal(of_clip.redrawn.all(axis=(1, 2)), [False, False, True, True, True])
    shape = Shape(1, 14)
    asked = originals(sounds, [shape], sound, np.arange(14) == 3, None)
    edit = asked.edit([0], shape, sounds, None)
    assert edit.source.shape == (1, 1, 1, 14, 80)
    np.testing.assert_array_equal(edit.kept[0, 0, 0, :, 0], [1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0])


def test_sources_whose_noise_is_found_are_whole_and_have_captions():
    pictures = modality_of(config())
    found = originals(pictures, [SHAPE] * 2, PICTURE, None, None, "a cat")
    assert found.is_plain
    assert found.captions == ["a cat"] * 2
    masked = originals(pictures, [SHAPE] * 2, PICTURE, MASK, None, ["a cat", ""])
    assert not masked.is_plain
    assert masked.captions == ["a cat", ""]
    clip = Shape(16, 24, 3)
    for asked, reason in (
        (((SHAPE,), None, None, None, "a"), "'a' says what a source shows, but there is none"),
        (((SHAPE,), PICTURE, None, 0.5, "a"), "begins in the middle of a path, and invert='a' with the noise"),
        (((SHAPE,) * 3, PICTURE, None, None, ["a"]), "one caption or a list of 3, but there are 1"),
        (((clip,), PICTURE, None, None, "a"), "noise is found for a whole source, but this one is shorter"),
        (((SHAPE,), None, None, None, None, True), "normalized changes the channels of a source, but there is none"),
        (((SHAPE,), PICTURE, MASK, None, None, True), "normalized changes a source, but a mask or its length keeps"),
    ):
        with pytest.raises(ValueError, match=reason):
            originals(pictures, *asked)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ((None, MASK, None), "a mask says what is drawn anew of a source, but there is none"),
        ((None, None, 0.5), "strength=0.5 says what is drawn anew of a source"),
        ((PICTURE, None, None), "at strength 1 nothing of the source is left"),
        ((PICTURE, None, 1.5), "strength=1.5 must be between 0"),
        ((PICTURE, None, float("nan")), "strength=nan must be between 0"),
        ((PICTURE[:8], MASK, None), "the size of what is drawn, 16 x 24, or be shorter in time, but has 8 x 24"),
        ((np.stack([PICTURE] * 2), MASK, None), "16 x 24, or be shorter in time, but has 2 frames of 16 x 24"),
        (
            (PICTURE, MASK[:8], None),
            r"a mask must have the size of what is drawn, 16 x 24, but has the shape \(8, 24\)",
        ),
        ((PICTURE, MASK.astype(float), None), "a mask must hold booleans, True where .* holds float64"),
        (([PICTURE] * 2, MASK, None), "one source for all samples or a list of 3, one for each, but there are 2"),
        ((PICTURE / 255, MASK, None), r"a source must be pixels, uint8 .* but is float64 \(16, 24, 3\)"),
        ((np.zeros((1, 16, 24, 4)), MASK, None), "latents of a source must have 3 channels"),
        ((np.full((1, 16, 24, 3), np.nan), MASK, None), "finite numbers only"),
    ],
)
def test_what_cannot_be_edited_is_refused(asked, reason):
    with pytest.raises(ValueError, match=reason):
        originals(modality_of(label_config()), [SHAPE] * 3, *asked)
