"""Adapters in files of PEFT: what it computes with them, we compute; what we write, it opens."""

import copy
import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from lumina_jax.config import FinetuneConfig, ModelConfig, OptimizerConfig
from lumina_jax.interop.converted import parameter_shapes
from lumina_jax.interop.layouts import LAYOUTS, load_model
from lumina_jax.interop.peft import CONFIG, WEIGHTS, Adapter, read_peft, write_peft
from lumina_jax.models.adapters import Decomposed, Factors, adapted, merged
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.tokens import TextFeatures, tokens_of, unpatchify
from lumina_jax.training.optimizer import optimizer
from lumina_jax.training.state import network_parameters, split_model

MODEL = ModelConfig(
    layers=2, heads=4, kv_heads=2, width=48, block="next", final_shift=False, own_text_query=True, text_width=24,
    nextline=False, nextframe=False, pad_token=True, rope_axes=2, mlp_multiple_of=16, compute_dtype="float32",
    remat="none", condition_limit=1024,
)  # fmt: skip


def adapter_of(names, rank=3, alpha=5.0, seed=0, is_rslora=False):
    """A random adapter of these matrices."""
    random, shapes = np.random.default_rng(seed), parameter_shapes(MODEL)
    draw = lambda *shape: random.standard_normal(shape).astype(np.float32)  # noqa: E731
    factors = {
        name: Factors(draw(*shapes[name][:-1], rank), draw(*shapes[name][:-2], rank, shapes[name][-1]))
        for name in names
    }
    return Adapter(factors, dict.fromkeys(names, alpha), is_rslora, base="0123456789abcdef")


def with_magnitudes(adapter, seed=2):
    """The adapter as one of the kind DoRA, with random lengths of columns."""
    random = np.random.default_rng(seed)
    lengths = {
        name: random.uniform(0.5, 2, (*b.shape[:-2], b.shape[-1])).astype(np.float32)
        for name, (_, b) in adapter.factors.items()
    }
    return adapter._replace(magnitudes=lengths)


NAMES = ("blocks.attention.query.kernel", "blocks.text.key.kernel", "blocks.mlp.down.kernel")
FINAL = "final_layer.modulation.linear.kernel"


