"""muP against tables 3 and 8 of Tensor Programs V, which are written down here for each parameter by its name."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.nn import initializers

from lumina_jax.config import ModelConfig
from lumina_jax.interop.layouts import LAYOUTS
from lumina_jax.models.flag_dit import FlagDiT, abstract_model
from lumina_jax.models.layers import param, small_normal, xavier
from lumina_jax.models.parametrization import parameter_rules, scale_initial_values, width_ratios
from lumina_jax.parallel.axes import FSDP
from lumina_jax.tokens import TextFeatures
from lumina_jax.training.checkpoint import check_same_model
from tests.models.random_models import random_parameters
from tests.training.tiny import packed_batch

BASE = ModelConfig(
    layers=2,
    heads=4,
    width=48,
    patch_size=8,
    channels=3,
    text_width=6,
    classes=5,
    mlp_multiple_of=8,
    compute_dtype="float32",
    remat="none",
)
"""At 48 and 192 the feed-forward has exactly 8/3 of the width."""
KINDS = {
    "hidden": r"attention\.(query|key|value|out|text_query)\.kernel|mlp\.(gate|up|down)\.kernel"
    r"|modulation\.linear\.kernel|time_embedding\.outer\.kernel|text_layers\.layers\..*kernel",
    "input": r"patch_embedding\.kernel|other_embeddings\..*kernel|time_embedding\.inner\.kernel|label_embedding\.table"
    r"|blocks\.text\.(key|value)\.kernel|caption_pooling\.linear\.kernel|text_layers\.embedding\.kernel",
    "output": r"final_layer\.(linear|others\.\d)\.kernel",
    "vector": r"bias|weight|gate|_token",
}
"""The kinds of table 3, by a pattern for the end of a name; the first that matches holds."""
LEARNED_TEXT = {"hidden": r"blocks\.text\.(key|value)\.kernel|caption_pooling\.linear\.kernel|" + KINDS["hidden"]}
"""With an encoder of text that is trained along, the features of captions are as wide as the model."""
VARIANTS = {
    "flag": BASE,
    "next": dataclasses.replace(BASE, block="next", rope_axes=2, own_text_query=True, qk_norm=False),
    "dit": dataclasses.replace(BASE, block="dit", qk_norm=False),
    "label": dataclasses.replace(BASE, conditioning="label"),
    "phonemes": dataclasses.replace(BASE, text_layers=1),
}


def mup(config, base=BASE.width, **changes):
    return dataclasses.replace(config, parametrization="mup", base_width=base, **changes)


def wide(config, factor=4):
    return dataclasses.replace(config, width=factor * config.width, heads=factor * config.heads)


def named(config):
    state = nnx.to_flat_state(nnx.state(FlagDiT(config, rngs=nnx.Rngs(0))))
    return {".".join(map(str, path)): np.asarray(variable[...]) for path, variable in state}


def rules(config):
    found = jax.tree.leaves_with_path(
        parameter_rules(abstract_model(config)[1], config), is_leaf=lambda node: hasattr(node, "rate")
    )
    return {jax.tree_util.keystr(path, simple=True, separator="."): rule for path, rule in found}


def kind(name, config):
    table = LEARNED_TEXT | {other: KINDS[other] for other in KINDS if other != "hidden"}
    patterns = table if config.text_layers else KINDS
    return next(kind for kind, pattern in patterns.items() if re.search(f"({pattern})$", name))


@pytest.mark.parametrize("variant", ["flag", "label"])
def test_initial_values_at_the_base_width_are_those_of_the_standard_parametrization_bit_for_bit(variant):
    standard, same = named(VARIANTS[variant]), named(mup(VARIANTS[variant]))
    assert standard.keys() == same.keys()
    for name, values in standard.items():
        np.testing.assert_array_equal(values, same[name], err_msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rates_of_adamw_follow_table_3(variant):
    """Hidden and output matrices 1 / width, all others constant."""
    config = mup(wide(VARIANTS[variant]))
    found = rules(config)
    expected = {name: {"hidden": 1 / 4, "output": 1 / 4}.get(kind(name, config), 1.0) for name in found}
    assert {name: rule.rate for name, rule in found.items()} == expected
    assert set(expected.values()) == {1.0, 0.25}


@pytest.mark.parametrize("variant", ["flag", "phonemes"])
def test_deviations_of_initial_values_follow_table_3(variant):
    """As 1 / sqrt(width) for hidden matrices and constant for inputs; Xavier at the base has both fans in it."""
    before, config = named(mup(VARIANTS[variant])), mup(wide(VARIANTS[variant]))
    after, seen = named(config), set()
    for name, values in before.items():
        if values.std() == 0:
            np.testing.assert_array_equal(after[name], after[name].ravel()[0], err_msg=name)
            continue
        expected = {"hidden": 1 / 2}.get(kind(name, config), 1.0)
        seen.add(kind(name, config))
        few = 3 / np.sqrt(2 * values.size)  # three deviations of the deviation of a sample
        assert after[name].std() / values.std() == pytest.approx(expected, rel=few + 0.02), name
    assert seen == {"hidden", "input", "vector"}


def test_an_output_matrix_that_is_not_zero_starts_with_values_that_fall_as_the_width():
    class Output(nnx.Module):
        def __init__(self, width, spread):
            self.kernel = param(nnx.Rngs(0), (width, 64), spread, axes=("embed", None))

    for spread, base in ((small_normal, 0.02), (xavier, np.sqrt(2 / (48 + 64)))):
        model = Output(192, spread)
        scale_initial_values(model, mup(wide(BASE)))
        assert float(jnp.std(model.kernel[...])) == pytest.approx(base / 4, rel=0.05)


def test_the_gradient_of_the_output_layer_counts_in_clipping_as_with_the_multiplier_of_table_8():
    found = rules(mup(wide(BASE)))
    less = {name: rule.gradient for name, rule in found.items() if rule.gradient != 1}
    assert less == {"final_layer.linear.kernel": 1 / 4}


def test_what_feeds_adaln_grows_only_up_to_its_limit():
    config = mup(wide(dataclasses.replace(BASE, condition_limit=96)))
    found = rules(config)
    assert found["time_embedding.outer.kernel"].rate == 1 / 2
    assert found["blocks.modulation.linear.kernel"].rate == 1 / 2
    assert found["blocks.attention.query.kernel"].rate == 1 / 4


def test_every_logical_axis_has_a_ratio():
    assert width_ratios(mup(wide(BASE))).keys() == {*FSDP, None} - {"layers"}


def test_an_initialiser_of_unknown_deviation_is_refused_by_the_name_of_its_parameter():
    class Other(nnx.Module):
        def __init__(self):
            self.kernel = param(nnx.Rngs(0), (8, 8), initializers.he_normal(), axes=("embed", "mlp"))

    scale_initial_values(Other(), BASE)
    with pytest.raises(ValueError, match=r"kernel.*SPREADS"):
        scale_initial_values(Other(), mup(wide(BASE)))


@pytest.mark.parametrize("variant", [pytest.param("flag", marks=pytest.mark.slow), "next", "dit"])
def test_logits_of_wider_heads_are_divided_by_their_width(variant):
    """Heads of 48 instead of 12: a factor 1/2 on all queries, those of the text included."""
    standard = dataclasses.replace(wide(VARIANTS[variant]), heads=4)
    batch, t = packed_batch(rows=2), jnp.full((2, 2), 0.4)
    text = TextFeatures(*batch.condition)
    queries = r"query_norm\.(weight|bias)$" if standard.qk_norm else r"query\.(kernel|bias)$"

    def halved(path, value):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return value / 2 if re.search(queries, name) else value

    parameters = random_parameters(standard)
    graph, factored = (abstract_model(config)[0] for config in (standard, mup(standard, base_heads=4)))
    expected = nnx.merge(graph, jax.tree.map_with_path(halved, parameters))(batch.tokens, t, text)
    found = nnx.merge(factored, parameters)(batch.tokens, t, text)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    plain = nnx.merge(graph, parameters)(batch.tokens, t, text)
    assert not np.allclose(plain, expected, rtol=1e-2, atol=1e-3)


def test_logits_do_not_change_where_the_heads_keep_their_width():
    assert mup(wide(BASE)).query_factor == 1
    assert mup(wide(BASE), base_heads=4).query_factor == 1
    assert mup(dataclasses.replace(wide(BASE), heads=4), base_heads=4).query_factor == 1 / 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"parametrization": "mup"}, "needs model.base_width"),
        ({"base_width": 48}, "model.base_width=48 has a meaning with model.parametrization='mup' alone"),
        ({"base_heads": 4}, "model.base_heads=4 has a meaning"),
        ({"parametrization": "mup", "base_width": 48, "base_heads": 5}, "model.base_heads=5 must divide"),
        ({"parametrization": "mup", "base_width": 0}, "model.base_width=0 must be at least 1"),
    ],
)
def test_settings_of_mup_that_cannot_work_are_refused(settings, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        dataclasses.replace(BASE, **settings)


def test_a_run_cannot_change_its_parametrization():
    with pytest.raises(ValueError, match=r"model\.parametrization was 'standard' and is 'mup'"):
        check_same_model(BASE, mup(BASE), "a run must resume with its own model")


def test_weights_are_exported_as_they_are_unless_queries_have_a_factor():
    released = dataclasses.replace(wide(BASE), heads=4, nextframe=False, pad_token=True)
    layout = LAYOUTS["lumina"]
    assert layout.write_config(mup(released)) == layout.write_config(released)
    with pytest.raises(ValueError, match="base_heads=None, but the model has 4"):
        layout.write_config(mup(released, base_heads=4))
