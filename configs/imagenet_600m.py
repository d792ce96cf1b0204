"""Flag-DiT 600M on ImageNet-1k by label (Lumina-T2X report, arXiv 2405.05945, figure of label-conditional scaling)."""

from lumina_jax.config import (
    Config,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    SampleConfig,
    VaeConfig,
)
from lumina_jax.models.presets import preset


def get_config() -> Config:
    return Config(
        model=preset("600M", conditioning="label", nextline=False, nextframe=False, predict_sigma=True),
        vae=VaeConfig(path="stabilityai/sd-vae-ft-ema"),
        data=DataConfig(
            source="tfds",
            path="imagenet2012:5.*.*",
            caption_key="label",
            image_size=256,
            batch_rows=256,
            workers=8,
            prefetch=64,
        ),
        optimizer=OptimizerConfig(learning_rate=5e-4),
        mesh=MeshConfig(fsdp=16),
        sample=SampleConfig(solver="dopri5", guidance=1.5),
        run=RunConfig(name="imagenet_600m", steps=1_000_000, log_every=100, checkpoint_every=10_000),
    )
