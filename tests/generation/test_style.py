"""Samples in one style: attention shared with a reference, what it depends on, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.config import SampleConfig
from lumina_jax.generation.composition import PictureRegion
from lumina_jax.generation.style import StyleOf, check_reference
from lumina_jax.modalities import Shape, modality_of
from lumina_jax.models.shared_attention import Sharing
from tests.compiled import compiled
from tests.generation.test_pipeline import MASK, OTHER, PICTURE, SETTINGS, SHAPE, Words, new_pipeline
from tests.training.tiny import config, label_config

RANDOM = np.random.default_rng(0)
IDS = np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1, 2, 1, 2, 2, 1, 0, 0]])
SAMPLES = PICTURE / 127.5 - 1


def values(heads=4):
    return (2 * RANDOM.standard_normal((2, 8, heads, 6)) + 1).astype(np.float32)


def sharing(strength):
    return Sharing(jnp.full(2, strength, jnp.float32), (), "xla")


# Attention


def test_queries_of_a_sample_get_the_mean_and_the_deviation_of_its_reference():
    """Of each head and channel, over tokens; those of the reference stay as they are."""
    x = values()
    found = np.asarray(sharing(1).matched(jnp.asarray(x), jnp.asarray(IDS)))
    for row, ids in enumerate(IDS):
        of_reference = x[row, ids == 2]
        np.testing.assert_array_equal(found[row, ids == 2], of_reference)
        np.testing.assert_allclose(found[row, ids == 1].mean(axis=0), of_reference.mean(axis=0), atol=1e-4)
        np.testing.assert_allclose(found[row, ids == 1].std(axis=0), of_reference.std(axis=0), rtol=1e-2, atol=1e-3)
        order = np.argsort(x[row, ids == 1], axis=0)
        np.testing.assert_array_equal(np.argsort(found[row, ids == 1], axis=0), order)


def test_a_sample_sees_itself_and_its_reference_in_one_softmax_and_the_reference_itself_alone():
    """Held against sums over the keys of each query; two query heads share a key head."""
    q, k, v, alone = values(), values(2), values(2), values()
    found = np.asarray(sharing(0.25).attended(*map(jnp.asarray, (alone, q, k, v, IDS))))
    for row, query, head in np.ndindex(2, 8, 4):
        expected = alone[row, query, head]
        if IDS[row, query] == 1:
            seen = [key for key in range(8) if IDS[row, key] > 0]
            weights = np.exp([q[row, query, head] @ k[row, key, head // 2] / np.sqrt(6) for key in seen])
            both = sum(weight * v[row, key, head // 2] for weight, key in zip(weights, seen)) / weights.sum()
            expected = 0.75 * expected + 0.25 * both
        np.testing.assert_allclose(found[row, query, head], expected, rtol=1e-4, atol=1e-5)


# What is drawn


@pytest.fixture(scope="module")
def pipeline():
    return new_pipeline(config(), Words())


def drawn(pipeline, prompts=("cat", "dog"), settings=SETTINGS, **options):
    return [frames[0].astype(int) for frames in pipeline(prompts, settings, shape=SHAPE, **{"batch": 2} | options)]


def test_one_program_serves_styles_and_the_reference_itself_is_drawn_as_without_one(pipeline, caplog):
    plain = drawn(pipeline, ["cat", "dog", "sea"])
    with compiled(caplog) as programs:
        first = drawn(pipeline, ["cat", "dog", "sea"], style=StyleOf(0))
        second = drawn(pipeline, ["cat", "dog", "sea"], style=StyleOf(1))
        none = drawn(pipeline, ["cat", "dog", "sea"], style=StyleOf(1, strength=0.0))
        weak = drawn(pipeline, ["cat", "dog", "sea"], style=StyleOf(1, strength=0.3))
        drawn(pipeline, ["owl", "sky"], style=StyleOf(1), seeds=[4, 5])
    assert programs.count("draw") == 1
    for index in range(3):
        assert np.abs(none[index] - plain[index]).max() <= 1
    assert np.abs(first[0] - plain[0]).max() <= 1
    assert np.abs(second[1] - plain[1]).max() <= 1
    assert min(np.abs(first[index] - plain[index]).mean() for index in (1, 2)) > 0.5
    assert min(np.abs(second[index] - first[index]).mean() for index in (0, 2)) > 0.5
    assert 0.1 < np.abs(weak[0] - plain[0]).mean() < np.abs(second[0] - plain[0]).mean()


@pytest.mark.slow
def test_a_sample_depends_on_its_reference_and_not_on_its_neighbours(pipeline):
    settings = dataclasses.replace(SETTINGS, solver="adaptive_heun", rtol=0.1, atol=0.1)
    for asked in (settings, dataclasses.replace(SETTINGS, solver="euler_maruyama")):
        first = drawn(pipeline, ["cat", "dog", "sea"], asked, style=StyleOf(0), seeds=[1, 2, 3])
        other = drawn(pipeline, ["cat", "owl", "sea"], asked, style=StyleOf(0), seeds=[1, 7, 3])
        np.testing.assert_array_equal(first[2], other[2])
        assert np.any(first[1] != other[1])
        assert np.any(first[2] != drawn(pipeline, ["cat", "sea"], asked, style=StyleOf(0), seeds=[8, 3])[1])


@pytest.mark.slow
def test_the_style_of_a_picture_is_that_of_the_sample_it_was(pipeline):
    """Its noise is found again, by steps small enough."""
    settings = SampleConfig(solver="rk4", steps=60, guidance=1.5)
    noise = np.asarray(jax.random.normal(jax.random.key(3), (1, 1, 16, 24, 3)))
    picture = np.asarray(pipeline.latents(noise, ["cat"], settings))[0]
    again = np.asarray(pipeline.latents(pipeline.invert(picture[None], ["cat"], settings), ["cat"], settings))[0]
    np.testing.assert_allclose(again, picture, rtol=1e-2, atol=1e-2)
    by_picture = drawn(pipeline, ["dog"], settings, batch=1, style=StyleOf(picture, "cat"))
    plain = drawn(pipeline, ["dog"], settings, batch=1)
    other = drawn(pipeline, ["dog"], settings, batch=1, style=StyleOf(-picture, "cat"))
    assert np.abs(by_picture[0] - plain[0]).mean() > 0.3
    assert np.abs(by_picture[0] - other[0]).mean() > 0.3


@pytest.mark.slow
def test_styles_compose_with_regions_masks_strength_negatives_labels_and_sizes(pipeline):
    negative = dataclasses.replace(SETTINGS, negative="sun", negative_scale=0.5)
    asked = {"source": PICTURE, "mask": MASK, "strength": 0.8, "also": [("sea", 0.5)], "settings": negative}
    regions = [PictureRegion("owl", (0, 0, 9, 16), 2)]
    plain = drawn(pipeline, regions=regions, **asked)
    for style in (StyleOf(1), StyleOf(OTHER, "fox", 0.9)):
        found = drawn(pipeline, regions=regions, style=style, **asked)
        np.testing.assert_array_equal(found[0][~MASK], PICTURE[~MASK])
        assert np.abs(found[0] - plain[0])[MASK].mean() > 0.3
    assert np.abs(drawn(pipeline, regions=regions, style=StyleOf(1), **asked)[1] - plain[1]).max() <= 1
    larger, twice = Shape(32, 48), dataclasses.replace(negative, rope_watershed=0.3, resamplings=2)
    whole = asked | {
        "source": np.kron(PICTURE, np.ones((2, 2, 1), np.uint8)),
        "mask": np.kron(MASK, np.ones((2, 2), bool)),
    }
    found, once = (
        pipeline(
            ["cat", "dog"], seeds=[4, 7], shape=larger, regions=regions, style=StyleOf(1), **whole | {"settings": one}
        )
        for one in (twice, dataclasses.replace(twice, resamplings=1))
    )
    np.testing.assert_array_equal(found[0][0][~whole["mask"]], whole["source"][~whole["mask"]])
    assert np.any(found[0] != once[0])
    labels = new_pipeline(label_config())
    for shape in (SHAPE, Shape(24, 40)):
        both = labels(["3", "5"], SETTINGS, shape=shape, batch=2, style=StyleOf(0))
        alone = labels(["3", "5"], SETTINGS, shape=shape, batch=2)
        assert np.abs(both[0].astype(int) - alone[0]).max() <= 1
        assert np.abs(both[1].astype(int) - alone[1]).mean() > 0.3


@pytest.mark.parametrize(
    ("style", "changes", "reason"),
    [
        (StyleOf(2), {}, "the style is that of sample 2, but samples have the indices 0 to 1"),
        (StyleOf(-1), {}, "indices 0 to 1"),
        (StyleOf(0, "a cat"), {}, "sample 0 has its prompt"),
        (StyleOf(0, strength=1.5), {}, "the strength of a style must be between 0 and 1, but is 1.5"),
        (StyleOf(0, strength=float("nan")), {}, "must be between 0 and 1"),
        (StyleOf(PICTURE[:8]), {}, "the size of what is drawn, 16 x 24, or be shorter"),
        (StyleOf(SAMPLES[None]), {"solver": "sde_heun"}, "only the probability flow can be walked back"),
    ],
)
def test_styles_that_cannot_be_taken_are_refused(style, changes, reason):
    with pytest.raises(ValueError, match=reason):
        check_reference(style, None, SampleConfig(**changes), [SHAPE] * 2, modality_of(config()))


def test_samples_of_several_sizes_have_no_common_style():
    with pytest.raises(ValueError, match="samples in one style must have one size, but have 2"):
        check_reference(StyleOf(0), None, SETTINGS, [SHAPE, Shape(16, 32)], modality_of(config()))
