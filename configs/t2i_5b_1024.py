"""Lumina-T2I 5B, third stage: 1024 pixels, starting from the stage at 512; the rest as in configs/t2i_5b_256.py.

Recommended on v5p:4x4x4: --mesh.fsdp 64 --model.remat dots
Recommended on v6e:16x16: --data.batch-rows 256 --mesh.fsdp 256 --model.remat feed_forward --model.unroll 2
Run: lumina train t2i_5b_1024 --data.path pictures.yaml
From the released checkpoint instead: lumina convert CHECKPOINT lumina_t2i --from lumina --to jax, then
--run.init-from lumina_t2i
"""

from lumina_jax.config import Config
from lumina_jax.config_files import load_config


def get_config() -> Config:
    return load_config("t2i_5b_256").replace(
        data={"image_size": 1024, "batch_rows": 128},
        run={"name": "t2i_5b_1024", "init_from": "runs/t2i_5b_512"},
    )
