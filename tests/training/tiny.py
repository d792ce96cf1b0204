"""The smallest run that has every part: emoji of 16 pixels as labels or, through a made-up lookup, as captions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lumina_jax.config import (
    Config,
    DataConfig,
    EmojiConfig,
    ModelConfig,
    OptimizerConfig,
    PictureConfig,
    RunConfig,
    SampleConfig,
)
from lumina_jax.tokens import Tokens, pack, pack_text
from lumina_jax.training.step import TrainBatch

MODEL = ModelConfig(
    layers=2,
    heads=2,
    width=16,
    patch_size=8,
    channels=3,
    text_width=6,
    classes=48,
    mlp_multiple_of=8,
    compute_dtype="float32",
    remat="none",
)


def config(root="runs", **sections):
    whole = Config(
        model=MODEL,
        data=DataConfig(
            source=EmojiConfig(emoji_names=8), media=PictureConfig(image_size=32), batch_rows=4, prefetch=4
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, ema_decay=0.5, clip_norm=1.0),
        sample=SampleConfig(solver="euler", steps=2),
        run=RunConfig(name="tiny", root=str(root), steps=6, log_every=2, checkpoint_every=2),
    )
    return whole.replace(**sections)


def label_config(root="runs", **sections):
    whole = config(root, **sections)
    return dataclasses.replace(
        whole, model=dataclasses.replace(whole.model, conditioning="label", nextline=False, nextframe=False)
    )


def packed_batch(rows=4, seed=0):
    """Rows of up to two pictures of 16 x 16 and 8 x 24 pixels with captions of different lengths."""
    random = np.random.default_rng(seed)

    def latent(height, width):
        return random.uniform(-1, 1, (1, height, width, 3)).astype(np.float32)

    pictures = [[latent(16, 16), latent(8, 24)] if row % 2 else [latent(16, 16)] for row in range(rows)]
    tokens, _ = pack(pictures, row_tokens=12, patch_size=8, nextline=True, nextframe=True)
    captions = [[random.standard_normal((3, 6)).astype(np.float32) for _ in row] for row in pictures]
    present = np.array([[1.0, float(len(row) > 1)] for row in pictures], np.float32)
    batch = TrainBatch(Tokens(*tokens), pack_text(captions, 8), present)
    return jax.tree.map(jnp.asarray, batch)
