"""Emoji of 64 x 64 pixels in four styles: how the model in the package was trained, which `lumina sample emoji` draws
with.

5,625 pictures; the pairs of name and style that configs/emoji.py holds out, and one name in twenty, are never trained
on. Every second caption has keywords instead of the name. A Next-DiT of 11.7M parameters predicts the picture itself
from patches of 4 x 4; its loss is that of the velocity. Muon trains its matrices. docs/emoji-model.md has the numbers.

Hardware: one GPU, 20 minutes on an H100. Run: lumina data prepare emoji --size 64 && lumina train emoji_64
"""

import dataclasses

from lumina_jax.config import Config, FlowConfig, PictureConfig, PreparedConfig
from lumina_jax.config_files import load_config

PROMPTS = (
    "red heart, fluent style",
    "pizza, noto style",
    "sunflower, twemoji style",
    "rainbow, emojione style",
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
        layers=9,
        heads=8,
        width=256,
        patch_size=4,
        rope_axes=2,
        nextline=False,
        final_shift=False,
        compute_dtype="bfloat16",
    )
    data = dataclasses.replace(
        base.data,
        source=PreparedConfig(path="data/emoji", captions=("tags",)),
        media=PictureConfig(image_size=64),
        batch_rows=256,
        workers=12,
        prefetch=1024,
    )
    optimizer = dataclasses.replace(
        base.optimizer, name="muon", learning_rate=0.01, schedule="linear", weight_decay=0.05, ema_decay=0.9995
    )
    run = dataclasses.replace(
        base.run,
        name="emoji_64",
        steps=12_000,
        log_every=100,
        checkpoint_every=2500,
        sample_every=None,
        sample_prompts=PROMPTS,
        evaluate_every=1000,
    )
    flow = FlowConfig(prediction="data", loss_weight="velocity", times="lognorm", time_shift=2.0)
    sample = base.sample.replace(solver="dpmpp_2m")  # which ends at a picture that the network has predicted
    return dataclasses.replace(base, model=model, flow=flow, data=data, optimizer=optimizer, sample=sample, run=run)
