"""What we write is what PyTorch and diffusers read, and what they write is what we read."""

import argparse

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from lumina_jax.interop.converted import load_parameters, read_model
from lumina_jax.interop.sources import open_weights
from lumina_jax.models.flag_dit import FlagDiT, abstract_model
from lumina_jax.parity.golden import Golden
from lumina_jax.tokens import TextFeatures, tokens_of, unpatchify
from tests.interop.checkpoints import GOLDEN, checkpoint, run, tensors_of
from tests.interop.test_padding import without_pad_token

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("shard_gb", [5.0, 1e-4])
def test_diffusers_opens_our_export_and_computes_what_we_do(tmp_path, torch, shard_gb):
    diffusers = pytest.importorskip("diffusers")
    source = checkpoint(tmp_path / "source", "nextdit")
    ours = run(source, tmp_path / "ours", "lumina", "jax")
    theirs = run(ours, tmp_path / "theirs", "jax", "diffusers", shard_gb=shard_gb)
    model = diffusers.LuminaNextDiT2DModel.from_pretrained(theirs, subfolder="transformer")
    golden = Golden(GOLDEN / "nextdit.safetensors").inputs("fwd")
    found = forward_of_diffusers(torch, model, golden)
    np.testing.assert_allclose(forward(ours, golden), found, atol=1e-5 * np.abs(found).max(), rtol=0)


def test_diffusers_computes_the_same_with_any_embedding_of_padding(tmp_path, torch):
    """So a model of ours that has none is exported with zeros."""
    diffusers = pytest.importorskip("diffusers")
    ours = without_pad_token(run(checkpoint(tmp_path / "source", "nextdit"), tmp_path / "ours", "lumina", "jax"))
    theirs = run(ours, tmp_path / "theirs", "jax", "diffusers")
    model, golden = (
        diffusers.LuminaNextDiT2DModel.from_pretrained(theirs, subfolder="transformer"),
        Golden(GOLDEN / "nextdit.safetensors").inputs("fwd"),
    )
    found = forward_of_diffusers(torch, model, golden)
    np.testing.assert_allclose(forward(ours, golden), found, atol=1e-5 * np.abs(found).max(), rtol=0)
    with torch.no_grad():
        model.pad_token.fill_(1e4)
    np.testing.assert_array_equal(forward_of_diffusers(torch, model, golden), found)


