"""Lumina-T2I 5B, first stage: 256 pixels (Lumina-T2X report, arXiv 2405.05945, table of text-to-image training).

Flag-DiT of 32 layers of 3072 on latents of the SDXL autoencoder, captions through LLaMA-2-7B, 14M captioned pictures in
the aspect-ratio buckets of the original. Batch 512, learning rate 1e-4; the report gives 96 A100 days a stage. The
parameters have the layout of the released checkpoint, so either can start from the other.
Hardware: v5p:4x4x4 (64 chips) or more, FSDP over all of them (docs/scaling.md). Before, on every host:
  hf download stabilityai/sdxl-vae; hf download meta-llama/Llama-2-7b-hf
Recommended on v5p:4x4x4: --mesh.fsdp 32 --mesh.tensor 2 --model.remat none
Run: lumina train t2i_5b_256 --data.path pictures.yaml
Next: configs/t2i_5b_512.py, which starts from runs/t2i_5b_256.
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
        model=preset("5B", text_width=4096, nextframe=False, pad_token=True, predict_sigma=True),
        text=TextConfig(encoder="meta-llama/Llama-2-7b-hf", max_tokens=128, dtype="bfloat16"),
        vae=VaeConfig(path="stabilityai/sdxl-vae"),
        data=DataConfig(
            source=LuminaYamlConfig(path="pictures.yaml"),
            media=PictureConfig(image_size=256, crop="buckets"),
            batch_rows=512,
            workers=8,
            prefetch=64,
            bad_samples=100_000,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4),
        mesh=MeshConfig(fsdp=None),
        sample=SampleConfig(solver="midpoint", steps=30, guidance=4.0, time_shift=4.0),
        run=RunConfig(name="t2i_5b_256", steps=3_000_000, log_every=100, checkpoint_every=20_000),
    )
