"""Flag-DiT 7B on ImageNet-1k by label (Lumina-T2X report, arXiv 2405.05945, label-conditional models).

32 layers of 4096; the rest as in configs/imagenet_600m.py. For comparison, Large-DiT-7B, the same size trained by DDPM,
reaches FID-50K 6.09 without guidance; the report trains at 120 pictures a second on 8 A100.
Hardware: v5p:4x4x4 (64 chips) or more, FSDP over all of them; docs/scaling.md has estimates of speed.
Recommended on v5p:4x4x4: --mesh.fsdp 16 --mesh.tensor 4 --model.remat dots
Run: lumina train imagenet_7b
At 512 pixels: lumina train imagenet_7b --data.image-size 512 --run.name imagenet_7b_512
"""

from lumina_jax.config import Config
from lumina_jax.config_files import load_config
from lumina_jax.models.presets import SIZES


def get_config() -> Config:
    return load_config("imagenet_600m").replace(model=SIZES["7B"], run={"name": "imagenet_7b"})
