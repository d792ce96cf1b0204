"""Flag-DiT 3B on ImageNet-1k by label (Lumina-T2X report, arXiv 2405.05945, table of ImageNet results, Flag-DiT-3B-G).

32 layers of 3072; the rest as in configs/imagenet_600m.py. Expected after 256M pictures (1M steps): FID-50K 1.96 with
guidance, inception score 284.8, precision 0.82, recall 0.61; a DiT-XL/2 needs seven times as many for 2.27.
Hardware: v5p:4x4x4 (64 chips), FSDP over all of them; docs/scaling.md has estimates of speed.
Recommended on v5p:4x4x4: --mesh.fsdp 16 --mesh.tensor 4 --model.remat none
Run: lumina train imagenet_3b
At 512 pixels (Large-DiT-3B-G, the same size trained by DDPM: 2.52): --data.image-size 512 --run.name imagenet_3b_512
"""

from lumina_jax.config import Config
from lumina_jax.config_files import load_config
from lumina_jax.models.presets import SIZES


def get_config() -> Config:
    return load_config("imagenet_600m").replace(model=SIZES["3B"], run={"name": "imagenet_3b"})
