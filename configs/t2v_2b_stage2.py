"""Lumina-T2V 2B, second stage: clips of any aspect ratio and length, up to 120 frames and 128K tokens.

No PyTorch layout holds the trained model: the authors never released code for video, with its [nextframe] token.

The report (arXiv 2405.05945, section 2.4) goes on from 512 x 512 with 40K long clips of Pexels. A row of 131,072 tokens
holds one long clip or several short ones: a frame of the area of 512 x 512 has 1,057 tokens as a square, up to 1,089 at
1 : 4. For larger frames raise data.image_size and lower data.frames.
Hardware and downloads: as for configs/t2v_2b_stage1.py.
Recommended on v5p:4x4x4: --mesh.fsdp 64 --model.remat attention
Run: lumina train t2v_2b_stage2 --data.path clips
"""

from lumina_jax.config import Config
from lumina_jax.config_files import load_config


def get_config() -> Config:
    return load_config("t2v_2b_stage1").replace(
        data={"crop": "buckets", "frames": 120, "batch_rows": 64, "row_tokens": 131_072, "samples_per_row": 8},
        sample={"time_shift": 6.0},
        run={"name": "t2v_2b_stage2", "init_from": "runs/t2v_2b_stage1", "steps": 40_000},
    )
