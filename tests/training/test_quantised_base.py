"""Adapters of a base whose matrices are held in 8 or 4 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lumina_jax.config import FinetuneConfig
from lumina_jax.models.adapters import fingerprint, new_trained
from lumina_jax.models.precision import parameter_types
from lumina_jax.models.quantised import held, is_quantised
from lumina_jax.training.header import trained_line
from lumina_jax.training.state import create_state
from lumina_jax.weights.modules import named_parameters
from tests.training import tiny
from tests.training.test_adapters import LORA, MESH, base, gradients, nonzero


def quantised(kind):
    return jax.tree.map(held, base(), parameter_types(tiny.config().model, kind))


def dequantised(parameters):
    def one(leaf):
        return leaf.dequantised(jnp.float32) if is_quantised(leaf) else leaf

    return jax.tree.map(one, parameters, is_leaf=is_quantised)


@pytest.mark.parametrize(
    ("kind", "remat"),
    [
        ("int8", "offload"),
        ("nf4", "none"),
        ("nf4", "offload"),
        ("int8", "full"),
    ],
)
@pytest.mark.slow
def test_gradients_of_adapters_are_those_with_the_matrices_that_the_codes_stand_for(kind, remat):
    """With "offload" the layers are gathered and differentiated as on a mesh."""
    settings = LORA.replace(base=kind)
    config = tiny.config(finetune=settings, model={"remat": remat})
    trained = nonzero(new_trained(settings, quantised(kind), jax.random.key(0)))
    expected_loss, expected = gradients(tiny.config(finetune=LORA), trained, dequantised(quantised(kind)))
    loss, found = gradients(config, trained, quantised(kind), divided=remat == "offload")
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    assert found.keys() == expected.keys()
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(theirs).max() > 0
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * float(np.abs(theirs).max()))


@pytest.mark.parametrize("kind", ["int8", pytest.param("nf4", marks=pytest.mark.slow)])
def test_a_state_holds_the_matrices_of_the_layers_in_codes_and_keeps_its_fingerprint(kind):
    config = tiny.config(finetune=LORA.replace(base=kind))
    state = create_state(config, MESH(), base())
    assert (state.base.fingerprint == fingerprint(base())).all()
    assert (state.base.fingerprint == fingerprint(state.base.parameters)).all()
    held_so = {name for name, leaf in named_parameters(state.base.parameters).items() if is_quantised(leaf)}
    inputs = {name: leaf.shape[-2] for name, leaf in named_parameters(base()).items() if name.endswith(".kernel")}
    expected = {name for name, size in inputs.items() if name.startswith("blocks.") and (kind == "int8" or size >= 16)}
    assert held_so == expected
    assert len(held_so) > 5
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state.base.parameters))
    assert f"the base {size / 1e6:.3g} MB in {kind}" in trained_line(config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"last_layers": 1}, r"parameters train themselves in float32, but finetune.base='int8' does not hold"),
        ({"parameters": ("blocks.mlp.up.kernel",)}, "does not hold blocks.mlp.up.kernel so; give finetune.rank"),
        ({}, "finetune.base='int8' is for a base that does not train, but all parameters do"),
    ],
)
def test_parameters_that_train_themselves_are_not_quantised(settings, message):
    with pytest.raises(ValueError, match=message):
        new_trained(FinetuneConfig(base="int8", **settings), quantised("int8"), jax.random.key(0))


def test_biases_train_on_a_quantised_base():
    trained = new_trained(FinetuneConfig(base="nf4", parameters=("biases",)), quantised("nf4"), jax.random.key(0))
    assert {value.dtype for value in trained.values()} == {jnp.dtype(jnp.float32)}
