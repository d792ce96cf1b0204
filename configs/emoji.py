"""Emoji from text, on a laptop: 40 names in two styles, 32 x 32 pixels, no download.

The main job at its smallest: captions through a frozen MiniLM, pixels as latents, a Flag-DiT of 1.7M parameters with
patches of 4 x 4. One pair in eight of (name, style) is held out; its name is seen in the other style only. The rate is
constant, which is better than decay in so short a run (docs/recipe.md); the average of the parameters is drawn.

Hardware: 2 CPU cores. Run: lumina train emoji
"""

from lumina_jax.config import (
    Config,
    DataConfig,
    EmojiConfig,
    FlowConfig,
    ModelConfig,
    OptimizerConfig,
    PictureConfig,
    RunConfig,
    SampleConfig,
    TextConfig,
)

PROMPTS = (
    "red heart, fluent style",
    "red heart, noto style",
    "pizza, fluent style",
    "pizza, noto style",
    "sunflower, fluent style",
    "sunflower, noto style",
    "rainbow, fluent style",
    "rainbow, noto style",
)


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            layers=4,
            heads=4,
            width=128,
            patch_size=4,
            channels=3,
            text_width=384,
            mlp_multiple_of=32,
            nextframe=False,
            compute_dtype="float32",
            remat="none",
        ),
        flow=FlowConfig(times="lognorm"),
        text=TextConfig(encoder="minilm", max_tokens=16),
        data=DataConfig(source=EmojiConfig(emoji_names=40), media=PictureConfig(image_size=32), batch_rows=32),
        optimizer=OptimizerConfig(
            learning_rate=1.5e-3,
            schedule="constant",
            warmup_steps=50,
            beta2=0.99,
            ema_decay=0.998,
            ema_warmup=True,
        ),
        sample=SampleConfig(solver="midpoint", steps=20, guidance=3.0),
        run=RunConfig(
            name="emoji",
            steps=1100,
            log_every=50,
            checkpoint_every=400,
            sample_every=400,
            sample_prompts=PROMPTS,
        ),
    )