def test_a_pipeline_takes_our_export_and_the_parts_that_are_given(tmp_path, torch):
    diffusers = pytest.importorskip("diffusers")
    source = checkpoint(tmp_path / "source", "nextdit")
    theirs = run(source, tmp_path / "theirs", "lumina", "diffusers")
    parts = {"vae": None, "text_encoder": None, "tokenizer": None}
    pipeline = diffusers.LuminaPipeline.from_pretrained(theirs, **parts)
    assert type(pipeline.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    assert pipeline.transformer.config.hidden_size == 64
    assert type(diffusers.DiffusionPipeline.from_pretrained(theirs, **parts)).__name__ == "LuminaPipeline"


def test_what_diffusers_saves_comes_back_to_it_unchanged(tmp_path, torch):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_layers": 3, "num_attention_heads": 4, "num_kv_heads": 2, "cross_attention_dim": 24}
    model = diffusers.LuminaNextDiT2DModel(multiple_of=32, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    model.bfloat16().save_pretrained(tmp_path / "saved/transformer", max_shard_size="100KB")
    ours = run(tmp_path / "saved", tmp_path / "ours", "diffusers", "jax")
    back = run(ours, tmp_path / "back", "jax", "diffusers")
    again = diffusers.LuminaNextDiT2DModel.from_pretrained(back, subfolder="transformer", torch_dtype=torch.bfloat16)
    expected = model.state_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())


def test_files_of_the_authors_training_are_read_as_saved(tmp_path, torch):
    """Flag-DiT of 600M is too large for a test, so the sizes come from config.json, and the rest from .pth files."""
    source = checkpoint(tmp_path / "source", "nextdit")
    tensors = {name: torch.from_numpy(value) for name, value in tensors_of(source, "lumina").items()}
    (source / "consolidated.00-of-01.safetensors").unlink()
    torch.save({name: value.bfloat16() for name, value in tensors.items()}, source / "consolidated.00-of-01.pth")
    torch.save(tensors, source / "consolidated_ema.00-of-01.pth")
    found = tensors_of(run(source, tmp_path / "ema", "lumina", "lumina"), "lumina")
    assert all(np.array_equal(found[name], value.numpy()) for name, value in tensors.items())
    run(source, tmp_path / "params", "lumina", "lumina", weights="params")
    loaded = load_file(tmp_path / "params/consolidated.00-of-01.safetensors")
    assert all(np.array_equal(loaded[name].astype(np.float32), value.bfloat16().float().numpy())
               for name, value in tensors.items())  # fmt: skip


@pytest.mark.parametrize(
    ("model", "heads", "layers"), [("DiT_Llama_600M_patch2", 32, 16), ("DiT_Llama_3B_patch2", 32, 32)]
)
def test_the_name_of_a_preset_gives_the_heads_that_no_tensor_shows(tmp_path, torch, model, heads, layers):
    """A whole model would be gigabytes: its tensors are expanded zeros, which torch saves as one number."""
    config = abstract_label_model(model)
    with torch.no_grad():
        zero = torch.zeros(1)
        theirs = {name: zero.expand(shape) for name, shape in config.items()}
    torch.save(theirs, tmp_path / "consolidated.00-of-01.pth")
    torch.save(argparse.Namespace(model=model, qk_norm=True, num_classes=1000), tmp_path / "model_args.pth")
    source = open_weights(tmp_path, "lumina")
    assert (source.config.heads, source.config.layers, source.config.classes) == (heads, layers, 1000)
    assert any(model in note for note in source.notes)


def abstract_label_model(model):
    from lumina_jax.interop.converted import parameter_shapes
    from lumina_jax.interop.lumina import flag_dit_rules
    from lumina_jax.models.presets import preset

    size = preset(model.split("_")[2], conditioning="label", nextline=False, nextframe=False, predict_sigma=True)
    shapes = {}
    for rule in flag_dit_rules(size):
        shape = parameter_shapes(size)[rule.ours]
        shape = rule.to_theirs(np.broadcast_to(np.float32(0), shape[1:] if rule.is_stacked else shape)).shape
        shapes |= dict.fromkeys(rule.their_names(size.layers), shape)
    return shapes


def forward(folder, inputs):
    """Both halves of the channels of our model, in float32: [b c h w]."""
    import dataclasses

    config = dataclasses.replace(read_model(folder), compute_dtype="float32", remat="none")
    model: FlagDiT = nnx.merge(abstract_model(config)[0], load_parameters(folder, config))
    latents = jnp.asarray(inputs["x"].transpose(0, 2, 3, 1)[:, None])
    tokens, grid = tokens_of(latents, patch_size=2, nextline=False, nextframe=False)
    text = TextFeatures(jnp.asarray(inputs["cap_feats"]), jnp.asarray(inputs["cap_mask"]))
    output = model(tokens, jnp.asarray(inputs["t"])[:, None], text, keep_sigma=True)
    return np.asarray(unpatchify(output, grid, 2))[:, 0].transpose(0, 3, 1, 2)


def forward_of_diffusers(torch, model, inputs):
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

    x = torch.from_numpy(inputs["x"])
    head = model.config.hidden_size // model.config.num_attention_heads
    rotary = get_2d_rotary_pos_embed_lumina(head, 384, 384)
    with torch.no_grad():
        output = model(
            x, torch.from_numpy(inputs["t"]), torch.from_numpy(inputs["cap_feats"]),
            torch.from_numpy(inputs["cap_mask"]).bool(), rotary, cross_attention_kwargs={}, return_dict=False,
        )  # fmt: skip
    return output[0].numpy()
