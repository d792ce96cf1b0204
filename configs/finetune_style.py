"""A style from 10 to 50 pictures: low-rank adapters of a trained model, which keep its other styles.

A folder of pictures in one style. Their captions are the names of their files and a word for the style which the model
does not know; with a .jsonl, or a .txt beside each picture, --data.caption "{caption}, zbx style" works, too. A fifth
is held out, and the run stops when the loss on it no longer falls. Its sheets show what the base draws beside what is
drawn with the adapter.

On GPUs and TPUs for Next-DiT 2B (configs/next_dit_2b.py), on CPUs for a model of pixels that configs/emoji.py trained.
Run: lumina train finetune_style --data.path pictures --run.init-from lumina_next
     lumina sample lumina_next "a whale, zbx style" --config next_dit_2b --adapter runs/finetune_style
"""

import dataclasses

from lumina_jax.config import Config, FinetuneConfig, FolderConfig, OptimizerConfig, PictureConfig
from lumina_jax.config_files import load_config


def get_config(on_cpu: bool) -> Config:
    base = load_config("emoji" if on_cpu else "next_dit_2b")
    data = dataclasses.replace(
        base.data,
        source=FolderConfig(path="pictures", caption="{name}, zbx style", held_out=0.2),
        media=PictureConfig(image_size=32) if on_cpu else base.data.media,
        batch_rows=32 if on_cpu else 4,
        workers=0,
        prefetch=16,
        bad_samples=0,
    )
    return dataclasses.replace(
        base,
        data=data,
        model=base.model if on_cpu else base.model.replace(remat="full"),
        finetune=FinetuneConfig(rank=8 if on_cpu else 16),
        optimizer=OptimizerConfig(
            learning_rate=1e-3 if on_cpu else 1e-4, warmup_steps=20, beta2=0.99, ema_decay=0.99, ema_warmup=True
        ),
        run=base.run.replace(
            name="finetune_style",
            steps=2000,
            log_every=20,
            checkpoint_every=200,
            evaluate_every=50,
            patience=4,
            sample_every=200,
            sample_prompts=(),
        ),
    )
