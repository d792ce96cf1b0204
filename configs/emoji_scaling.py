"""The grid of docs/scaling-laws.md: every emoji of both styles, 32 x 32 pixels, for models of 30K to 3M parameters.

3,122 pictures from their captions, one in eight of them held out. The model is that of configs/emoji.py, of which
`lumina scaling plan` changes the size; the learning rate decays to 0 at the end of each run.

Hardware: 2 CPU cores. Run: lumina scaling plan emoji_scaling --budgets 1e12,4e12 --sizes 30K,100K,300K
"""

import dataclasses

from lumina_jax.config import Config, EmojiConfig
from lumina_jax.config_files import load_config


def get_config() -> Config:
    base = load_config("emoji")
    data = dataclasses.replace(base.data, source=EmojiConfig(emoji_names=1561), batch_rows=16)
    optimizer = dataclasses.replace(base.optimizer, learning_rate=2e-3, warmup_steps=20, ema_decay=0.99)
    run = dataclasses.replace(base.run, name="emoji_scaling", sample_every=None, sample_prompts=(), log_every=50)
    return dataclasses.replace(base, data=data, optimizer=optimizer, run=run)
