"""SiT-XL/2 on ImageNet-1k by label, as published (arXiv 2401.08740): the network of DiT-XL/2 with a flow for DDPM.

No PyTorch layout holds the trained model: none has the block dit.
All of configs/imagenet_dit_xl.py but the objective: the velocity on the linear path at uniform times. Expected after 7M
steps: FID-50K 2.15 at 256 pixels with guidance 1.5 and the ODE, 2.06 with 250 steps of euler_maruyama.
Before: as in configs/imagenet_dit_xl.py
Run: lumina train imagenet_sit_xl
"""

from lumina_jax.config import Config
from lumina_jax.config_files import load_config
from lumina_jax.models.presets import preset


def get_config() -> Config:
    return load_config("imagenet_dit_xl").replace(
        model=preset("DiT-XL"),
        flow={"path": "linear", "prediction": "velocity"},
        sample={"solver": "dopri5"},
        run={"name": "imagenet_sit_xl"},
    )
