"""Emoji of 64 x 64 pixels in three styles: how the model in the package was trained, which `lumina sample emoji` draws
with.

4,596 pictures; the pairs of name and style that configs/emoji.py holds out, and one name in twenty, are never trained
on. A Next-DiT of 4.7M parameters predicts the picture itself from patches of 8 x 8, so that 64 pixels cost as much as
32 in patches of 4; its loss is that of the velocity. After 200 steps of 64 Muon had a held-out loss of 0.283 at the
middle times, and AdamW (rate 0.004) 0.324. Times are shifted towards noise, where captions decide what is drawn.

Hardware: 2 CPU cores, about two hours. Run: lumina data prepare emoji --size 64 && lumina train emoji_64
"""

import dataclasses

from lumina_jax.config import Config, FlowConfig, PictureConfig, PreparedConfig
from lumina_jax.config_files import load_config

PROMPTS = (
    "red heart, fluent style",
    "pizza, noto style",
    "sunflower, twemoji style",
    "rainbow, fluent style",
    "cat face, noto style",
    "green apple, fluent style",
    "a slice of pizza, noto style",
    "green cat, noto style",
)


def get_config() -> Config:
    base = load_config("emoji")
    model = dataclasses.replace(
        base.model,
        block="next",
        layers=6,
        heads=6,
        width=192,
        patch_size=8,
        rope_axes=2,
        nextline=False,
        final_shift=False,
    )
    flow = FlowConfig(prediction="data", loss_weight="velocity", times="lognorm", time_shift=3.0)
    data = dataclasses.replace(
        base.data, source=PreparedConfig(path="data/emoji"), media=PictureConfig(image_size=64), batch_rows=64
    )
    optimizer = dataclasses.replace(base.optimizer, name="muon", learning_rate=0.02, schedule="linear", ema_decay=0.998)
    run = dataclasses.replace(
        base.run,
        name="emoji_64",
        steps=4650,
        log_every=50,
        checkpoint_every=500,
        sample_every=None,
        sample_prompts=PROMPTS,
        evaluate_every=1000,
    )
    return dataclasses.replace(base, model=model, flow=flow, data=data, optimizer=optimizer, run=run)
