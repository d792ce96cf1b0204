"""Your own captioned pictures, at 64 pixels.

A folder with images and one .jsonl of captions (docs/data.md); pixels as latents. On GPUs and TPUs a Flag-DiT of 12M
parameters with patches of 4 x 4, on pictures in their own aspect ratio, several to a row. On CPUs one of 4M parameters
with patches of 8 x 8, on the middle square of each picture: a quarter of the tokens, so that a hundred pictures can be
recognised after ten minutes on 2 cores. A run that was begun with one of them keeps it, wherever it goes on.
Run: lumina train folder --data.path FOLDER --run.name NAME
"""

from lumina_jax.config import (
    Config,
    DataConfig,
    FolderConfig,
    ModelConfig,
    OptimizerConfig,
    PictureConfig,
    RunConfig,
    SampleConfig,
    TextConfig,
)


def get_config(on_cpu: bool) -> Config:
    large = Config(
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
            source=FolderConfig(path="pictures"),
            media=PictureConfig(image_size=64, crop="buckets"),
            batch_rows=8,
            row_tokens=640,
            samples_per_row=2,
        ),
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=200, ema_decay=0.999, ema_warmup=True),
        sample=SampleConfig(solver="midpoint", steps=30, guidance=4.0),
        run=RunConfig(name="folder", steps=20_000, log_every=20, checkpoint_every=500, sample_every=1000),
    )
    return small(large) if on_cpu else large


def small(large: Config) -> Config:
    """What a CPU learns in minutes."""
    return large.replace(
        model={"layers": 4, "width": 192, "patch_size": 8, "mlp_multiple_of": 32},
        data={"crop": "square", "batch_rows": 32, "row_tokens": None, "samples_per_row": 1},
        optimizer={"learning_rate": 1.5e-3, "warmup_steps": 50, "beta2": 0.99, "ema_decay": 0.998},
        sample={"steps": 20, "guidance": 3.0},
        run={"steps": 2000, "checkpoint_every": 200, "sample_every": 200},
    )