@pytest.fixture
def folder(tmp_path):
    write_peft(adapter_of(NAMES), MODEL, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_the_same_after_writing_and_reading_it(tmp_path):
    first, second = adapter_of((*NAMES, FINAL), is_rslora=True), adapter_of(["blocks.attention.out.kernel"], 2, 4.0)
    adapter = first._replace(factors=first.factors | second.factors, alphas=first.alphas | second.alphas)
    write_peft(adapter, MODEL, tmp_path / "adapter")
    again = read_peft(tmp_path / "adapter", MODEL)
    assert again.alphas == adapter.alphas
    assert (again.is_rslora, again.base) == (True, adapter.base)
    assert again.factors.keys() == adapter.factors.keys()
    assert again.scale(NAMES[0]) == 5.0 / np.sqrt(3)
    for name, factors in adapter.factors.items():
        for ours, theirs in zip(again.factors[name], factors, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_lengths_of_columns_are_the_same_after_writing_and_reading_them(tmp_path):
    adapter = with_magnitudes(adapter_of((*NAMES, FINAL)))
    write_peft(adapter, MODEL, tmp_path / "adapter")
    again = read_peft(tmp_path / "adapter", MODEL)
    assert again.magnitudes.keys() == adapter.magnitudes.keys()
    assert all(np.array_equal(again.magnitudes[name], value) for name, value in adapter.magnitudes.items())
    with pytest.raises(ValueError, match=r"of the kind DoRA has no strength but 1, not 0.5"):
        again.scaled(0.5)


def test_an_adapter_of_the_last_layers_is_read_with_zeros_for_the_others(tmp_path):
    adapter = adapter_of(NAMES)
    last = {name: Factors(a[-1:], b[-1:]) for name, (a, b) in adapter.factors.items()}
    write_peft(adapter._replace(factors=last), MODEL, tmp_path / "adapter")
    for name, (a, b) in read_peft(tmp_path / "adapter", MODEL).factors.items():
        np.testing.assert_array_equal(a[1:], last[name].a)
        assert not a[:1].any()
        assert not b[:1].any()


def test_a_query_that_serves_both_attentions_has_one_adapter_in_two_modules(tmp_path):
    shared = MODEL.replace(own_text_query=False)
    write_peft(adapter_of(NAMES), shared, tmp_path / "adapter")
    file = tmp_path / "adapter" / f"{WEIGHTS}.safetensors"
    assert read_peft(tmp_path / "adapter", shared).factors.keys() == set(NAMES)
    tensors = load_file(file)
    save_file({name: value for name, value in tensors.items() if "attn2.to_q" not in name}, file)
    with pytest.raises(ValueError, match="in different ways, which are one matrix of this model"):
        read_peft(tmp_path / "adapter", shared)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (
            lambda name, value: (name.replace("attn1", "attn"), value),
            {},
            "this one has no layers.0.attn.to_q, ",
        ),
        (
            lambda name, value: (name, value),
            {"r": 4},
            r"rank 4: layers.0.feed_forward.linear_2.lora_A is \(3, 128\)",
        ),
        (lambda name, value: (name, value[:, :2]), {}, "does not fit this model at rank 3"),
        (lambda name, value: (name.replace("lora_A", "lora_magnitude"), value), {}, "must hold lora_A and lora_B"),
        (lambda name, value: (name, value), {"use_dora": True}, "must have lora_magnitude_vector of all modules"),
        (lambda name, value: (name, value), {"bias": "all"}, "low-rank adapters alone .*bias='all'"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_with_the_first_names(folder, change, settings, message):
    file = folder / f"{WEIGHTS}.safetensors"
    save_file({k: np.ascontiguousarray(v) for k, v in (change(*item) for item in load_file(file).items())}, file)
    (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | settings))
    with pytest.raises(ValueError, match=message):
        read_peft(folder, MODEL)


@pytest.fixture(scope="module")
def theirs():
    """diffusers' transformer with random weights and ours with the same, and what both are told of a batch."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    layout = LAYOUTS["diffusers"]
    settings = layout.write_config(MODEL)
    settings = {name: value for name, value in settings.items() if name != "_class_name"} | {"sample_size": 8}
    torch.manual_seed(0)
    model = diffusers.LuminaNextDiT2DModel(**settings).eval()
    with torch.no_grad():
        model.pad_token.zero_()  # diffusers leaves it as the memory was
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
    tensors = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    random = np.random.default_rng(0)
    latents = random.standard_normal((2, 4, 8, 8)).astype(np.float32)
    features = random.standard_normal((2, 5, 24)).astype(np.float32)
    times = np.array([0.3, 0.8], np.float32)
    return SimpleNamespace(torch=torch, model=model, tensors=tensors, latents=latents, features=features, times=times)


def velocity_of_theirs(theirs, model):
    """The output of diffusers' transformer, or of PEFT around it."""
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

    torch = theirs.torch
    turns = get_2d_rotary_pos_embed_lumina(MODEL.head_width, 4, 4, linear_factor=1.0, ntk_factor=1.0)
    found = model(
        hidden_states=torch.from_numpy(theirs.latents),
        timestep=torch.from_numpy(theirs.times),
        encoder_hidden_states=torch.from_numpy(theirs.features),
        encoder_mask=torch.ones(2, 5, dtype=torch.int64),
        image_rotary_emb=turns,
        cross_attention_kwargs={},
        return_dict=False,
    )[0]
    return found


@functools.cache
def graph():
    return abstract_model(MODEL)[0]


def velocity_of_ours(parameters, theirs):
    """The output of our model for the same batch, [b c h w]."""
    tokens, grid = tokens_of(np.moveaxis(theirs.latents, 1, -1)[:, None], patch_size=2, nextline=False, nextframe=False)
    text = TextFeatures(jnp.asarray(theirs.features), jnp.ones((2, 5), jnp.int32))
    tokens = jax.tree.map(jnp.asarray, tokens)
    output = nnx.merge(graph(), parameters)(tokens, jnp.asarray(theirs.times)[:, None], text)
    return jnp.moveaxis(unpatchify(output, grid, 2)[:, 0], -1, 1)


def with_peft(theirs, folder):
    """A copy of diffusers' transformer with an adapter opened by PEFT."""
    import peft

    return peft.PeftModel.from_pretrained(copy.deepcopy(theirs.model), str(folder), is_trainable=True)


EVERY = (
    *(f"blocks.attention.{name}.kernel" for name in ("query", "key", "value", "out", "text_query")),
    *(f"blocks.mlp.{name}.kernel" for name in ("gate", "up", "down")),
    *("blocks.text.key.kernel", "blocks.text.value.kernel", "blocks.modulation.linear.kernel"),
    *(FINAL, "caption_pooling.linear.kernel", "time_embedding.outer.kernel"),
)


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["standard", "rslora", "dora"])
def test_an_adapter_of_ours_computes_in_peft_what_it_computes_here_merged_or_not(theirs, tmp_path, kind):
    small = adapter_of(EVERY, is_rslora=kind == "rslora")
    adapter = small._replace(factors={name: Factors(0.1 * a, 0.1 * b) for name, (a, b) in small.factors.items()})
    adapter = with_magnitudes(adapter) if kind == "dora" else adapter
    write_peft(adapter, MODEL, tmp_path / "adapter")
    model = load_model(LAYOUTS["diffusers"], MODEL, theirs.tensors)
    base = split_model(model)[1]
    changed = adapted(base, read_peft(tmp_path / "adapter", MODEL).scaled())
    peft_model = with_peft(theirs, tmp_path / "adapter")
    with theirs.torch.no_grad():
        plain, expected = (velocity_of_theirs(theirs, one).numpy() for one in (theirs.model, peft_model))
        in_one = velocity_of_theirs(theirs, copy.deepcopy(peft_model).merge_and_unload()).numpy()
    scale = np.abs(expected).max()
    assert np.abs(expected - plain).max() > 0.05 * scale
    np.testing.assert_allclose(velocity_of_ours(base, theirs), plain, atol=1e-5 * scale)
    np.testing.assert_allclose(velocity_of_ours(changed, theirs), expected, atol=1e-5 * scale)
    np.testing.assert_allclose(velocity_of_ours(merged(changed), theirs), in_one, atol=1e-5 * scale)


def trained_of(adapter):
    """What trains: factors without their scale, and lengths of columns."""
    return {
        name: Decomposed(*pair, adapter.magnitudes[name]) if name in adapter.magnitudes else pair
        for name, pair in adapter.factors.items()
    }


@pytest.mark.torch
def test_an_adapter_that_peft_makes_is_opened_here(theirs, tmp_path):
    import peft

    settings = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["to_q", "to_k", "linear_2"], init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(theirs.model), settings)
    model.save_pretrained(tmp_path / "adapter")
    with theirs.torch.no_grad():
        expected = velocity_of_theirs(theirs, model).numpy()
    base = split_model(load_model(LAYOUTS["diffusers"], MODEL, theirs.tensors))[1]
    ours = velocity_of_ours(adapted(base, read_peft(tmp_path / "adapter", MODEL).scaled()), theirs)
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.torch
@pytest.mark.parametrize("dora", [False, True])
def test_three_steps_of_adamw_change_adapters_as_torch_does(theirs, tmp_path, dora):
    torch, adapter = theirs.torch, adapter_of(EVERY[:8])
    adapter = adapter._replace(factors={name: Factors(0.1 * a, 0.1 * b) for name, (a, b) in adapter.factors.items()})
    adapter = with_magnitudes(adapter) if dora else adapter
    factors = trained_of(adapter)
    write_peft(adapter, MODEL, tmp_path / "adapter")
    model = with_peft(theirs, tmp_path / "adapter")
    trained = [value for name, value in model.named_parameters() if "lora_" in name]
    theirs_optimizer = torch.optim.AdamW(trained, lr=1e-2, eps=1e-6, weight_decay=0.01)
    target = torch.from_numpy(np.random.default_rng(5).standard_normal((2, 4, 8, 8)).astype(np.float32))
    for _ in range(3):
        theirs_optimizer.zero_grad()
        ((velocity_of_theirs(theirs, model) - target) ** 2).mean().backward()
        theirs_optimizer.step()
    model.save_pretrained(tmp_path / "trained")
    base = split_model(load_model(LAYOUTS["diffusers"], MODEL, theirs.tensors))[1]
    settings = FinetuneConfig(rank=3, alpha=5.0, dora=dora)
    transform = optimizer(OptimizerConfig(learning_rate=1e-2, eps=1e-6, weight_decay=0.01, clip_norm=None), 3)
    ours = jax.tree.map(jnp.asarray, factors)
    moments = transform.init(ours)

    @jax.jit
    def step(ours, moments):
        def loss(ours):
            velocity = velocity_of_ours(network_parameters(ours, base, settings), theirs)
            return jnp.mean((velocity - target.numpy()) ** 2)

        updates, moments = transform.update(jax.grad(loss)(ours), moments, ours)
        return optax.apply_updates(ours, updates), moments

    for _ in range(3):
        ours, moments = step(ours, moments)
    for name, expected in trained_of(read_peft(tmp_path / "trained", MODEL)).items():
        for found, wanted, before in zip(ours[name], expected, factors[name], strict=True):
            assert np.abs(wanted - before).max() > 1e-2
            np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())
