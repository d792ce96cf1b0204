"""Lumina-T2I 5B, second stage: 512 pixels, starting from the stage at 256; the rest as in configs/t2i_5b_256.py.

Recommended on v5p:4x4x4: --mesh.fsdp 32 --mesh.tensor 2 --model.remat none
Run: lumina train t2i_5b_512 --data.path pictures.yaml
From the released checkpoint instead: lumina convert CHECKPOINT lumina_t2i --from lumina --to jax, then
--run.init-from lumina_t2i
"""

from lumina_jax.config import Config
from lumina_jax.config_files import load_config


def get_config() -> Config:
    return load_config("t2i_5b_256").replace(
        data={"image_size": 512, "batch_rows": 256},
        run={"name": "t2i_5b_512", "init_from": "runs/t2i_5b_256"},
    )
