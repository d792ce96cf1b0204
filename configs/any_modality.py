"""One small model of everything: emoji, moving emoji, furniture from all around, and spoken words.

No PyTorch layout holds the trained model: the authors' code knows one kind of data at a time.

What Lumina-T2X proposes as one framework, trained as one network: each kind of data has its own input and output
projection and all else in common. Samples of all kinds share rows of 640 tokens, each with its own time and caption,
and one compiled step trains them. Captions of all kinds, words to be spoken included, go through one frozen MiniLM.

Hardware: 2 CPU cores. Before: lumina data prepare NAME for fluent-animated, furniture and flite-speech
Run: lumina train any_modality
     lumina sample runs/any_modality "pizza, noto style"
     lumina sample runs/any_modality "dragon" --modality video --video-frames 8
     lumina sample runs/any_modality "armchair" --modality views --views 6
     lumina sample runs/any_modality "[170 Hz] banana" --modality speech
Each kind alone, at equal tokens: python benchmarks/joint_training.py
"""

from lumina_jax.config import (
    ClipConfig,
    Config,
    DataConfig,
    EmojiConfig,
    FlowConfig,
    ModalityConfig,
    ModelConfig,
    OptimizerConfig,
    Part,
    PictureConfig,
    PreparedConfig,
    RunConfig,
    SampleConfig,
    SoundConfig,
    TextConfig,
    ViewsConfig,
)

MIXTURE = (
    Part(source=EmojiConfig(emoji_names=24), media=PictureConfig(image_size=32), weight=0.49),
    Part(
        source=PreparedConfig(path="data/fluent-animated", limit=16),
        media=ClipConfig(frames=8, image_size=32),
        modality="video",
        weight=0.07,
    ),
    Part(
        source=PreparedConfig(path="data/furniture", limit=16),
        media=ViewsConfig(frames=6, image_size=32),
        modality="views",
        weight=0.09,
    ),
    Part(
        source=PreparedConfig(path="data/flite-speech"),
        media=SoundConfig(seconds=0.9, pitch=True, seconds_per_phoneme=0.046, pause=0.35),
        modality="speech",
        weight=0.35,
    ),
)
"""Weights are shares of samples, which are 72, 584, 438 and about 50 tokens long."""


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            layers=4,
            heads=4,
            width=192,
            patch_size=4,
            channels=3,
            modality="image",
            others=(
                ModalityConfig(name="video", patch_size=4, channels=3),
                ModalityConfig(name="views", patch_size=4, channels=3),
                ModalityConfig(name="speech", patch_size=1, channels=80),
            ),
            text_width=384,
            mlp_multiple_of=32,
            compute_dtype="float32",
            remat="none",
        ),
        flow=FlowConfig(times="lognorm"),
        text=TextConfig(encoder="minilm", max_tokens=16),
        data=DataConfig(mixture=MIXTURE, batch_rows=4, row_tokens=640, samples_per_row=12),
        optimizer=OptimizerConfig(
            learning_rate=1.5e-3,
            schedule="cosine",
            warmup_steps=50,
            beta2=0.99,
            ema_decay=0.998,
            ema_warmup=True,
        ),
        sample=SampleConfig(solver="midpoint", steps=20, guidance=3.0, proportional_attention=False),
        run=RunConfig(name="any_modality", steps=2800, log_every=50, checkpoint_every=500),
    )
