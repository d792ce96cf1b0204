"""The coordinate check: flat with muP, and not without."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lumina_jax.commands.scaling import coordinate_check as command
from lumina_jax.models.attention import Attention
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.models.layers import Linear, small_normal
from lumina_jax.models.parametrization import parameter_rules, scale_initial_values
from lumina_jax.parallel.mesh import configured_mesh
from lumina_jax.scaling import coordinate_plot
from lumina_jax.scaling.coordinates import (
    LOGITS,
    CoordinateCheck,
    OutputSizes,
    _recording_graph,
    coordinate_check,
    sizes_after,
    widened,
)
from lumina_jax.training.step import NoiseAndTimes
from tests.models.random_models import random_parameters
from tests.training import tiny

MODEL = dataclasses.replace(tiny.MODEL, layers=1, width=48, heads=4)


def planted(power, width=48):
    """A check of layers that grow as a power of the width, that do not grow, and that stay zero."""
    widths = (width, 2 * width, 4 * width)
    return CoordinateCheck(
        widths,
        {
            "steep": tuple(OutputSizes(0.1 * w**power, 0.5) for w in widths),
            "steady": tuple(OutputSizes(0.3, 0.01) for _ in widths),
            "zero": tuple(OutputSizes(0.0, 0.0) for _ in widths),
        },
    )


def setting(parametrization, optimizer, block, conditioning):
    """A configuration, and a batch that does not depend on the width."""
    config = tiny.config() if conditioning == "text" else tiny.label_config()
    changes = {"layers": 1, "width": 48, "heads": 4, "block": block, "parametrization": parametrization}
    changes["base_width"] = 48 if parametrization == "mup" else None
    config = config.replace(model=changes, optimizer={"name": optimizer, "learning_rate": 2e-3})
    batch = tiny.packed_batch(rows=8)
    if conditioning == "label":
        labels = np.random.default_rng(0).integers(0, 48, batch.present.shape)
        batch = batch._replace(condition=jnp.asarray(labels, jnp.int32))
    return config, batch, configured_mesh(config.mesh)


def test_powers_of_the_width_are_recovered_and_layers_that_stay_zero_have_none():
    found = planted(0.5)
    assert found.slopes["steep"].output == pytest.approx(0.5)
    assert found.slopes["steep"].change == pytest.approx(0, abs=1e-9)
    assert found.slopes["zero"] == (None, None)
    assert found.not_flat(0.3) == ["steep"]
    assert planted(-0.5).not_flat(0.3) == ["steep"]
    assert planted(0.2).not_flat(0.3) == []


@pytest.mark.slow
def test_outputs_that_are_recorded_are_those_of_the_layers():
    config = tiny.config(model=dataclasses.replace(MODEL, layers=2))
    batch, parameters = tiny.packed_batch(rows=2), random_parameters(config.model)
    drawn = NoiseAndTimes(batch.tokens.patches, jnp.full((2, 2), 0.5))  # so that x_t is the data
    graph, recorder = _recording_graph(config.model)
    call = Attention.__call__
    found = recorder.outputs(graph, parameters, batch, drawn, config.flow)
    assert Attention.__call__ is call
    model = nnx.merge(abstract_model(config.model)[0], parameters)
    np.testing.assert_allclose(
        found["patch_embedding"][0], model.patch_embedding(batch.tokens.patches), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        found["prediction"][0], model(batch.tokens, drawn.t, batch.condition), rtol=1e-4, atol=1e-5
    )
    assert len(found["blocks"]) == len(found["blocks.mlp.down"]) == len(found[LOGITS]) == 2
    np.testing.assert_array_equal(found["blocks.mlp"][1], found["blocks.mlp.down"][1])
    assert found[LOGITS][0].shape == (2, 4, 1, 12, 12)


def test_models_are_widened_by_more_heads_or_by_wider_ones():
    grouped = dataclasses.replace(MODEL, kv_heads=2, attention_width=96)
    wide = widened(grouped, 4)
    assert (wide.width, wide.heads, wide.kv_heads, wide.attention_width) == (192, 16, 8, 384)
    assert wide.head_width == grouped.head_width
    base = dataclasses.replace(MODEL, parametrization="mup", base_width=48)
    fixed = widened(base, 4, fixed_heads=True)
    assert (fixed.heads, fixed.base_heads, fixed.head_width, fixed.query_factor) == (4, 4, 48, 0.5)


def test_a_table_names_what_is_not_flat():
    text = "\n".join(command.lines(planted(0.5), 0.3))
    assert [line.split()[0] for line in text.splitlines() if line.endswith("not flat")] == ["steep"]
    assert "1 of 3 kinds of layer are not flat within 0.3: steep" in text
    assert "all 3 kinds of layer are flat" in "\n".join(command.lines(planted(0.1), 0.3))


def test_every_number_and_a_picture_can_be_written():
    config, arguments = tiny.config(), command.Arguments()
    content = json.loads(json.dumps(command.as_json(planted(0.5), config, arguments)))
    assert content["widths"] == [48, 96, 192]
    assert content["layers"]["steep"]["power_of_output"] == pytest.approx(0.5)
    assert [name for name, one in content["layers"].items() if not one["is_flat"]] == ["steep"]
    assert coordinate_plot.drawn(planted(0.5), 0.3).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--factors", "1"], "--factors must be at least two different widths"),
        (["--steps", "0"], "--steps=0 must be at least 1"),
    ],
)
def test_what_cannot_be_checked_is_refused_before_anything_is_trained(words, said, capsys, monkeypatch):
    monkeypatch.setattr(command, "keep_memory_on_cpu", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        command.main(["emoji", *words])
    assert stopped.value.code == 1
    assert said in capsys.readouterr().err


def test_a_picture_without_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setattr(coordinate_plot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'lumina_jax\[scaling\]'"):
        coordinate_plot.check_plots()


class Perceptron(nnx.Module):
    """The smallest network with an input, a hidden and an output matrix, none of which starts at zero."""

    def __init__(self, width):
        rngs = nnx.Rngs(0)
        self.inner = Linear(rngs, 8, width, axes=(None, "embed"), bias=True)
        self.hidden = Linear(rngs, width, width, axes=("embed", "embed"))
        self.outer = Linear(rngs, width, 4, axes=("embed", None), init=small_normal)

    def __call__(self, x):
        first = jnp.tanh(self.inner(x))
        second = jnp.tanh(self.hidden(first))
        return {"first": first, "second": second, "output": self.outer(second)}


def changes_of_a_perceptron(model, steps=4):
    """The root mean square of the change of each output in a few steps of AdamW on one batch."""
    network = Perceptron(model.width)
    scale_initial_values(network, model)
    graph, state = nnx.split(network)
    rules = parameter_rules(state, model)
    first = nnx.to_pure_dict(state)
    x, target = (jax.random.normal(jax.random.key(size), (16, size)) for size in (8, 4))
    transform = optax.scale_by_adam()

    def loss(parameters):
        return jnp.mean((nnx.merge(graph, parameters)(x)["output"] - target) ** 2)

    @jax.jit
    def trained(parameters, moments):
        direction, moments = transform.update(jax.grad(loss)(parameters), moments)
        return jax.tree.map(lambda old, d, rule: old - 0.002 * rule.rate * d, parameters, direction, rules), moments

    last, moments = first, transform.init(first)
    for _ in range(steps):
        last, moments = trained(last, moments)
    before, after = (nnx.merge(graph, state)(x) for state in (first, last))
    return {name: float(jnp.sqrt(jnp.mean((after[name] - before[name]) ** 2))) for name in after}


def test_outputs_of_a_perceptron_change_as_much_at_four_times_the_width_with_mup_and_not_without():
    def slopes(**changes):
        models = [dataclasses.replace(widened(MODEL, factor), **changes) for factor in (1, 4)]
        narrow, wide = map(changes_of_a_perceptron, models)
        return {name: np.log(wide[name] / narrow[name]) / np.log(4) for name in narrow}

    flat, steep = slopes(parametrization="mup", base_width=48), slopes()
    assert all(abs(slope) < 0.15 for slope in flat.values()), flat
    assert steep["second"] > 0.3
    assert steep["output"] > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("conditioning", ["text", "label"])
@pytest.mark.parametrize("block", ["flag", "next", "dit"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_layer_of_every_block_is_flat_with_mup_and_not_without(optimizer, block, conditioning):
    """At 48, the base, both are the same; after 6 steps all layers have moved."""
    config, batch, mesh = setting("mup", optimizer, block, conditioning)
    flat = coordinate_check(config, batch, mesh, steps=6, factors=(1, 2, 4, 8))
    assert flat.not_flat(0.3) == []
    assert all(slopes.change is not None for slopes in flat.slopes.values())
    config, batch, mesh = setting("standard", optimizer, block, conditioning)
    wide = sizes_after(6, config.replace(model=widened(config.model, 8)), batch, mesh)
    steep = CoordinateCheck((48, 384), {name: (found[0], wide[name]) for name, found in flat.sizes.items()})
    assert {"prediction", "blocks.modulation"} <= set(steep.not_flat(0.3))
