"""Drawing pictures: what a picture depends on, and that one program serves all prompts."""

import copy
import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from lumina_jax.config import SampleConfig
from lumina_jax.encoders.image_vae import ImageVae
from lumina_jax.generation.composition import PictureRegion
from lumina_jax.generation.not_drawn import NotDrawn, lost_on_the_way
from lumina_jax.generation.pipeline import Pipeline
from lumina_jax.modalities import Shape
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.tokens import TextFeatures
from tests.compiled import compiled
from tests.training.tiny import config, label_config

SETTINGS = SampleConfig(solver="euler", steps=3, guidance=3.0)
SHAPE = Shape(16, 24)
LATENTS = (1, 16, 24, 3)
PICTURE, OTHER = np.random.default_rng(0).integers(0, 256, (2, SHAPE.height, SHAPE.width, 3), dtype=np.uint8)
MASK = np.zeros((SHAPE.height, SHAPE.width), bool)
MASK[3:9, 5:20] = True
"""Its edges are within patches."""


class Words:
    """A text encoder that knows each letter."""

    width, max_tokens, fingerprint = 6, 5, "words"

    def encode(self, captions):
        features = np.zeros((len(captions), 5, 6), np.float32)
        for row, caption in enumerate(captions):
            for index, letter in enumerate(f"^{caption}"[:5]):
                features[row, index] = np.sin(np.arange(1, 7) * ord(letter))
        lengths = np.array([min(5, len(caption) + 1) for caption in captions])
        return TextFeatures(features, (np.arange(5) < lengths[:, None]).astype(np.int32))


def random_parameters(model):
    shapes = nnx.to_pure_dict(abstract_model(model)[1])
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return jax.tree.unflatten(tree, [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)])


def new_pipeline(settings, encoder=None):
    return Pipeline(settings, abstract_model(settings.model)[0], random_parameters(settings.model), encoder)


@pytest.fixture(scope="module")
def pipeline():
    return new_pipeline(config(), Words())


