"""Weights in bfloat16: exactly the matrices that a model casts where it uses them, and almost all of a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumina_jax.config import ModelConfig
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.models.precision import abstract_parameters, cast, device_bytes, matrix_type, parameter_types
from lumina_jax.models.presets import preset
from lumina_jax.tokens import TextFeatures, tokens_of

SMALL = {"layers": 1, "heads": 2, "width": 16, "patch_size": 2, "channels": 1, "mlp_multiple_of": 8}
TEXT = {"conditioning": "text", "text_width": 6, "compute_dtype": "bfloat16", "remat": "none"}
LABELS = {"conditioning": "label", "classes": 3, "compute_dtype": "bfloat16", "remat": "none"}
MODELS = [
    pytest.param(TEXT | {"own_text_query": True, "text_layers": 1}, id="flag with text layers"),
    pytest.param(LABELS | {"block": "dit", "nextline": False, "nextframe": False}, id="labels", marks=pytest.mark.slow),
    pytest.param(TEXT | {"block": "next"}, id="next", marks=pytest.mark.slow),
    pytest.param(TEXT | {"block": "dit", "nextline": False, "nextframe": False}, id="dit", marks=pytest.mark.slow),
]
HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def random_values(config):
    random = np.random.default_rng(0)
    shapes = nnx.to_pure_dict(abstract_model(config)[1])
    return jax.tree.map(lambda leaf: jnp.asarray(random.standard_normal(leaf.shape, np.float32)), shapes)


def bits(config, parameters):
    """The bits of the prediction for a picture of random values."""
    random = np.random.default_rng(1)
    picture = random.standard_normal((1, 1, 4, 4, 1)).astype(np.float32)
    markers = {"nextline": config.nextline, "nextframe": config.nextframe}
    tokens = tokens_of(picture, patch_size=2, **markers)[0]
    text = TextFeatures(random.standard_normal((1, 3, 6)).astype(np.float32), np.ones((1, 3), np.int32))
    condition = text if config.conditioning == "text" else np.ones((1, 1), np.int32)
    graph, inputs = abstract_model(config)[0], jax.tree.map(jnp.asarray, (tokens, condition))
    predict = jax.jit(lambda parameters: nnx.merge(graph, parameters)(inputs[0], jnp.full((1, 1), 0.3), inputs[1]))
    found = np.asarray(predict(parameters))
    assert np.isfinite(found).all()
    return found.view(np.uint32)


@pytest.mark.parametrize("changes", MODELS)
def test_a_model_that_computes_in_bfloat16_predicts_the_same_bits_from_bfloat16_weights(changes):
    config = ModelConfig(**SMALL, **changes)
    whole = random_values(config)
    half = jax.tree.map(lambda value, dtype: value.astype(dtype), whole, parameter_types(config, "auto"))
    assert (matrix_type(whole), matrix_type(half)) == ("float32", "bfloat16")
    np.testing.assert_array_equal(bits(config, half), bits(config, whole))


@pytest.mark.parametrize(("size", "most"), [("S", 0.53), ("5B", 0.501), ("Next-2B", 0.502), ("DiT-XL", 0.503)])
def test_bfloat16_weights_take_half_the_memory(size, most):
    config = preset(size)
    shardings = jax.tree.map(lambda _: HERE, parameter_types(config, "float32"))
    whole, half = (device_bytes(abstract_parameters(config, weights, shardings)) for weights in ("float32", "bfloat16"))
    assert 0.5 < half / whole < most


def test_a_cast_deletes_what_changes_and_keeps_the_rest():
    config = ModelConfig(**SMALL, **LABELS)
    before = random_values(config)
    after = cast(before, config, "bfloat16")
    changed = jax.tree.map(lambda old, new: old.is_deleted() and new.dtype == jnp.bfloat16, before, after)
    kept = jax.tree.map(lambda old, new: old is new, before, after)
    assert all(jax.tree.leaves(jax.tree.map(lambda one, other: one != other, changed, kept)))
    assert changed["blocks"]["mlp"]["up"]["kernel"]
    assert kept["label_embedding"]["table"]
