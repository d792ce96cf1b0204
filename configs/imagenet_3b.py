"""Flag-DiT 3B."""

from pathlib import Path

from lumina_jax.config import Config
from lumina_jax.models.presets import SIZES
from lumina_jax.run import load_config


def get_config() -> Config:
    return load_config(Path(__file__).with_name("imagenet_600m.py")).replace(
        model=SIZES["3B"], mesh={"fsdp": 64}, run={"name": "imagenet_3b"}
    )
