"""7B at 128K."""

from pathlib import Path

from lumina_jax.config import Config
from lumina_jax.models.presets import SIZES
from lumina_jax.run import load_config


def get_config() -> Config:
    return load_config(Path(__file__).with_name("t2v_2b_stage2.py")).replace(
        model=SIZES["7B"],
        data={"batch_rows": 64, "samples_per_row": 1},
        mesh={"fsdp": 16, "sequence": 4},
        run={"name": "t2v_7b_128k", "init_from": "", "steps": 40_000},
    )
