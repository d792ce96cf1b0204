"""DiT-XL/2 on ImageNet-1k by label, as published (arXiv 2212.09748): the baseline of Flag-DiT, with DDPM.

No PyTorch layout holds the trained model: none has the block dit.
28 layers of 1152 on latents of the SD autoencoder, sine positions, LayerNorm, no QK-norm, 675M parameters. It learns
the noise of 1000 discrete steps and their variance; batch 256, learning rate 1e-4 without a schedule, 10 % of the
labels dropped, average 0.9999. Expected after 7M steps: FID-50K 2.27 at 256 pixels with guidance 1.5 and 250 steps.
Hardware: v5e:4x4 (16 chips), FSDP over all of them.
Before: prepare imagenet2012 as array_record (docs/data.md); hf download stabilityai/sd-vae-ft-ema
Run: lumina train imagenet_dit_xl
"""

from lumina_jax.config import Config
from lumina_jax.config_files import load_config
from lumina_jax.models.presets import preset


def get_config() -> Config:
    return load_config("imagenet_600m").replace(
        model=preset("DiT-XL", predict_sigma=True),
        flow={"path": "ddpm", "prediction": "noise", "times": "uniform"},
        optimizer={"learning_rate": 1e-4, "beta2": 0.999},
        sample={"solver": "ddpm", "steps": 250, "guidance": 1.5, "guided_channels": 3},
        run={"name": "imagenet_dit_xl", "steps": 7_000_000},
    )
