"""Flag-DiT 600M on ImageNet-1k by label (Lumina-T2X report, arXiv 2405.05945, label-conditional models).

The smallest of the three that the report trains to show how quality grows with size; the others are
configs/imagenet_3b.py and configs/imagenet_7b.py. 16 layers of 1536 on latents of the SD autoencoder, no marker tokens,
10 % of the labels dropped; batch 256, learning rate 5e-4, logit-normal times, average 0.9999. A million steps are 256M
pictures, the length of the report's 3B run. The parameters have the layout of the released checkpoints.
Hardware: v5e:4x4 (16 chips), FSDP over all of them; docs/scaling.md has estimates of speed.
Before: prepare imagenet2012 as array_record (docs/data.md); hf download stabilityai/sd-vae-ft-ema
Recommended on v5e:4x4: --mesh.fsdp 16
Run: lumina train imagenet_600m
At 512 pixels: lumina train imagenet_600m --data.image-size 512 --run.name imagenet_600m_512
"""

from lumina_jax.config import (
    Config,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    PictureConfig,
    RunConfig,
    SampleConfig,
    TfdsConfig,
    VaeConfig,
)
from lumina_jax.models.presets import preset


def get_config() -> Config:
    return Config(
        model=preset("600M", conditioning="label", nextline=False, nextframe=False, predict_sigma=True),
        vae=VaeConfig(path="stabilityai/sd-vae-ft-ema"),
        data=DataConfig(
            source=TfdsConfig(path="imagenet2012:5.*.*", caption_key="label"),
            media=PictureConfig(image_size=256),
            batch_rows=256,
            workers=8,
            prefetch=64,
        ),
        optimizer=OptimizerConfig(learning_rate=5e-4),
        mesh=MeshConfig(fsdp=None),
        sample=SampleConfig(solver="dopri5", guidance=1.5),
        run=RunConfig(name="imagenet_600m", steps=1_000_000, log_every=100, checkpoint_every=10_000),
    )
