"""Rotary embedding along one, two and three axes, and its scalings, against complex numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.models.flag_dit import coordinates
from lumina_jax.models.rope import RopeScaling, rotate, rotation, time_aware
from lumina_jax.tokens import tokens_of

POSITIONS = np.random.default_rng(0).integers(0, 20, (2, 5, 4)).astype(np.int32)


def turned(x, points, linear=1.0, ntk=1.0, target=1.0):
    """Pair j of a head turns by coordinate j mod n, as complex numbers in float64."""
    axes, width = points.shape[-1], x.shape[-1]
    pairs = np.arange(width // 2)
    exponents = 2 * axes * (pairs // axes) / width
    slowed = ntk ** np.minimum(1, exponents / target) if target > 0 else ntk
    angles = points[..., pairs % axes] / linear * 10_000.0**-exponents / slowed
    z = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, :, None]
    return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("scaling", [(1.0, 1.0), (2.5, 1.0), (1.0, 3.0), (1.0, 3.0, 0.3), (1.0, 3.0, -0.1)])
def test_pairs_turn_by_the_coordinates_in_turn(axes, scaling):
    x = np.random.default_rng(1).standard_normal((2, 5, 3, 24)).astype(np.float32)
    points = np.asarray(coordinates(jnp.asarray(POSITIONS), axes))
    by = rotation(jnp.asarray(points), head_width=24, theta=10_000.0, scaling=RopeScaling(*scaling))
    np.testing.assert_allclose(rotate(jnp.asarray(x), by), turned(x, points, *scaling), atol=1e-5)


def test_one_axis_is_the_index_two_are_row_and_column_and_three_add_the_frame():
    tokens, _ = tokens_of(np.zeros((1, 2, 2, 3, 1), np.float32), patch_size=1, nextline=False, nextframe=False)
    positions = jnp.asarray(tokens.positions)
    assert coordinates(positions, 1)[0, :, 0].tolist() == list(range(12))
    assert coordinates(positions, 2)[0, 7:9].tolist() == [[0, 1], [0, 2]]
    assert coordinates(positions, 3)[0, 7:9].tolist() == [[1, 0, 1], [1, 0, 2]]


@pytest.mark.parametrize(("t", "expected"), [(0.29, (2.0, 1.0)), (0.3, (1.0, 2.0)), (0.31, (1.0, 2.0))])
def test_scaling_squeezes_positions_before_the_watershed_and_slows_frequencies_from_it_on(t, expected):
    assert tuple(map(float, time_aware(2.0, 0.3, t)[:2])) == expected


@pytest.mark.parametrize("watershed", [*np.linspace(0.05, 1, 20), 0.3, 1 / 3])
def test_a_time_at_the_watershed_is_compared_in_double_precision(watershed):
    """The released code has `if t[0] < watershed` with a float32 t and a Python float as watershed."""
    at = np.float32(watershed)
    for t in (np.nextafter(at, np.float32(-1)), at, np.nextafter(at, np.float32(2))):
        is_early = float(time_aware(2.0, float(watershed), jnp.asarray(t)).linear) == 2.0
        assert is_early == (float(t) < float(watershed)), (t, watershed)


def test_only_the_distance_between_tokens_matters_along_every_axis():
    random = np.random.default_rng(2)
    q, k = random.standard_normal((2, 2, 5, 1, 24)).astype(np.float32)

    def product(offset):
        by = rotation(jnp.asarray(POSITIONS[..., 1:] + offset), head_width=24, theta=100.0, scaling=RopeScaling())
        return jnp.einsum("blhd,bnhd->bln", rotate(jnp.asarray(q), by), rotate(jnp.asarray(k), by))

    np.testing.assert_allclose(product(np.array([3, 1, 4])), product(0), atol=1e-4)
