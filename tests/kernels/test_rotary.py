"""QK-norm and rotary embedding by the kernel, against the modules that define them, gradients included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.kernels.rotary import HeadsAffine, refusal, rotary_lanes, turned_heads
from lumina_jax.models.layers import normalize
from lumina_jax.models.rope import RopeScaling, rotate, rotation

EPS = 1e-5


def defined(projections, norms, by, width):
    """The definition, in float32."""
    found = []
    for x, norm in zip(projections, norms):
        y = x.astype(jnp.float32)
        y = y if norm is None else normalize(y, EPS) * norm.weight + norm.bias
        found.append(rotate(y.reshape(*x.shape[:2], -1, width), by).reshape(x.shape))
    return found


def case(width, heads, length, dtype=jnp.float32, norms=True):
    """Projections of 2 rows, norms and angles along two axes where they divide the head, and gradients of results."""
    random = np.random.default_rng(length)
    draw = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)  # noqa: E731
    projections = [(draw(2, length, count * width) * 3 + 1).astype(dtype) for count in heads]
    affine = [HeadsAffine(1 + draw(count * width), draw(count * width)) if norms else None for count in heads]
    positions = jnp.asarray(random.integers(0, 90, (2, length, 2 if width % 4 == 0 else 1)))
    by = rotation(positions, head_width=width, theta=100.0, scaling=RopeScaling(1.5, 2.0))
    return projections, affine, by, [draw(*x.shape).astype(dtype) for x in projections]


@pytest.mark.parametrize(
    ("width", "heads", "length"),
    [(96, (4,), 16), (128, (1,), 40), pytest.param(72, (32, 16), 300, marks=pytest.mark.slow)],
)
def test_the_kernel_and_its_gradients_are_those_of_the_norm_and_the_rotation(width, heads, length):
    projections, norms, by, gradients = case(width, heads, length)
    lanes = rotary_lanes(*by)

    @functools.partial(jax.jit, static_argnums=0)
    def both(function, projections, norms):
        found, pullback = jax.vjp(function, projections, norms)
        return found, pullback(gradients)

    ours = functools.partial(turned_heads, lanes=lanes, eps=EPS, interpret=True)
    found, pulled = both(ours, projections, norms)
    wanted, defined_pulled = both(functools.partial(defined, by=by, width=width), projections, norms)
    for one, other in zip(found, wanted):
        np.testing.assert_allclose(one, other, atol=2e-5)
    for one, other in zip(jax.tree.leaves(pulled), jax.tree.leaves(defined_pulled)):
        np.testing.assert_allclose(one, other, atol=3e-5 * float(np.abs(other).max()))


def test_projections_without_a_norm_are_turned_alone():
    projections, norms, by, gradients = case(64, (4, 2), 40, norms=False)
    lanes = rotary_lanes(*by)
    found, pullback = jax.vjp(lambda x: turned_heads(x, norms, lanes, eps=EPS, interpret=True), projections)
    wanted, defined_pullback = jax.vjp(lambda x: defined(x, norms, by, 64), projections)
    for one, other in zip([*found, *pullback(gradients)[0]], [*wanted, *defined_pullback(gradients)[0]]):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_bfloat16_is_rounded_once():
    projections, norms, by, _ = case(96, (4,), 24, jnp.bfloat16)
    [found] = turned_heads(projections, norms, rotary_lanes(*by), eps=EPS, interpret=True)
    [wanted] = defined(projections, norms, by, 96)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), wanted, rtol=2**-8, atol=1e-5)


def test_widths_that_do_not_fill_registers_are_refused():
    assert refusal((3072, 768), 96) is None
    assert refusal((2304, 2304), 72) is None
    assert "multiples of 128" in str(refusal((576,), 72))
