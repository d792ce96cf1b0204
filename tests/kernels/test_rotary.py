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


def case(width, heads, normed, length, dtype=jnp.float32):
    """Projections of 2 rows, norms and angles along two axes where they divide the head, and gradients of results."""
    random = np.random.default_rng(length)
    draw = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)  # noqa: E731
    projections = [(draw(2, length, count * width) * 3 + 1).astype(dtype) for count in heads]
    norms = [HeadsAffine(1 + draw(n * width), draw(n * width)) if has else None for n, has in zip(heads, normed)]
    positions = jnp.asarray(random.integers(0, 90, (2, length, 2 if width % 4 == 0 else 1)))
    by = rotation(positions, head_width=width, theta=100.0, scaling=RopeScaling(1.5, 2.0))
    return projections, norms, by, [draw(*x.shape).astype(dtype) for x in projections]


@pytest.mark.parametrize(
    ("width", "heads", "normed", "length"),
    [
        (96, (4, 1), (False, True), 40),  # heads cross registers, and lanes and rows end within a block
        pytest.param(64, (4, 2), (False, False), 16, marks=pytest.mark.slow),
        pytest.param(128, (1, 3), (True, True), 40, marks=pytest.mark.slow),
        pytest.param(72, (32, 8), (True, True), 300, marks=pytest.mark.slow),
    ],
)
def test_the_kernel_and_its_gradients_are_those_of_the_norm_and_the_rotation(width, heads, normed, length):
    projections, norms, by, gradients = case(width, heads, normed, length)
    lanes = rotary_lanes(*by)

    @jax.jit
    def both(projections, norms):
        results = []
        for function in (
            functools.partial(turned_heads, lanes=lanes, eps=EPS, interpret=True),
            functools.partial(defined, by=by, width=width),
        ):
            found, pullback = jax.vjp(function, projections, norms)
            results.append((found, pullback(gradients)))
        return results

    (found, pulled), (wanted, defined_pulled) = both(projections, norms)
    for one, other in zip(found, wanted):
        np.testing.assert_allclose(one, other, atol=2e-5)
    for one, other in zip(jax.tree.leaves(pulled), jax.tree.leaves(defined_pulled)):
        np.testing.assert_allclose(one, other, atol=3e-5 * float(np.abs(other).max()))


@pytest.mark.slow
def test_bfloat16_is_rounded_once():
    projections, norms, by, _ = case(96, (4,), (True,), 16, jnp.bfloat16)
    lanes = rotary_lanes(*by)
    both = jax.jit(lambda x: (turned_heads(x, norms, lanes, eps=EPS, interpret=True), defined(x, norms, by, 96)))
    [found], [wanted] = both(projections)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), wanted, rtol=2**-8, atol=1e-5)


def test_heads_of_an_odd_width_are_refused():
    assert refusal((3072, 768), 96) is None
    assert refusal((2304, 576), 72) is None
    assert "pairs" in str(refusal((69,), 23))
