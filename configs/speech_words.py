"""Spoken words from text, as the model in the package was trained, which `lumina sample speech` speaks with.

No PyTorch layout holds the trained model: the authors never released code for speech, with its encoder of phonemes.

1,318 English words, each in nine manners. One word in twelve is never trained on, so that phonemes have to be read.
The network is that of configs/speech.py. docs/speech-model.md has the numbers.

Hardware: 2 CPU cores, an hour. Before: lumina data prepare flite-speech --words 1318
Run: lumina train speech_words; lumina sample runs/speech_words "[150 Hz] violin" butterfly --seconds 0.9
"""

from lumina_jax.config import Config, SoundConfig
from lumina_jax.config_files import load_config


def get_config() -> Config:
    base = load_config("speech")
    sounds = SoundConfig(seconds=1.5, pitch=True, seconds_per_phoneme=0.07, pause=0.28)
    return base.replace(
        text={"max_tokens": 24},
        data={"media": sounds},
        optimizer={"name": "muon", "learning_rate": 0.005, "schedule": "linear"},
        run={"name": "speech_words", "steps": 6200, "log_every": 100, "checkpoint_every": 1000, "evaluate_every": 1000},
    )