def draw(pipeline, prompts, seed=0, batch=2, shape=SHAPE, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return [frames[0] for frames in pipeline(prompts, settings, seed=seed, shape=shape, batch=batch)]


def test_one_program_serves_every_prompt_seed_guidance_negative_and_time_shift(pipeline, caplog):
    with compiled(caplog) as programs:
        draw(pipeline, ["a", "b"])
        draw(pipeline, ["something else"], seed=5)
        draw(pipeline, ["a", "b", "c"], guidance=1.0)
        draw(pipeline, ["a"], guidance=7.5, time_shift=4.0, negative="b")
    assert programs.count("draw") == 1


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(pipeline):
    first, again, other = (draw(pipeline, ["cat"], seed=seed)[0] for seed in (3, 3, 4))
    assert first.shape == (16, 24, 3)
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_a_picture_does_not_depend_on_its_neighbours(pipeline):
    together = draw(pipeline, ["cat", "dog", "sea"], batch=2)
    changed = draw(pipeline, ["cat", "owl", "sea"], batch=2)
    assert np.abs(together[0].astype(int) - changed[0]).max() <= 1
    assert np.abs(together[2].astype(int) - changed[2]).max() <= 1
    assert np.abs(together[1].astype(int) - changed[1]).max() > 1


def test_with_steps_by_tolerance_a_picture_depends_neither_on_its_neighbours_nor_on_copies_that_fill_a_batch(pipeline):
    noise = np.asarray(jax.random.normal(jax.random.key(1), (3, *LATENTS)))
    settings = dataclasses.replace(SETTINGS, solver="dopri5", rtol=0.05, atol=0.05, guidance=1.0)

    def drawn(rows, prompts, scale=1.0):
        scales = np.array([1.0, scale, scale])[:, None, None, None, None]
        return np.asarray(pipeline.latents(noise[np.array(rows)] * scales, prompts, settings))[0]

    first = drawn([0, 1, 2], ["cat", "dog", "sea"])
    np.testing.assert_array_equal(first, drawn([0, 2, 1], ["cat", "owl", "sea"], scale=5.0))
    np.testing.assert_array_equal(first, drawn([0, 0, 0], ["cat", "cat", "cat"]))


def test_a_sample_with_a_seed_is_the_first_of_that_seed_alone_whatever_its_neighbours(pipeline):
    settings = dataclasses.replace(SETTINGS, solver="dopri5", rtol=0.05, atol=0.05)

    def drawn(prompts, **seeds):
        return pipeline(prompts, settings, shape=SHAPE, batch=3, **seeds)

    together = drawn(["cat", "dog", "sea", "dog"], seeds=[3, 2**40, 3, 7])
    for index, (prompt, seed) in enumerate([("cat", 3), ("dog", 2**40), ("sea", 3), ("dog", 7)]):
        np.testing.assert_array_equal(together[index], drawn([prompt], seed=seed)[0])
    assert np.any(together[1] != together[3])


def test_what_is_the_negative_of_itself_is_drawn_without_guidance(pipeline):
    """v_text + s (v_text - v_text)."""
    plain, pushed = draw(pipeline, ["cat"], guidance=1.0)[0], draw(pipeline, ["cat"], negative="dog")[0]
    assert np.abs(draw(pipeline, ["cat"], negative="cat")[0].astype(int) - plain).max() <= 1
    assert np.abs(pushed.astype(int) - draw(pipeline, ["cat"])[0]).max() > 1


def test_a_negative_with_a_scale_is_taken_off_the_guidance_towards_itself(pipeline, caplog):
    """v_null + 5 (v_text - v_null) - 2 (v_text - v_null), which is guidance by 3; one program serves all scales."""
    with compiled(caplog) as programs:
        found = draw(pipeline, ["cat"], guidance=5.0, negative="cat", negative_scale=2.0)[0]
        away = draw(pipeline, ["cat"], guidance=3.0, negative="dog", negative_scale=2.0)[0]
        alone, pushed = (
            draw(pipeline, ["cat"], guidance=1.0, negative="dog", negative_scale=scale)[0] for scale in (0.0, 2.0)
        )
    assert programs.count("draw") == 1
    assert np.abs(found.astype(int) - draw(pipeline, ["cat"], guidance=3.0)[0]).max() <= 1
    assert np.abs(away.astype(int) - found).max() > 1
    plain = draw(pipeline, ["cat"], guidance=1.0)[0]
    assert np.abs(alone.astype(int) - plain).max() <= 1
    assert np.abs(pushed.astype(int) - plain).max() > 1


def test_every_picture_has_noise_of_its_own_whatever_the_batch(pipeline):
    of_two, of_one = draw(pipeline, ["a"] * 4, batch=2), draw(pipeline, ["a"] * 4, batch=1)
    for one, other in zip(of_two, of_one):
        assert np.abs(one.astype(int) - other).max() <= 1
    assert len({picture.tobytes() for picture in of_two}) == 4


def test_prompt_guidance_steps_and_shift_change_the_picture(pipeline):
    base = draw(pipeline, ["cat"])[0]
    for change in ({"guidance": 1.0}, {"steps": 4}, {"time_shift": 6.0}, {"guided_channels": 1}):
        assert np.any(draw(pipeline, ["cat"], **change)[0] != base), change


def test_guidance_one_is_the_network_without_guidance(pipeline):
    plain = draw(pipeline, ["cat"], guidance=1.0)[0]
    almost = draw(pipeline, ["cat"], guidance=1.0 + 1e-6)[0]
    assert np.abs(plain.astype(int) - almost).max() <= 1


@pytest.mark.parametrize(
    ("solver", "path", "prediction"),
    [
        ("midpoint", "gvp", "velocity"),
        ("heun", "vp", "velocity"),
        ("rk4", "linear", "noise"),
        ("dopri5", "linear", "velocity"),
        ("dpmpp_2m", "linear", "data"),
        ("euler_maruyama", "vp", "score"),
        ("sde_heun", "linear", "velocity"),
    ],
)
def test_every_solver_path_and_prediction_draws_something_finite(solver, path, prediction):
    """Each with one of the others; the Euler method on the linear path draws all other pictures here."""
    drawer = new_pipeline(config(flow={"path": path, "prediction": prediction}), Words())
    assert draw(drawer, ["cat"], solver=solver, steps=4)[0].std() > 1


ODE = SampleConfig(solver="midpoint", steps=20, guidance=1.0)


def test_a_clip_has_as_many_frames_as_are_asked_for(pipeline):
    settings = dataclasses.replace(SETTINGS, steps=2)
    [clip] = pipeline(["a"], settings, seed=0, shape=Shape(16, 24, frames=3), batch=1)
    assert clip.shape == (3, 16, 24, 3)
    assert np.abs(clip[0].astype(int) - clip[1]).max() > 0
    with pytest.raises(ValueError, match="at least one frame, but frames=0"):
        pipeline(["a"], settings, seed=0, shape=Shape(16, 24, frames=0), batch=1)


def test_inverting_a_picture_gives_the_noise_it_was_drawn_from(pipeline):
    noise = np.asarray(jax.random.normal(jax.random.key(1), (2, *LATENTS)))
    drawn = np.asarray(pipeline.latents(noise, ["cat", "dog"], ODE))
    assert np.abs(drawn - noise).max() > 0.5
    np.testing.assert_allclose(pipeline.invert(drawn, ["cat", "dog"], ODE), noise, atol=2e-3)
    other = np.asarray(pipeline.invert(drawn, ["dog", "cat"], ODE))
    assert np.abs(other - noise).max() > 0.05


@pytest.mark.slow
def test_the_density_of_an_untrained_model_is_that_of_its_noise():
    """With a zero final layer nothing moves: data is noise, and its density the normal one."""
    still = new_pipeline(config(), Words())
    still.parameters["final_layer"]["linear"] = jax.tree.map(np.zeros_like, still.parameters["final_layer"]["linear"])
    x = np.asarray(jax.random.normal(jax.random.key(2), (2, *LATENTS)))
    found = still.log_density(x, ["cat", "dog"], ODE, seed=0)
    np.testing.assert_allclose(found, -0.5 * (x**2 + np.log(2 * np.pi)).sum(axis=(1, 2, 3, 4)), rtol=1e-5)


@pytest.mark.parametrize(("solver", "kind"), [("sde_heun", "stochastic"), ("dpmpp_2m", "for denoising alone")])
def test_a_path_of_noise_or_of_predicted_data_cannot_be_walked_back(pipeline, solver, kind):
    with pytest.raises(ValueError, match=f"solver='{solver}' is {kind}; choose an ODE solver"):
        pipeline.invert(np.zeros((1, *LATENTS)), ["cat"], SampleConfig(solver=solver))


def test_pictures_of_other_sizes_than_those_of_training_are_drawn_with_scaled_rotary_embedding(pipeline):
    large = Shape(40, 32)
    scaled = draw(pipeline, ["cat"], shape=large, steps=1)[0]
    plain = draw(pipeline, ["cat"], shape=large, steps=1, rope_factor=1.0, proportional_attention=False)[0]
    assert scaled.shape == (40, 32, 3)
    assert np.any(scaled != plain)


def test_labels_are_prompts_of_a_label_model():
    labels = new_pipeline(label_config())
    one, other = draw(labels, ["3", "4"])
    assert np.any(one != other)
    with pytest.raises(ValueError, match="by a label from 0 to 47, but got prompt='cat'"):
        draw(labels, ["cat"])


def test_a_size_that_patches_do_not_divide_is_refused(pipeline):
    with pytest.raises(ValueError, match="width must be a positive multiple of the 8 pixels of a patch"):
        draw(pipeline, ["cat"], shape=Shape(16, 20))


def test_samples_that_are_not_finite_are_named_and_leave_the_others_alone(pipeline):
    """A caption whose features are infinite, in the middle of a batch."""

    class Infinite(Words):
        def encode(self, captions):
            features, segment_ids = super().encode(captions)
            features[[caption == "bad" for caption in captions]] = np.inf
            return TextFeatures(features, segment_ids)

    spoiled = copy.copy(pipeline)
    spoiled.encoder = Infinite()
    asked = {"settings": SETTINGS, "seed": 0, "shape": SHAPE, "batch": 2}
    found = dict(spoiled.drawn(["cat", "bad", "sea"], **asked))
    assert isinstance(found[1], NotDrawn)
    assert "not finite; use less guidance" in found[1].reason
    good = pipeline(["cat", "x", "sea"], **asked)
    for index in (0, 2):
        np.testing.assert_array_equal(found[index], good[index])
    with pytest.raises(ValueError, match="1 of 3 samples could not be drawn; that of 'bad': its values"):
        spoiled(["cat", "bad", "sea"], **asked)


def test_an_adaptive_solver_that_gives_up_says_what_helps(pipeline):
    settings = dataclasses.replace(SETTINGS, solver="dopri5", rtol=1e-7, atol=1e-12)
    reason = lost_on_the_way(settings)
    assert "dopri5 found no steps that keep its errors below rtol=1e-07 and atol=1e-12" in reason
    assert "--solver midpoint" in reason


def test_seeds_of_more_than_32_bits_draw_other_pictures_and_impossible_ones_are_refused(pipeline):
    first, *others = (draw(pipeline, ["cat"], seed=seed)[0] for seed in (0, 2**32, 2**40, 2**64 - 1))
    assert all(np.any(first != other) for other in others)
    for seed in (-1, 2**64, 10**20):
        with pytest.raises(ValueError, match="must be between 0 and"):
            draw(pipeline, ["cat"], seed=seed)


class Decoder(ImageVae):
    """An autoencoder that fails on the second sample."""

    def __init__(self):
        """It has no network."""

    def decode(self, values):
        decoded = np.array(values)
        decoded[1] = np.nan
        return decoded


def test_what_an_autoencoder_makes_that_is_not_finite_is_no_black_picture(pipeline):
    decoding = copy.copy(pipeline)
    decoding.autoencoders = {"image": Decoder()}
    found = dict(decoding.drawn(["cat", "dog"], SETTINGS, seed=0, shape=SHAPE, batch=2))
    assert found[0].shape == (1, 16, 24, 3)
    assert "the autoencoder makes values of it that are not finite" in found[1].reason


# Editing


def edited(pipeline, prompts=("cat", "dog"), settings=SETTINGS, **options):
    return [frames[0] for frames in pipeline(prompts, settings, shape=SHAPE, batch=2, **{"seed": 5} | options)]


def test_one_program_serves_every_source_mask_strength_and_seed_and_what_is_kept_is_the_source(pipeline, caplog):
    with compiled(caplog) as programs:
        kept = edited(pipeline, source=PICTURE, mask=MASK)
        weak = edited(pipeline, source=[PICTURE, OTHER], mask=[MASK, ~MASK], strength=0.5, seeds=[1, 2], seed=0)
        none = edited(pipeline, source=PICTURE, strength=0.02)
    assert programs.count("draw") == 1
    for picture, source, mask in [*zip(kept, [PICTURE] * 2, [MASK] * 2), *zip(weak, [PICTURE, OTHER], [MASK, ~MASK])]:
        np.testing.assert_array_equal(picture[~mask], source[~mask])
        assert np.abs(picture[mask].astype(int) - source[mask]).mean() > 10
    change = [np.abs(np.subtract(pictures, PICTURE, dtype=int)).mean() for pictures in (none, edited(pipeline))]
    assert change[0] < 0.5 * change[1]


def test_strength_0_returns_the_source_and_strength_1_is_plain_sampling_bit_for_bit(pipeline):
    np.testing.assert_array_equal(edited(pipeline, source=PICTURE, strength=0.0), [PICTURE, PICTURE])
    np.testing.assert_array_equal(edited(pipeline, source=PICTURE, strength=1.0), edited(pipeline))
    shift = dataclasses.replace(SETTINGS, time_shift=3.0)
    almost = edited(pipeline, source=PICTURE, strength=1 - 1e-7, settings=shift)
    assert np.abs(np.subtract(almost, edited(pipeline, settings=shift), dtype=int)).max() <= 1


def test_latents_are_sources_too(pipeline):
    latents = np.asarray(PICTURE[None] / 127.5 - 1, np.float32)
    asked = {"mask": MASK, "strength": 0.7}
    np.testing.assert_array_equal(
        edited(pipeline, source=latents, **asked), edited(pipeline, source=PICTURE[None], **asked)
    )


# Several captions


def test_a_region_of_everything_is_the_plain_prompt_bit_for_bit(pipeline):
    plain = edited(pipeline, ["cat", "cat"])
    whole = np.ones((SHAPE.height, SHAPE.width), bool)
    for area, blend in (((0, 0, 24, 16), 5), (whole, 0), (whole, 4)):
        regions = [PictureRegion("owl", (2, 3, 9, 9)), PictureRegion("cat", area, blend)]
        np.testing.assert_array_equal(edited(pipeline, ["sea", "dog"], regions=regions[1:]), plain)
        with pytest.raises(ValueError, match=r"nothing of regions\[0\] is left, because later regions cover it"):
            edited(pipeline, ["sea", "dog"], regions=regions)
