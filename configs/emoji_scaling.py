"""The grids of docs/scaling-laws.md and docs/recipe.md: every emoji of both styles, 32 x 32 pixels, for models of 30K
to 3M parameters.

3,122 pictures from their captions, one in eight of them held out. The model is that of configs/emoji.py, of which
`lumina scaling plan` changes the size, with heads of 8 values. The learning rate decays to 0 at the end of each run: of
0.001, 0.002, 0.004 and 0.008 the largest is best for models of 317K and of 950K parameters at 6e11 FLOPs.

Hardware: 2 CPU cores. Run: lumina scaling plan emoji_scaling --budgets 1e12,4e12 --sizes 30K,100K,300K
"""

import dataclasses

from lumina_jax.config import Config, EmojiConfig
from lumina_jax.config_files import load_config


def get_config() -> Config:
    base = load_config("emoji")
    model = dataclasses.replace(base.model, heads=16)
    data = dataclasses.replace(base.data, source=EmojiConfig(emoji_names=1561), batch_rows=16)
    optimizer = dataclasses.replace(
        base.optimizer, learning_rate=8e-3, schedule="cosine", warmup_steps=20, ema_decay=0.99
    )
    run = dataclasses.replace(
        base.run, name="emoji_scaling", sample_every=None, sample_prompts=(), log_every=50, evaluate_samples=96
    )
    return dataclasses.replace(base, model=model, data=data, optimizer=optimizer, run=run)
