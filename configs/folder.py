"""Your own captioned pictures, at 64 pixels in their own aspect ratio, packed several to a row.

A folder with images and one .jsonl of captions (docs/data.md); pixels as latents, a Flag-DiT of 13M parameters with
patches of 4 x 4. Hardware: any; on 2 CPU cores a step takes seconds, so let it run overnight or lower model.width.
Run: python train.py configs/folder.py --data.path FOLDER --run.name NAME
"""

from lumina_jax.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    SampleConfig,
    TextConfig,
)


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            layers=8,
            heads=4,
            width=256,
            patch_size=4,
            channels=3,
            text_width=384,
            mlp_multiple_of=64,
            nextframe=False,
            compute_dtype="float32",
            remat="none",
        ),
        text=TextConfig(encoder="minilm", max_tokens=32),
        data=DataConfig(
            source="folder",
            path="pictures",
            image_size=64,
            crop="buckets",
            batch_rows=8,
            row_tokens=640,
            samples_per_row=2,
        ),
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=200, ema_decay=0.999, ema_warmup=True),
        sample=SampleConfig(solver="midpoint", steps=30, guidance=4.0),
        run=RunConfig(name="folder", steps=20_000, log_every=20, checkpoint_every=500),
    )
