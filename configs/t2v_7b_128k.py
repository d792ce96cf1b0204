"""Text to video at the largest size and length together: 7B parameters, 131,072 tokens in a row.

No PyTorch layout holds the trained model: the authors never released code for video, with its [nextframe] token.

The report (Lumina-T2X, arXiv 2405.05945) claims both, 7B parameters (label-conditional) and 128K tokens (2B), and
trains no model of the two; this is the configuration that shows that ours can. 32 layers of 4096; data and captions as
in configs/t2v_2b_stage2.py: clips of up to 120 frames of the area of 512 x 512, one to a row.
Hardware: v5p:4x4x4 (64 chips) or v6e:16x16 (256) at 16 rows; docs/scaling.md has estimates of memory and speed.
Recommended on v6e:16x16: --mesh.fsdp 8 --mesh.sequence 32
Recommended on v5p:4x4x4: --mesh.fsdp 16 --mesh.sequence 4 --model.remat attention
Run: lumina train t2v_7b_128k --data.path clips
"""

from lumina_jax.config import Config
from lumina_jax.config_files import load_config
from lumina_jax.models.presets import SIZES


def get_config() -> Config:
    return load_config("t2v_2b_stage2").replace(
        model=SIZES["7B"] | {"remat": "attention"},
        data={"batch_rows": 16, "samples_per_row": 1},
        mesh={"sequence": 4},
        run={"name": "t2v_7b_128k", "init_from": "", "steps": 40_000},
    )
