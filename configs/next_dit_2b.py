"""Next-DiT 2B text to image at 1024 pixels (Lumina-Next, arXiv 2406.18583), in the layout of the released weights.

24 layers of 2304 with 8 key heads shared by 32 query heads, latents of the SDXL autoencoder, captions through Gemma-2B.
Fine-tune the released checkpoint:
  hf download Alpha-VLLM/Lumina-Next-SFT-diffusers; hf download stabilityai/sdxl-vae; hf download google/gemma-2b
  lumina convert Alpha-VLLM/Lumina-Next-SFT-diffusers lumina_next --from diffusers --to jax
  lumina train next_dit_2b --data.path pictures.yaml --run.init-from lumina_next
Draw from it as it is: lumina sample lumina_next "a painting of a whale" --config next_dit_2b
Recommended on v6e:8x8: --mesh.fsdp 64 --model.remat feed_forward --model.unroll 2
Hardware: for training a TPU slice of 16 chips or more, or one device of 80 GB with --data.batch-rows 8, which
takes 49 GB, and the encoders of pictures and captions 6; for drawing one chip.
"""

from lumina_jax.config import (
    Config,
    DataConfig,
    LuminaYamlConfig,
    MeshConfig,
    OptimizerConfig,
    PictureConfig,
    RunConfig,
    SampleConfig,
    TextConfig,
    VaeConfig,
)
from lumina_jax.models.presets import preset


def get_config() -> Config:
    return Config(
        model=preset("Next-2B-GQA", pad_token=True, predict_sigma=True),
        text=TextConfig(encoder="google/gemma-2b", max_tokens=256, dtype="bfloat16"),
        vae=VaeConfig(path="stabilityai/sdxl-vae"),
        data=DataConfig(
            source=LuminaYamlConfig(path="pictures.yaml"),
            media=PictureConfig(image_size=1024, crop="buckets"),
            batch_rows=256,
            workers=8,
            prefetch=64,
            bad_samples=100_000,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4),
        mesh=MeshConfig(fsdp=None),
        sample=SampleConfig(
            solver="midpoint", steps=30, guidance=4.0, guided_channels=3, time_shift=4.0, rope_watershed=0.3
        ),
        run=RunConfig(name="next_dit_2b", steps=1_000_000, log_every=100, checkpoint_every=2_000),
    )
