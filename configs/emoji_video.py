"""Moving emoji from text, on a laptop: 24 clips of 8 frames, 32 x 32 pixels.

No PyTorch layout holds the trained model: the authors never released code for video, with its [nextframe] token.

Text to video at its smallest: captions through a frozen MiniLM, pixels as latents, a Flag-DiT with patches of 4 x 4,
[nextline] after each row and [nextframe] after each frame: 584 tokens a clip.

Hardware: 2 CPU cores. Before: lumina data prepare fluent-animated
Run: lumina train emoji_video
"""

from lumina_jax.config import (
    ClipConfig,
    Config,
    DataConfig,
    FlowConfig,
    ModelConfig,
    OptimizerConfig,
    PreparedConfig,
    RunConfig,
    SampleConfig,
    TextConfig,
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
            compute_dtype="float32",
            remat="none",
        ),
        flow=FlowConfig(times="lognorm"),
        text=TextConfig(encoder="minilm", max_tokens=16),
        data=DataConfig(
            source=PreparedConfig(path="data/fluent-animated", limit=24),
            media=ClipConfig(frames=8, image_size=32),
            batch_rows=4,
        ),
        optimizer=OptimizerConfig(
            learning_rate=1.5e-3,
            schedule="cosine",
            warmup_steps=50,
            beta2=0.99,
            ema_decay=0.998,
            ema_warmup=True,
        ),
        sample=SampleConfig(solver="midpoint", steps=20, guidance=3.0),
        run=RunConfig(name="emoji_video", steps=4500, log_every=50, checkpoint_every=500),
    )
