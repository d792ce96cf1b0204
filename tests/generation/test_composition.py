"""Several captions: where each has a share, what is drawn with them, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from lumina_jax.config import SampleConfig
from lumina_jax.generation.composition import PictureRegion as Region
from lumina_jax.generation.composition import check_captions, composition
from lumina_jax.modalities import Shape, modality_of
from tests.compiled import compiled
from tests.generation.test_pipeline import LATENTS, MASK, PICTURE, SETTINGS, SHAPE, Words, new_pipeline
from tests.modalities.test_modalities import SOUNDS, modality
from tests.training.tiny import config, label_config

PICTURES = modality_of(config())
HALVING = dataclasses.replace(PICTURES, factor=2)


def shares(regions, also=(), shape=SHAPE, of=PICTURES):
    return composition(of, shape, also, regions)


def test_later_regions_cover_earlier_ones_and_the_prompt_has_the_rest():
    found = shares([Region("left", (0, 0, 14, 16)), Region("middle", (10, 4, 20, 12)), Region("mask", MASK)])
    assert found.captions == (None, "left", "middle", "mask")
    expected = np.zeros((16, 24), int)
    expected[:, :14] = 1
    expected[4:12, 10:20] = 2
    expected[MASK] = 3
    np.testing.assert_array_equal(found.shares, expected == np.arange(4)[:, None, None])


def test_weights_share_what_no_region_covers():
    found = shares([Region("left", (0, 0, 8, 16))], also=[("a", 0.5), ("b", 2.5)])
    np.testing.assert_allclose(found.shares[:, 3, 9], [0.25, 0.125, 0.625, 0], rtol=1e-6)
    np.testing.assert_array_equal(found.shares[:, 3, 7], [0, 0, 0, 1])


@pytest.mark.parametrize("blend", [2, 3, 6, 7])
def test_the_share_falls_linearly_across_a_blended_edge_and_not_at_the_border(blend):
    """From 1 to 0 within `blend` pixels, half of it at the edge itself: the part of a window that is in the box."""
    found = shares([Region("left", (0, 0, 11, 16), blend)]).shares
    expected = np.clip((11 - (np.arange(24) + 0.5)) / blend + 0.5, 0, 1)
    np.testing.assert_allclose(found[1], np.broadcast_to(expected, (16, 24)), atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-6)


def test_a_value_of_a_latent_belongs_to_the_captions_of_its_pixels():
    found = shares([Region("box", (1, 0, 4, 1))], of=HALVING)
    assert found.shares.shape == (2, 8, 12)
    np.testing.assert_array_equal(found.shares[1, 0, :4], [0.25, 0.5, 0, 0])
    assert found.shares[1].sum() == 0.75


def test_a_caption_without_a_share_is_left_out():
    whole = shares([Region("left", (0, 0, 12, 16)), Region("right", (12, 0, 24, 16))], also=[("nowhere", 2.0)])
    assert whole.captions == ("left", "right")
    assert composition(PICTURES, SHAPE) is None


def test_captions_of_a_whole_sound_may_be_mixed_but_sounds_have_no_regions():
    sounds = modality(SOUNDS)
    np.testing.assert_array_equal(composition(sounds, Shape(1, 14), [("b", 1.0)]).shares, np.full((2, 1, 14), 0.5))
    with pytest.raises(ValueError, match="regions are parts of pictures, but this draws sounds"):
        composition(sounds, Shape(1, 14), regions=[Region("a", (0, 0, 3, 1))])


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        (
            Region("a", (5, 0, 5, 16)),
            r"the box of regions\[0\] must have 0 <= left < right <= 24 .* but is 5,0,5,16",
        ),
        (Region("a", (9, 0, 5, 16)), "0 <= left < right <= 24"),
        (Region("a", (0, 8, 5, 8)), "0 <= top < bottom <= 16"),
        (Region("a", (0, 0, 25, 16)), "24 x 16 pixels .* but is 0,0,25,16"),
        (Region("a", (-1, 0, 5, 16)), "but is -1,0,5,16"),
        (Region("a", (0, 0, 5, 17)), "but is 0,0,5,17"),
        (Region("a", (0, 0, 5)), "left, top, right and bottom in whole pixels"),
        (Region("a", (0, 0, 5.5, 16)), "in whole pixels"),
        (Region("a", np.zeros((16, 24), bool)), r"the mask of regions\[0\] has no pixel in it"),
        (Region("a", MASK[:8]), r"24 x 16 pixels .* has the shape \(8, 24\)"),
        (Region("a", MASK.astype(int)), "must hold booleans, one .* holds int64"),
        (Region("a", (0, 0, 5, 5), -1), "blend=-1 must be a number of pixels from 0 to 24"),
        (Region("a", (0, 0, 5, 5), 25), "blend=25 must be"),
        (Region("a", (0, 0, 5, 5), 1.5), "blend=1.5 must be"),
    ],
)
def test_areas_that_do_not_fit_are_refused(region, reason):
    with pytest.raises(ValueError, match=reason):
        shares([region])


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_that_are_not_positive_are_refused(weight):
    with pytest.raises(ValueError, match=r"a weight must be above 0 and at most 1000, but also\[1\] has"):
        shares([], also=[("a", 1.0), ("b", weight)])


def test_captions_that_a_model_cannot_read_are_refused():
    for also, regions in (([(" ", 1.0)], []), ([], [Region("", (0, 0, 1, 1))])):
        with pytest.raises(ValueError, match=r"\[0\] has an empty caption; say what it shows"):
            check_captions(config(), also, regions)
    with pytest.raises(ValueError, match="by a label from 0 to 47, but got prompt='cat'"):
        check_captions(label_config(), [], [Region("cat", (0, 0, 1, 1))])


# What is drawn

ONE_STEP = dataclasses.replace(SETTINGS, steps=1)


@pytest.fixture(scope="module")
def pipeline():
    return new_pipeline(config(), Words())


def drawn(pipeline, prompts=("cat", "dog"), settings=ONE_STEP, **options):
    return pipeline(prompts, settings, shape=SHAPE, batch=2, **{"seed": 5} | options)


def test_one_program_serves_as_many_captions_and_each_value_moves_by_the_mean_of_their_velocities(pipeline, caplog):
    """Held against the Euler method over plain calls, one for each caption."""
    noise = np.asarray(jax.random.normal(jax.random.key(1), (2, *LATENTS)))
    texts = (["cat", "dog"], ["sky"] * 2, ["owl"] * 2)
    scales = [dataclasses.replace(ONE_STEP, guidance=scale) for scale in (3.0, 1.0)]
    alone = np.stack([[np.asarray(pipeline.latents(noise, text, scale)) for scale in scales] for text in texts])
    parts = composition(pipeline.modality(), SHAPE, [("sky", 3.0)], [Region("owl", (13, 0, 24, 16), 4)])
    with compiled(caplog) as programs:
        found = [np.asarray(pipeline.latents(noise, texts[0], scale, composed=parts)) for scale in scales]
        boxes = drawn(pipeline, regions=[Region("owl", (0, 0, 12, 16)), Region("sea", (12, 0, 20, 16))])
        masks = drawn(pipeline, regions=[Region("sun", MASK, 3), Region("a", (0, 0, 3, 2))], seed=8)
        also = drawn(pipeline, also=[("owl", 2.0), ("sea", 0.25)])
    assert programs.count("draw") == 1
    assert len({picture.tobytes() for picture in [*boxes, *masks, *also]}) == 6
    owl = np.clip((np.arange(24) + 0.5 - 11) / 4, 0, 1)
    expected = np.einsum("nw,nsbfhwc->sbfhwc", [(1 - owl) / 4, 3 * (1 - owl) / 4, owl], alone)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(found - alone[0]).max() > 0.05


@pytest.mark.slow
def test_regions_compose_with_negatives_masks_strength_seeds_clips_and_sizes(pipeline):
    """What a mask keeps is the source, and each picture is the first that its seed draws."""
    negative = dataclasses.replace(SETTINGS, negative="sun", negative_scale=0.5)
    asked = {"source": PICTURE, "mask": MASK, "strength": 0.8, "also": [("sea", 0.5)], "settings": negative}
    regions = [Region("owl", (0, 0, 9, 16), 2)]
    together = drawn(pipeline, seeds=[4, 7], seed=0, regions=regions, **asked)
    alone = drawn(pipeline, ["dog"], seed=7, regions=regions, **asked)[0]
    np.testing.assert_array_equal(together[1], alone)
    np.testing.assert_array_equal(alone[0][~MASK], PICTURE[~MASK])
    assert np.any(alone != drawn(pipeline, ["dog"], seed=7, **asked)[0])
    large = pipeline(["cat"], ONE_STEP, regions=regions, shape=Shape(40, 32, frames=2), batch=1)[0]
    plain = pipeline(["cat"], ONE_STEP, shape=Shape(40, 32, frames=2), batch=1)[0]
    is_changed = (large != plain).any(axis=(1, 3))
    assert is_changed[:, :9].any(axis=1).all()
    assert not is_changed[:, 12:].any()


@pytest.mark.slow
def test_regions_of_labels_by_steps_of_ddpm_that_learn_their_variance():
    """The variance has the same shares."""
    settings = label_config(flow={"path": "ddpm", "prediction": "noise"}, model={"predict_sigma": True})
    labels, asked = new_pipeline(settings), SampleConfig(solver="ddpm", steps=2, guidance=2.0)

    def shown(label, *regions):
        return labels([label], asked, regions=regions, shape=SHAPE, batch=1, seed=1)[0]

    one, other = shown("3"), shown("4")
    np.testing.assert_array_equal(shown("4", Region("3", (0, 0, 24, 16))), one)
    mixed = shown("4", Region("3", (0, 0, 12, 16)))
    assert np.any(mixed != one)
    assert np.any(mixed != other)
