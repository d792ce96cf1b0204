"""Ask the torch models of tests/encoders/torch_sound.py what a sound autoencoder and a vocoder of fixed numbers answer.

Needs torch. From the root of the repository:
    python tools/make_sound_golden.py tests/golden/sounds/vae_and_vocoder.safetensors
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "encoders"))

from sound_layout import CHANNELS, VAE, VOCODER, latents, random_tensors, random_vocoder, spectrograms
from torch_sound import TorchVae, TorchVocoder


def main() -> None:
    tensors = {name: torch.from_numpy(values) for name, values in random_tensors(VAE, CHANNELS).items()}
    model = TorchVae(tensors, VAE)
    mel, unit = torch.from_numpy(spectrograms()).double().transpose(1, 2), math.log(10)
    mean, log_variance = (x.transpose(1, 2).numpy() for x in model.encode(mel / unit))
    decoded = model.decode(torch.from_numpy(latents()).double().transpose(1, 2)).transpose(1, 2).numpy() * unit

    voice = TorchVocoder(VOCODER)
    voice.load_state_dict({name: torch.from_numpy(values) for name, values in random_vocoder(VOCODER).items()})
    with torch.no_grad():
        samples = voice.double()(mel[:1] / unit)[0].numpy()
    answers = {"mean": mean, "log_variance": log_variance, "decoded": decoded, "samples": samples}
    save_file({name: np.ascontiguousarray(value, np.float32) for name, value in answers.items()}, sys.argv[1])


if __name__ == "__main__":
    main()
