"""Spoken words from text, on a laptop: 48 words, each in nine manners.

No PyTorch layout holds the trained model: the authors never released code for speech, with its encoder of phonemes.

Text to speech at its smallest: phonemes through a text encoder that is trained from scratch, and the mel spectrogram
itself as a sequence of one token for each of its frames. Griffin and Lim's iteration makes it audible.

Hardware: 2 CPU cores. Before: lumina data prepare flite-speech
Run: lumina train speech; lumina sample runs/speech "[150 Hz] good morning" morning --seconds 0.8
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
    SoundConfig,
    TextConfig,
)


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            layers=4,
            heads=4,
            width=192,
            patch_size=1,
            channels=80,
            modality="speech",
            text_width=50,
            text_layers=2,
            mlp_multiple_of=32,
            compute_dtype="float32",
            remat="none",
        ),
        flow=FlowConfig(times="lognorm"),
        text=TextConfig(encoder="phonemes", max_tokens=16),
        data=DataConfig(
            source=PreparedConfig(path="data/flite-speech"),
            media=SoundConfig(seconds=0.9, pitch=True, seconds_per_phoneme=0.046, pause=0.35),
            batch_rows=6,
            row_tokens=256,
            samples_per_row=6,
        ),
        optimizer=OptimizerConfig(
            learning_rate=1.5e-3,
            schedule="cosine",
            warmup_steps=50,
            beta2=0.98,
            eps=1e-9,
            ema_decay=0.998,
            ema_warmup=True,
        ),
        sample=SampleConfig(solver="midpoint", steps=20, guidance=2.0, proportional_attention=False),
        run=RunConfig(name="speech", steps=2000, log_every=50, checkpoint_every=500),
    )
