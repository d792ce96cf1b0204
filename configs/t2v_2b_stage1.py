"""Lumina-T2V 2B, first stage: 32 frames of 512 x 512 (Lumina-T2X report, arXiv 2405.05945, section 2.4).

No PyTorch layout holds the trained model: the authors never released code for video, with its [nextframe] token.

Flag-DiT of 24 layers of 2304; every frame through the SD-1.5 autoencoder on its own, [nextline] after rows, [nextframe]
after frames: 33,824 tokens a clip. Captions through CLIP-L and CLIP-bigG side by side, as SDXL has them. 15M clips of
Panda-70M; cut your own videos into scenes first (`lumina data scenes`). 8 frames a second are taken of
each from a random moment on, and fewer of shorter ones.
Hardware: v5p:4x4x4 (64 chips) or more, FSDP over all of them (docs/scaling.md). Before, on every host:
  hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --include 'vae/*'
  hf download stabilityai/stable-diffusion-xl-base-1.0 --include 'text_encoder*/*' 'tokenizer*/*'
Recommended on v5p:4x4x4: --mesh.fsdp 64 --model.remat dots --optimizer.accumulate 2
Run: lumina train t2v_2b_stage1 --data.path clips
Next: configs/t2v_2b_stage2.py, which starts from runs/t2v_2b_stage1.
"""

from lumina_jax.config import (
    ClipConfig,
    Config,
    DataConfig,
    FolderConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    SampleConfig,
    TextConfig,
    VaeConfig,
)
from lumina_jax.models.presets import preset

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


def get_config() -> Config:
    return Config(
        model=preset("2B", text_width=2048),
        text=TextConfig(
            encoder=f"{SDXL}/text_encoder:penultimate+{SDXL}/text_encoder_2:penultimate",
            max_tokens=77,
            dtype="bfloat16",
        ),
        vae=VaeConfig(path="stable-diffusion-v1-5/stable-diffusion-v1-5"),
        data=DataConfig(
            source=FolderConfig(path="clips"),
            media=ClipConfig(image_size=512, frames=32, frame_rate=8.0),
            batch_rows=128,
            workers=8,
            prefetch=16,
            bad_samples=100_000,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4),
        mesh=MeshConfig(fsdp=None),
        sample=SampleConfig(solver="midpoint", steps=30, guidance=4.0, time_shift=4.0),
        run=RunConfig(name="t2v_2b_stage1", steps=200_000, log_every=100, checkpoint_every=5_000),
    )
