"""What lies between two branches by the kernel, against its formula, gradients included; and where it serves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from lumina_jax.chips import CHIPS
from lumina_jax.kernels import residual
from lumina_jax.kernels.residual import Entering, Leaving, between_branches
from lumina_jax.models.branches import BranchInput, BranchOutput, between
from lumina_jax.models.layers import ParameterKeys, PlainLayerNorm, RMSNorm

EPS = 1e-3


def normed(x):
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + EPS)


def defined(x, y, left, entered, shift, *, sandwich):
    if y is not None:
        x = x + left[:, None] * (normed(y) if sandwich else y)
    if entered is None:
        return x, None
    return x, normed(x) * entered[:, None] + (0 if shift is None else shift[:, None])


def by_kernel(x, y, left, entered, shift, *, sandwich, interpret=True):
    leaving = None if y is None else Leaving(y, left, EPS if sandwich else None)
    entering = None if entered is None else Entering(entered, shift, EPS)
    return between_branches(x, leaving, entering, interpret=interpret)


def case(tokens, width, parts):
    """x, and of y, left, entered and shift those that `parts` names; all float32, each with its own scale."""
    random = np.random.default_rng(tokens)
    shapes = {"y": (2, tokens, width), "left": (2, width), "entered": (2, width), "shift": (2, width)}
    arrays = {name: jnp.asarray(2 * random.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    x = jnp.asarray(random.standard_normal((2, tokens, width)) + 0.5, jnp.float32)
    return [x, *(arrays[name] if name in parts else None for name in shapes)]


def results_of(arguments, sandwich, interpret=True):
    """Outputs and gradients of the kernel and of the formula."""

    @jax.jit
    def both(arguments):
        found = []
        for function in (functools.partial(by_kernel, interpret=interpret), defined):
            out, pullback = jax.vjp(functools.partial(function, sandwich=sandwich), *arguments)
            gradient = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), out)
            found.append(jax.tree.leaves((out, pullback(gradient))))
        return found

    return both(arguments)


@pytest.mark.parametrize(
    ("tokens", "parts", "sandwich"),
    [
        (40, "y left entered shift", False),  # the last block ends beyond the row: a layer of Flag-DiT
        (64, "y left entered", True),  # a layer of Next-DiT
        (40, "y left", True),
        (40, "entered shift", False),
    ],
)
def test_the_kernel_and_its_gradients_are_those_of_the_formula(tokens, parts, sandwich):
    found, wanted = results_of(case(tokens, 256, parts.split()), sandwich)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6 * float(jnp.abs(other).max()))


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [40, 128])
def test_the_kernels_have_no_races_and_read_nothing_beyond_their_blocks(tokens):
    checked = pltpu.InterpretParams(detect_races=True, out_of_bounds_reads="uninitialized" if tokens == 40 else "raise")
    found, wanted = results_of(case(tokens, 128, ["y", "left", "entered", "shift"]), True, checked)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6 * float(jnp.abs(other).max()))


def test_what_the_next_branch_reads_is_the_norm_of_the_activations_as_they_are_written():
    x, y, left, entered, _ = case(32, 256, ["y", "left", "entered"])
    out, z = by_kernel(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16), left, entered, None, sandwich=True)
    wanted = x.astype(jnp.bfloat16).astype(jnp.float32) + left[:, None] * normed(
        y.astype(jnp.bfloat16).astype(jnp.float32)
    )
    assert out.dtype == z.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), wanted, rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(
        z.astype(jnp.float32), normed(out.astype(jnp.float32)) * entered[:, None], rtol=2**-8, atol=1e-5
    )


def test_blocks_are_large_and_leave_room_in_what_libtpu_gives_every_kernel():
    for length, width, arrays, rows in (
        (4096, 2304, 4, 256),
        (4096, 2304, 6, 128),
        (4224, 4096, 6, 128),
        (40, 2304, 6, 32),
    ):
        x = jax.ShapeDtypeStruct((2, length, width), jnp.bfloat16)
        grid = residual._Grid([x] * arrays, [])
        assert grid.rows == rows
        assert 0 <= grid.steps[1] * grid.steps[2] * grid.rows - length < rows
        assert grid._bytes(rows) <= 12 * 2**20


def test_the_kernel_serves_wide_activations_on_the_chips_where_it_is_faster(monkeypatch):
    x = jnp.zeros((2, 64, 256), jnp.bfloat16)
    assert "v6e" in residual.refusal(x)
    monkeypatch.setattr(residual, "known_chip", lambda: CHIPS["v5e"])
    assert "v6e" in residual.refusal(x)
    monkeypatch.setattr(residual, "known_chip", lambda: CHIPS["v6e"])
    assert residual.refusal(x) is None
    assert "float32" in residual.refusal(x.astype(jnp.float32))
    assert "multiple of 128" in residual.refusal(x[:, :, :200])


def a_norm(seed, width=256):
    norm = RMSNorm(ParameterKeys(0), width, EPS)
    norm.weight[...] = jnp.asarray(np.random.default_rng(seed).standard_normal(width), jnp.float32)
    return norm


@pytest.fixture
def served(monkeypatch):
    """The kernel runs wherever it is wanted; the list of its calls."""
    calls = []

    def run(*arguments):
        calls.append(arguments)
        return between_branches(*arguments, interpret=True)

    monkeypatch.setattr("lumina_jax.models.branches.refusal_here", lambda auto: None)
    monkeypatch.setattr(residual, "refusal", lambda x: None)
    monkeypatch.setattr(residual, "between_branches", run)
    return calls


@pytest.mark.parametrize("parts", ["output following", "output", "following"])
@pytest.mark.parametrize("block", ["flag", "next"])
def test_a_layer_has_the_same_values_by_the_kernel(served, parts, block):
    x, y, gate, scale, shift = case(32, 256, ["y", "left", "entered", "shift"])
    gate, scale, shift = gate[:, None], scale[:, None], shift[:, None]
    output = BranchOutput(y, gate, a_norm(1) if block == "next" else None) if "output" in parts else None
    following = BranchInput(a_norm(2), scale, shift if block == "flag" else None) if "following" in parts else None
    found = between(x, output, following, kernels=True)
    assert len(served) == 1
    wanted = between(x, output, following, kernels=False)
    assert len(served) == 1
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * float(jnp.abs(other).max()))


def test_packed_rows_divided_rows_and_other_norms_are_left_to_xla(served):
    x, y, gate, scale, _ = case(32, 256, ["y", "left", "entered"])
    of_tokens = jnp.broadcast_to(gate[:, None], x.shape)
    between(x, BranchOutput(y, of_tokens), BranchInput(a_norm(1), scale[:, None]), kernels=True)
    between(x, BranchOutput(y, gate[:, None]), BranchInput(PlainLayerNorm(EPS), scale[:, None]), kernels=True)

    def traced(x, y, gate):
        return between(x, BranchOutput(y, gate[:, None]), None, kernels=True)

    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2,), ("sequence",))):
        jax.eval_shape(traced, x, y, gate)
    assert not served
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((2, 1), ("fsdp", "sequence"))):
        jax.eval_shape(traced, x, y, gate)
    assert len(served) == 1


@pytest.mark.parametrize("kernels", [True, False])
def test_a_kept_output_is_not_computed_again_and_the_kernel_reads_it_unrounded(served, kernels):
    """JAX rounds a kept value again, in a pass of its own, before anything else in the forward pass reads it."""
    x, y, gate, *_ = case(32, 256, ["y", "left"])

    def loss(y, kept_as):
        output = BranchOutput(jnp.sin(y), gate[:, None], a_norm(1), kept_as)
        return jnp.sum(between(x, output, None, kernels=kernels)[0] * x)

    policy = jax.checkpoint_policies.save_only_these_names("kept")
    layer = jax.checkpoint(loss, policy=policy, static_argnums=1)
    kept, again = (str(jax.make_jaxpr(jax.grad(layer), static_argnums=1)(y, name)) for name in ("kept", None))
    assert [program.count(" sin ") for program in (kept, again)] == [1, 2]
    assert ("reduce_precision" in kept) == (not kernels)
