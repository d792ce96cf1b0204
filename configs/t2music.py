"""Text to music: the one-dimensional Flag-DiT of the authors' `lumina_music`.

16 layers of 768 on the latents of a mel spectrogram at 16 kHz: 20 channels, one for each two frames, 312 of them in ten
seconds. Captions through Flan-T5-large, 77 tokens of which padding is seen too, as released. The authors give a base
learning rate of 3e-6 for each sample of a batch, 10,000 steps of warmup and neither batch nor length: 32 and 200,000
are ours.
Hardware: a TPU v5e-8. Before, on every host:
  hf download google/flan-t5-large --include config.json 'token*' spiece.model model.safetensors
  hf download Alpha-VLLM/Lumina-T2Music --local-dir released
  cp lumina-text2music.yaml released/maa2/          # of the authors' code; add a line to it: scale_factor: NUMBER
Run: lumina train t2music --data.path music
     lumina sample runs/t2music "a bagpipe ensemble plays a quick melody" --seconds 9.9
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
        text=TextConfig(encoder="google/flan-t5-large", max_tokens=77, see_padding=True),
        vae=VaeConfig(path="released/maa2", vocoder="released/bigvnat"),
        data=DataConfig(
            source=FolderConfig(path="music"),
            media=SoundConfig(seconds=9.984, sample_rate=16_000),
            batch_rows=32,
            workers=8,
            prefetch=64,
            bad_samples=1000,
        ),
        optimizer=OptimizerConfig(learning_rate=9.6e-5, warmup_steps=10_000),
        mesh=MeshConfig(fsdp=1),
        sample=SampleConfig(solver="euler", steps=40, guidance=5.0, proportional_attention=False),
        run=RunConfig(name="t2music", steps=200_000, log_every=100, checkpoint_every=5_000),
    )
