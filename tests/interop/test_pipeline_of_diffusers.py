"""diffusers' LuminaPipeline, run on our export: text encoder, guidance, schedule and rotary scaling together."""

import math

import numpy as np
import pytest
from einops import rearrange

from lumina_jax.config import Config, DataConfig, PictureConfig, SampleConfig, TextConfig
from lumina_jax.encoders.text import text_encoder
from lumina_jax.generation.pipeline import Pipeline
from lumina_jax.interop.converted import load_parameters, read_model
from lumina_jax.models.flag_dit import abstract_model
from tests.interop.checkpoints import GOLDEN, run

pytestmark = pytest.mark.torch
PROMPTS, STEPS, GUIDANCE, WATERSHED = ["red heart, noto style", "a blue circle"], 6, 4.0, 0.4
HEIGHT, WIDTH, TRAINED = 24, 16, 16


@pytest.fixture(scope="module")
def diffusers():
    pytest.importorskip("torch")
    return pytest.importorskip("diffusers")


def exported(folder, diffusers):
    """A model that diffusers saved, converted to ours and back."""
    import torch

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_layers": 2, "num_attention_heads": 4, "num_kv_heads": 2, "cross_attention_dim": 24}
    model = diffusers.LuminaNextDiT2DModel(multiple_of=32, sample_size=TRAINED, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    model.save_pretrained(folder / "saved/transformer")
    ours = run(folder / "saved", folder / "ours", "diffusers", "jax")
    return ours, run(ours, folder / "theirs", "jax", "diffusers", sample_size=TRAINED)


def latents_of_diffusers(folder, noise, diffusers):
    import torch
    from transformers import GemmaModel, PreTrainedTokenizerFast

    gemma = GOLDEN / "gemma_tiny"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(gemma / "tokenizer.json"), bos_token="<s>", pad_token="<pad>", padding_side="right"
    )
    parts = {"vae": None, "text_encoder": GemmaModel.from_pretrained(gemma), "tokenizer": tokenizer}
    pipeline = diffusers.LuminaPipeline.from_pretrained(folder, **parts)
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline(
        prompt=PROMPTS, negative_prompt=[""] * len(PROMPTS), height=8 * HEIGHT, width=8 * WIDTH,
        sigmas=[1 - step / STEPS for step in range(STEPS)], num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        latents=torch.from_numpy(noise), output_type="latent", clean_caption=False, scaling_watershed=WATERSHED,
    ).images  # fmt: skip
    return latents.numpy()


def test_the_pipeline_of_diffusers_draws_the_latents_that_ours_draws(tmp_path, diffusers):
    ours, theirs = exported(tmp_path, diffusers)
    noise = np.random.default_rng(0).standard_normal((len(PROMPTS), 4, HEIGHT, WIDTH)).astype(np.float32)
    expected = latents_of_diffusers(theirs, noise, diffusers)

    model = read_model(ours)
    config = Config(
        model=model,
        data=DataConfig(media=PictureConfig(image_size=TRAINED)),
        text=TextConfig(encoder=str(GOLDEN / "gemma_tiny")),
    ).replace(model={"compute_dtype": "float32", "remat": "none"})
    encoder = text_encoder(config.text.encoder, 16)
    pipeline = Pipeline(config, abstract_model(config.model)[0], load_parameters(ours, config.model), encoder)
    settings = SampleConfig(
        solver="euler", steps=STEPS, guidance=GUIDANCE, guided_channels=3, rope_watershed=WATERSHED,
        rope_factor=math.sqrt(HEIGHT * WIDTH) / TRAINED,
    )  # fmt: skip
    found = pipeline.latents(rearrange(noise, "b c h w -> b 1 h w c"), PROMPTS, settings)
    found = np.asarray(rearrange(found, "b 1 h w c -> b c h w"))
    assert np.abs(expected - noise).max() > 1
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)
