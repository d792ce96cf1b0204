"""Analytic FLOPs against those of the traced network, product by product, and against a count by hand."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from lumina_jax.aot.flops import Load, forward_flops, sampling_flops, step_flops
from lumina_jax.aot.hlo import read_hlo
from lumina_jax.aot.traffic import work
from lumina_jax.config import ModelConfig
from lumina_jax.models.flag_dit import FlagDiT, abstract_model
from lumina_jax.models.presets import preset
from lumina_jax.tokens import TextFeatures, Tokens

MODEL = ModelConfig(
    layers=2,
    heads=4,
    kv_heads=2,
    width=64,
    attention_width=96,
    text_width=40,
    mlp_multiple_of=8,
    remat="none",
    attention="xla",
    compute_dtype="float32",
)
LOAD = Load(rows=2, tokens=48, text_tokens=10)
VARIANTS = {
    "text": MODEL,
    "label": dataclasses.replace(MODEL, conditioning="label", predict_sigma=True),
    "next": dataclasses.replace(MODEL, block="next", final_shift=False, own_text_query=True),
    "dit": dataclasses.replace(MODEL, block="dit"),
    "dit of phonemes": dataclasses.replace(MODEL, block="dit", text_layers=1, positions="rope"),
    "phonemes": dataclasses.replace(MODEL, text_layers=2),
}


def prediction(model, load):
    """A function of the parameters, and the abstract parameters."""
    graph, abstract = abstract_model(model)
    rows, length = load.rows, load.tokens
    whole = jnp.ones((rows, length), jnp.int32)
    patches = jnp.ones((rows, length, model.patch_values))
    tokens = Tokens(patches, whole, jnp.ones((rows, length, 4), jnp.int32), whole)
    text = TextFeatures(
        jnp.ones((rows, load.text_tokens, model.text_width)), jnp.ones((rows, load.text_tokens), jnp.int32)
    )
    condition = jnp.zeros((rows, 1), jnp.int32) if model.conditioning == "label" else text

    def predict(parameters):
        network: FlagDiT = nnx.merge(graph, parameters)
        return jnp.sum(network(tokens, jnp.full((rows, 1), 0.5), condition, keep_sigma=True))

    return predict, nnx.to_pure_dict(abstract)


def traced_flops(jaxpr, times=1):
    """2 m n k of every dot_general, in loops as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        inner = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
        for value in equation.params.values():
            for nested in value if isinstance(value, tuple | list) else [value]:
                if hasattr(nested, "jaxpr"):
                    total += traced_flops(nested.jaxpr, inner)
                elif hasattr(nested, "eqns"):
                    total += traced_flops(nested, inner)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            depth = math.prod(shape[index] for index in contracted)
            total += times * 2 * depth * math.prod(equation.outvars[0].aval.shape)
    return total


def pooling(model, load):
    """The mean over each caption is a product with ones in the program, and no product in the count."""
    return 0 if model.conditioning == "label" else 2 * load.rows * load.text_tokens * model.caption_width


def test_forward_flops_are_those_of_every_product_in_the_traced_network():
    predict, parameters = prediction(MODEL, LOAD)
    traced = traced_flops(jax.make_jaxpr(predict)(parameters).jaxpr)
    assert forward_flops(MODEL, LOAD).total == traced - pooling(MODEL, LOAD)


@pytest.mark.parametrize("name", VARIANTS)
def test_step_flops_are_those_of_every_product_of_the_gradient(name):
    model = VARIANTS[name]
    predict, parameters = prediction(model, LOAD)
    traced = traced_flops(jax.make_jaxpr(jax.value_and_grad(predict))(parameters).jaxpr)
    backward = pooling(model, LOAD) if model.text_layers else 0  # a trained encoder needs the gradient of the mean
    assert step_flops(model, LOAD).total == traced - pooling(model, LOAD) - backward


def test_step_flops_of_a_frozen_base_are_those_of_a_gradient_that_no_matrix_has():
    """The gradient of a bias of the first layer, in which every activation after it has one."""
    model = VARIANTS["label"]
    predict, parameters = prediction(model, LOAD)

    def of_bias(bias):
        return predict(parameters | {"patch_embedding": parameters["patch_embedding"] | {"bias": bias}})

    parameters = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), parameters)
    traced = traced_flops(jax.make_jaxpr(jax.value_and_grad(of_bias))(parameters["patch_embedding"]["bias"]).jaxpr)
    assert step_flops(model, LOAD, frozen=True).total == traced
    assert step_flops(model, LOAD, frozen=True).attention == step_flops(model, LOAD).attention


@pytest.mark.slow
def test_the_compiled_program_does_as_many_whether_layers_are_a_loop_or_not():
    load = Load(rows=1, tokens=32, text_tokens=4)
    for unroll in (1, MODEL.layers):
        model = dataclasses.replace(VARIANTS["label"], unroll=unroll)
        predict, parameters = prediction(model, load)
        compiled = jax.jit(jax.grad(predict)).lower(parameters).compile()
        done = work(read_hlo(compiled.as_text()))
        wanted = step_flops(model, load).total
        assert done.product_flops + done.batched_flops == pytest.approx(wanted, rel=0.02)
        if unroll > 1:  # XLA's own count adds what is no product, and counts loops once
            assert wanted < compiled.cost_analysis()["flops"] < 1.15 * wanted


@pytest.mark.parametrize("name", ["text", "next", "dit"])
def test_step_flops_are_within_2_percent_of_what_xla_counts_without_a_loop(name):
    """XLA adds what is no matrix product; that is little at this width."""
    size = {"layers": 2, "unroll": 2, "width": 512, "heads": 8, "kv_heads": None, "attention_width": None}
    model, load = dataclasses.replace(VARIANTS[name], **size), Load(rows=1, tokens=64, text_tokens=8)
    predict, parameters = prediction(model, load)
    counted = jax.jit(jax.grad(predict)).lower(parameters).cost_analysis()["flops"]
    assert counted == pytest.approx(step_flops(model, load).total, rel=0.02)


def test_a_block_counted_by_hand():
    """Width 3072, 32 heads of 96, feed-forward 8192, 100 tokens that all see one another."""
    model = preset("3B", conditioning="label")
    found = forward_flops(model, Load(rows=1, tokens=100))
    assert found.projections == 32 * 4 * 2 * 100 * 3072 * 3072
    assert found.attention == 32 * 2 * 2 * 100 * 100 * 3072
    assert found.feed_forward == 32 * 3 * 2 * 100 * 3072 * 8192
    assert found.text == 0


def test_samples_that_share_a_row_attend_to_their_own_tokens_only():
    alone = forward_flops(MODEL, Load(rows=4, tokens=50, samples=1, text_tokens=10))
    packed = forward_flops(MODEL, Load(rows=1, tokens=200, samples=4, text_tokens=10))
    assert packed == alone


def test_sampling_makes_keys_of_captions_once_and_has_rows_for_each_caption():
    one = forward_flops(MODEL, LOAD).total
    keys = 4 * 2 * 10 * 40 * MODEL.key_heads * MODEL.head_width * MODEL.layers
    assert sampling_flops(MODEL, LOAD, calls=7, captions=1) == 7 * (one - keys) + keys
    assert sampling_flops(MODEL, LOAD, calls=7, captions=3) == 3 * sampling_flops(MODEL, LOAD, calls=7, captions=1)
