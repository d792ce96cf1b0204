"""DiT against its mathematics in torch, and for any weights: packing, text, positions, norms, and the layouts without
it."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lumina_jax.config import ModelConfig
from lumina_jax.interop.fitting import reasons_against
from lumina_jax.models.flag_dit import FlagDiT, abstract_model
from lumina_jax.models.presets import preset
from lumina_jax.models.rope import RopeScaling, sine_positions
from lumina_jax.parallel.tensor import Tensor
from lumina_jax.tokens import pack_text, tokens_of
from lumina_jax.training.state import parameter_count
from tests.models.random_models import random_model, random_parameters
from tests.models.test_flag_dit import CONFIG as FLAG
from tests.models.test_flag_dit import LAYOUT, alone, encode_text, largest, packed, run, samples

TEXT = dataclasses.replace(FLAG, block="dit", kv_heads=None, qk_norm=False)
LABEL = dataclasses.replace(TEXT, conditioning="label", classes=5, nextline=False, nextframe=False)


def squares(config, inputs):
    """The prediction of random parameters, and the gradient of the sum of its squares."""

    def loss(parameters):
        output = nnx.merge(abstract_model(config)[0], parameters)(*inputs)
        return jnp.sum(output**2), output

    (_, output), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(random_parameters(config))
    return output, gradient


def one_sample():
    """Tokens of one picture of 3 x 2 patches, its time and its caption."""
    random = np.random.default_rng(3)
    latent = jnp.asarray(random.standard_normal((1, 1, 6, 4, 3)), jnp.float32)
    tokens, _ = tokens_of(latent, patch_size=2, nextline=False, nextframe=False)
    text = pack_text([[random.standard_normal((5, 12)).astype(np.float32)]], 5)
    return tokens, jnp.full((1, 1), 0.3), jax.tree.map(jnp.asarray, text)


class TorchDiT:
    """A DiT of one sample in torch, from the papers: every product is written out, with [out, in] matrices."""

    def __init__(self, torch, parameters, config):
        self.torch, self.config = torch, config
        self.parameters = jax.tree.map(lambda x: torch.tensor(np.asarray(x), requires_grad=True), parameters)

    def linear(self, x, part):
        return self.torch.nn.functional.linear(x, part["kernel"].T, part["bias"])

    def heads(self, x):
        return x.reshape(len(x), self.config.heads, -1).transpose(0, 1)

    def attention(self, q, k, v):
        out = self.torch.nn.functional.scaled_dot_product_attention(*(self.heads(x)[None] for x in (q, k, v)))
        return out[0].transpose(0, 1).flatten(1)

    def sines(self, where):
        half = self.config.width // 2
        rates = 10_000.0 ** (-self.torch.arange(half // 2) / (half / 2))
        angles = where[:, None] * rates
        return self.torch.cat([angles.sin(), angles.cos()], dim=1)

    def block(self, x, c, text, w):
        torch, functional = self.torch, self.torch.nn.functional
        parts = self.linear(functional.silu(c), w["modulation"]["linear"]).chunk(6)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        y = functional.layer_norm(x, x.shape[-1:], eps=self.config.norm_eps) * (1 + scale1) + shift1
        y = self.attention(*(self.linear(y, w["attention"][name]) for name in ("query", "key", "value")))
        x = x + gate1 * self.linear(y, w["attention"]["out"])
        if text is not None:
            query = self.linear(x, w["text_attention"]["query"])
            y = self.attention(query, self.linear(text, w["text"]["key"]), self.linear(text, w["text"]["value"]))
            x = x + self.linear(y, w["text_attention"]["out"])
        y = functional.layer_norm(x, x.shape[-1:], eps=self.config.norm_eps) * (1 + scale2) + shift2
        y = functional.gelu(self.linear(y, w["mlp"]["up"]), approximate="tanh")
        assert torch.isfinite(y).all()
        return x + gate2 * self.linear(y, w["mlp"]["down"])

    def __call__(self, patches, rows, columns, t, text, label):
        torch, functional, w = self.torch, self.torch.nn.functional, self.parameters
        rates = 10_000.0 ** (-torch.arange(128) / 128)
        c = torch.cat([(t * rates).cos(), (t * rates).sin()])
        c = self.linear(functional.silu(self.linear(c, w["time_embedding"]["inner"])), w["time_embedding"]["outer"])
        if text is None:
            c = c + w["label_embedding"]["table"][label]
        else:
            pooled = functional.layer_norm(text.mean(0), text.shape[-1:])
            norm, linear = w["caption_pooling"]["norm"], w["caption_pooling"]["linear"]
            c = c + self.linear(pooled * norm["weight"] + norm["bias"], linear)
        x = self.linear(patches, w["patch_embedding"]) + torch.cat([self.sines(columns), self.sines(rows)], dim=1)
        for layer in range(self.config.layers):
            x = self.block(x, c, text, jax.tree.map(lambda leaf, layer=layer: leaf[layer], w["blocks"]))
        shift, scale = self.linear(functional.silu(c), w["final_layer"]["modulation"]["linear"]).chunk(2)
        x = functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
        values = self.linear(x, w["final_layer"]["linear"])
        return values.reshape(len(x), 2, 2, -1).permute(0, 3, 1, 2).flatten(1)


@pytest.mark.torch
@pytest.mark.parametrize("config", [TEXT, LABEL], ids=["text", "label"])
def test_prediction_and_gradients_are_those_of_the_mathematics_in_torch(config):
    torch = pytest.importorskip("torch")
    config = dataclasses.replace(config, nextline=False, nextframe=False)
    tokens, t, text = one_sample()
    label = jnp.full((1, 1), 3)
    output, gradient = squares(config, (tokens, t, text if config.conditioning == "text" else label))
    twin = TorchDiT(torch, random_parameters(config), config)
    _, _, rows, columns = np.asarray(tokens.positions)[0].T
    features = torch.tensor(np.asarray(text.features)[0]) if config.conditioning == "text" else None
    inputs = (np.asarray(tokens.patches)[0], rows.astype(np.float32), columns.astype(np.float32), np.float32(0.3))
    theirs = twin(*(torch.tensor(x) for x in inputs), features, 3)
    theirs.square().sum().backward()
    np.testing.assert_allclose(output[0], theirs.detach(), rtol=2e-4, atol=2e-5 * np.abs(output).max())
    grads = jax.tree.map(lambda x: np.zeros(x.shape) if x.grad is None else x.grad.numpy(), twin.parameters)
    chex.assert_trees_all_close(gradient, grads, rtol=2e-3, atol=1e-5 * largest(gradient))


def test_packed_rows_equal_separate_rows():
    model, (latents, captions, times) = random_model(TEXT), samples()
    together = packed(model, latents, captions, times)
    chex.assert_trees_all_close(
        together, [alone(model, *sample) for sample in zip(latents, captions, times)], atol=2e-5, rtol=1e-4
    )


def test_text_encoded_ahead_gives_the_same_output_and_text_matters():
    model = random_model(dataclasses.replace(TEXT, qk_norm=True, kv_heads=2))
    latents, captions, _ = samples()
    tokens, _ = tokens_of(jnp.asarray(latents[0][None]), **LAYOUT)
    one, other = (jax.tree.map(jnp.asarray, pack_text([[caption]], 6)) for caption in captions[:2])
    t = jnp.full((1, 1), 0.3)
    ahead = encode_text(model, one)
    plain = run(model, tokens, t, one)
    np.testing.assert_allclose(run(model, tokens, t, ahead), plain, atol=1e-5)
    exchanged = encode_text(model, other)._replace(pooled=ahead.pooled)
    assert np.abs(run(model, tokens, t, exchanged) - plain).max() > 1e-2, "cross-attention alone reads the text"


@pytest.mark.slow
def test_a_new_model_predicts_zero_and_its_cross_attention_adds_nothing():
    model = FlagDiT(TEXT, rngs=nnx.Rngs(0))
    latents, captions, _ = samples()
    assert not np.any(alone(model, latents[0], captions[0], 0.5))
    assert not np.any(model.blocks.text_attention.out.kernel[...])
    assert np.any(model.blocks.mlp.down.kernel[...])


def published_sines(width, side):
    """`get_2d_sincos_pos_embed` of the released DiT, one number after another."""
    table = np.zeros((side * side, width))
    for index in range(side * side):
        row, column = divmod(index, side)
        for part, where in enumerate((column, row)):
            for pair in range(width // 4):
                angle = where / 10_000 ** (pair / (width / 4))
                table[index, part * width // 2 + pair] = np.sin(angle)
                table[index, part * width // 2 + width // 4 + pair] = np.cos(angle)
    return table


def test_sine_positions_are_those_of_the_published_dit():
    row, column = np.indices((3, 3)).reshape(2, -1)
    coordinates = jnp.asarray(np.stack([row, column], axis=-1)[None])
    settings = {"width": 16, "theta": 10_000.0}
    found = sine_positions(coordinates, **settings, scaling=RopeScaling())
    np.testing.assert_allclose(found[0], published_sines(16, 3), atol=1e-6)
    squeezed = sine_positions(2 * coordinates, **settings, scaling=RopeScaling(linear=jnp.array([2.0])))
    np.testing.assert_allclose(squeezed, found, atol=1e-6)


@pytest.mark.parametrize(("block", "positions"), [("flag", "sine"), ("dit", "rope"), ("dit", "sine")])
@pytest.mark.slow
def test_only_sines_tell_a_picture_from_one_that_is_moved(block, positions):
    """Rotary embeddings are relative; every block can have either."""
    config = dataclasses.replace(TEXT, block=block, positions=positions, qk_norm=True, layers=1, rope_axes=2)
    tokens, t, text = one_sample()
    moved = tokens._replace(positions=tokens.positions + 3)
    model = random_model(config)
    apart = np.abs(run(model, moved, t, text) - run(model, tokens, t, text)).max()
    assert (apart > 1e-2) == (positions == "sine")
    turned = tokens._replace(positions=tokens.positions[..., jnp.array([0, 1, 3, 2])])
    assert np.abs(run(model, turned, t, text) - run(model, tokens, t, text)).max() > 1e-3


def test_the_norm_of_each_block_can_be_chosen():
    names = {}
    for block in ("flag", "next", "dit"):
        for norm in ("auto", "rms", "layer"):
            config = dataclasses.replace(TEXT, block=block, norm=norm)
            names[block, norm] = {"attention_norm", "mlp_norm"} & random_parameters(config)["blocks"].keys()
    both = {"attention_norm", "mlp_norm"}
    assert all(names[block, "rms"] == both and not names[block, "layer"] for block in ("flag", "next", "dit"))
    assert names["flag", "auto"] == names["next", "auto"] == both
    assert not names["dit", "auto"]


def test_layer_norm_ignores_what_all_values_have_in_common_and_rms_norm_does_not():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 6, 32)), jnp.float32)
    for norm, ignores in (("layer", True), ("rms", False)):
        found = random_model(dataclasses.replace(FLAG, norm=norm)).blocks
        layer = jax.tree.map(lambda leaf: leaf[0], found.attention_norm)
        assert np.allclose(layer(x + 1), layer(x), atol=1e-5) == ignores


@pytest.mark.parametrize(("size", "millions"), [("DiT-S", 33), ("DiT-B", 130), ("DiT-L", 458), ("DiT-XL", 675)])
def test_published_sizes_have_their_published_numbers_of_parameters(size, millions):
    assert parameter_count(preset(size)) / 1e6 == pytest.approx(millions, abs=0.6)


def test_layouts_without_the_layer_refuse_it_by_the_name_of_the_setting():
    for reason in reasons_against(TEXT).values():
        assert "block='flag', but the model has 'dit'" in reason or "block='next', but the model has 'dit'" in reason
    others = {"norm": "layer", "positions": "sine"}
    for name, value in others.items():
        for reason in reasons_against(dataclasses.replace(FLAG, nextframe=False, **{name: value})).values():
            assert f"but the model has {value!r}" in reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"own_text_query": True}, "always has a query projection"),
        ({"width": 30, "heads": 3}, "model.width=30 must be a multiple of 4, a sine and a cosine for each of 2 axes"),
        ({"heads": 5}, "the width of a head must be a multiple of 1"),
        ({"positions": "rope", "rope_axes": 3}, "rotary embeddings turn pairs along 3 axes"),
    ],
)
def test_what_a_dit_cannot_have_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TEXT, **change)


def test_heads_of_an_odd_width_need_no_rotary_embedding():
    assert ModelConfig(layers=1, heads=4, width=36, block="dit").head_width == 9


def test_devices_that_divide_a_feed_forward_add_its_last_bias_once():
    layer = jax.tree.map(lambda leaf: leaf[0], random_model(TEXT).blocks.mlp)
    x = jax.random.normal(jax.random.key(0), (1, 5, 32))
    graph, whole = nnx.split(layer)
    halves = {
        "up": {
            "kernel": jnp.stack(jnp.split(whole.up.kernel[...], 2, axis=1)),
            "bias": whole.up.bias[...].reshape(2, -1),
        },
        "down": {"kernel": whole.down.kernel[...].reshape(2, -1, 32), "bias": jnp.stack([whole.down.bias[...]] * 2)},
    }

    def part(half):
        mlp = nnx.merge(graph, half)
        mlp.tensor = Tensor(("tensor",), 2)
        return mlp(x)

    both = jax.vmap(part, axis_name="tensor")(halves)
    np.testing.assert_allclose(both, jnp.stack([layer(x)] * 2), atol=1e-5)
