"""Sizes beyond those of training: how much the rotary embedding is scaled, and when."""

import dataclasses
import math

import pytest

from lumina_jax.config import SampleConfig
from lumina_jax.generation.extrapolation import Extent, base_length, rope_factor, rope_scaling, rope_target
from lumina_jax.models.presets import preset

FLAG, NEXT = preset("5B"), preset("Next-2B")
PATCHES = NEXT.modalities[0]
VIDEO = preset("Next-2B", rope_axes=3)
SETTINGS = SampleConfig()


@pytest.mark.parametrize(
    ("model", "size", "factor"),
    [
        (FLAG, (4, 2048, 1024), 2.0),  # twice the tokens, in one sequence
        (FLAG, (8, 2048, 1024), 4.0),
        (NEXT, (4, 2048, 2048), 2.0),  # twice the rows and twice the columns
        (NEXT, (4, 2048, 1024), 2.0**0.5),
        (NEXT, (8, 1024, 1024), 1.0),  # frames are no axis of it
        (VIDEO, (12, 2048, 1024), 3.0),  # three times the frames
        (VIDEO, (4, 2048, 2048), 2.0),
        (FLAG, (4, 1024, 1024), 1.0),
        (NEXT, (4, 512, 1024), 1.0),  # smaller: as trained
    ],
)
def test_the_factor_is_how_much_longer_coordinates_are_than_in_training(model, size, factor):
    assert rope_factor(SETTINGS, model, Extent(*size), Extent(4, 1024, 1024)) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("model", "size", "factor"),
    [
        (NEXT, (4, 2048, 1024), 1.0),  # a panorama
        (NEXT, (4, 3072, 2048), 2.0),
        (NEXT, (4, 512, 4096), 1.0),
        (VIDEO, (12, 2048, 2048), 3.0),
        (FLAG, (4, 2048, 1024), 2.0),  # tokens have no sides
    ],
)
def test_positions_that_are_squeezed_at_all_times_follow_the_shorter_side(model, size, factor):
    for watershed in (1.0, 2.0):
        settings = SampleConfig(rope_watershed=watershed)
        assert rope_factor(settings, model, Extent(*size), Extent(4, 1024, 1024)) == pytest.approx(factor)


def test_a_given_factor_is_used_as_it_is():
    assert rope_factor(SampleConfig(rope_factor=1.5), NEXT, Extent(1, 64, 64), Extent(1, 64, 64)) == 1.5


def test_positions_are_squeezed_before_the_watershed_and_frequencies_slowed_from_it_on():
    """The released Next-DiT compares with "less than"."""
    for t, expected in ((0.0, (2.0, 1.0)), (0.29, (2.0, 1.0)), (0.3, (1.0, 2.0)), (1.0, (1.0, 2.0))):
        scaling = rope_scaling(2.0, 0.3, t)
        assert (float(scaling.linear), float(scaling.ntk)) == expected


@pytest.mark.parametrize(
    ("model", "coordinates"),
    [(NEXT, 64), (FLAG, 4 * (64 * 65 + 1)), (preset("Next-2B", rope_axes=3), 100)],  # rows; tokens in order; frames
)
def test_frequencies_are_slowed_by_the_whole_factor_from_the_wave_on_that_is_as_long_as_training(model, coordinates):
    settings = SampleConfig(rope_frequency_aware=True)
    trained = Extent(100 if coordinates == 100 else 4, 128, 128)
    target = rope_target(settings, model, PATCHES, trained)
    assert 2 * math.pi * model.rope_theta**target == pytest.approx(coordinates)
    assert rope_scaling(2.0, 0.3, 0.5, target).target == target
    assert rope_target(SETTINGS, model, PATCHES, trained) is None


def test_proportional_attention_compares_with_the_tokens_of_a_training_sample():
    wide, square = Extent(1, 64, 128), Extent(1, 64, 64)
    assert base_length(SETTINGS, NEXT, PATCHES, wide, square) == 32 * 32
    assert base_length(SETTINGS, FLAG, PATCHES, wide, square) == 32 * 33  # with a [nextline] token after each row
    assert base_length(SETTINGS, FLAG, PATCHES, wide, Extent(2, 64, 64)) == 2 * (32 * 33 + 1)  # and a [nextframe] token
    assert base_length(SETTINGS, NEXT, PATCHES, square, square) is None
    assert base_length(SETTINGS, NEXT, PATCHES, square, Extent(1, 2, 2)) is None  # of one token
    assert base_length(dataclasses.replace(SETTINGS, proportional_attention=False), NEXT, PATCHES, wide, square) is None
