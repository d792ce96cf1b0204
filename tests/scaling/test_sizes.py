"""Sizes from words: the shape that is kept, and the parameters that come out."""

import dataclasses

import pytest

from lumina_jax.config import ModelConfig
from lumina_jax.scaling.sizes import NEAR, ModelSize, parse_size, size_for, sized
from lumina_jax.training.state import parameter_count

MODEL = ModelConfig(
    layers=4, heads=4, width=64, patch_size=4, channels=3, text_width=24, mlp_multiple_of=8, compute_dtype="float32"
)


def count(model, size):
    return parameter_count(sized(model, size))


def test_a_shape_is_taken_as_it_is_and_the_width_of_a_head_is_kept():
    assert parse_size("6x96", MODEL) == ModelSize(layers=6, width=96, heads=6)
    assert parse_size("6x96x3", MODEL) == ModelSize(layers=6, width=96, heads=3)


def test_a_number_of_parameters_becomes_a_model_near_it_whose_shape_is_that_of_the_configuration():
    """Every model of this family within the tolerance is counted; none is nearer to 16 of width a layer."""
    wanted = 400_000
    found = parse_size("400K", MODEL)
    every = [ModelSize(layers=layers, width=16 * heads, heads=heads) for layers in range(3, 8) for heads in range(3, 6)]
    near = [size for size in every if abs(count(MODEL, size) / wanted - 1) <= NEAR]
    assert found in near
    assert len(near) > 1
    ratios = [max(size.width / size.layers / 16, 16 * size.layers / size.width) for size in near]
    assert max(found.width / found.layers / 16, 16 * found.layers / found.width) == min(ratios)


def test_sizes_grow_with_the_parameters_that_are_asked_for():
    counts = [count(MODEL, size_for(MODEL, wanted)) for wanted in (3e4, 3e5)]
    assert counts == [pytest.approx(wanted, rel=0.15) for wanted in (3e4, 3e5)]


def test_groups_of_heads_and_the_width_of_attention_follow_the_heads():
    model = dataclasses.replace(MODEL, kv_heads=2, attention_width=96)  # heads of 24, of which two share keys
    found = sized(model, parse_size("2x128", model))
    assert (found.heads, found.kv_heads, found.attention_width, found.head_width) == (8, 4, 192, 24)
    odd = sized(model, ModelSize(layers=2, width=80, heads=5))
    assert (odd.kv_heads, odd.attention_width) == (5, 120)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("10", "the nearest, 1x16, has"),
        ("many", "a size is a number of parameters"),
        ("0x64", "model.layers=0 must be at least 1"),
        ("4x65", "multiples of 16"),
        ("4x64x5", "the width of a head must be a multiple of 2"),
        ("-3", "a size is a number of parameters"),
    ],
)
def test_sizes_that_no_model_has_are_refused_with_the_remedy(word, said):
    with pytest.raises(ValueError, match=said):
        parse_size(word, MODEL)
