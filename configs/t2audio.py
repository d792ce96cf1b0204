"""Text to sounds of all kinds: the one-dimensional Flag-DiT of the authors' `lumina_audio`.

As configs/t2music.py in all but the text: CLAP's encoder reads the caption, T5 v1.1 large the structured one that may
follow it, "a bell rings <bell ringing& all>", and the network sees the 77 tokens of either one after another.
Hardware: a TPU v5e-8. Before, on every host:
  hf download google/t5-v1_1-large --include config.json spiece.model '*token*' model.safetensors
  hf download Alpha-VLLM/Lumina-T2Audio --local-dir released
  hf download google-bert/bert-base-uncased config.json tokenizer.json --local-dir released/CLAP
  cp lumina-text2audio.yaml released/maa2/          # of the authors' code; add a line to it: scale_factor: NUMBER
Run: lumina train t2audio --data.path sounds
     lumina sample runs/t2audio "a telephone bell rings <telephone bell ringing& all>" --seconds 9.9
"""

from lumina_jax.config import (
    Config,
    DataConfig,
    FlowConfig,
    FolderConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    SampleConfig,
    SoundConfig,
    TextConfig,
    VaeConfig,
)
from lumina_jax.models.presets import preset


def get_config() -> Config:
    return Config(
        model=preset("Audio"),
        flow=FlowConfig(times="uniform"),
        text=TextConfig(encoder="released/CLAP,google/t5-v1_1-large", max_tokens=77, see_padding=True),
        vae=VaeConfig(path="released/maa2", vocoder="released/bigvnat"),
        data=DataConfig(
            source=FolderConfig(path="sounds"),
            media=SoundConfig(seconds=9.984, sample_rate=16_000),
            batch_rows=32,
            workers=8,
            prefetch=64,
            bad_samples=1000,
        ),
        optimizer=OptimizerConfig(learning_rate=9.6e-5, warmup_steps=10_000),
        mesh=MeshConfig(fsdp=1),
        sample=SampleConfig(solver="euler", steps=40, guidance=5.0, proportional_attention=False),
        run=RunConfig(name="t2audio", steps=200_000, log_every=100, checkpoint_every=5_000),
    )
