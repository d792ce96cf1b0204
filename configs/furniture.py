"""Things of the house from all around, from text, on a laptop: 16 objects in 12 views each, 32 x 32 pixels.

No PyTorch layout holds the trained model: the authors never released code for views, with its [nextframe] token.

Text to views at its smallest (Lumina-T2MV: 12 views, elevation 30 degrees, even azimuths, white ground, no camera
input): every view is a frame. Patches of 8 x 8 pixels make 252 tokens of an object, so that 12 views are soon learned.

Hardware: 2 CPU cores. Before: lumina data prepare furniture
Run: lumina train furniture; lumina sample runs/furniture "grand piano" armchair --views 12
"""

from lumina_jax.config import (
    Config,
    DataConfig,
    FlowConfig,
    ModelConfig,
    OptimizerConfig,
    PreparedConfig,
    RunConfig,
    SampleConfig,
    TextConfig,
    ViewsConfig,
)


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            layers=4,
            heads=8,
            width=256,
            patch_size=8,
            channels=3,
            modality="views",
            text_width=384,
            mlp_multiple_of=32,
            compute_dtype="float32",
            remat="none",
        ),
        flow=FlowConfig(times="lognorm"),
        text=TextConfig(encoder="minilm", max_tokens=16),
        data=DataConfig(
            source=PreparedConfig(path="data/furniture", limit=16),
            media=ViewsConfig(frames=12, image_size=32),
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
        run=RunConfig(name="furniture", steps=5000, log_every=50, checkpoint_every=500),
    )
