"""Make a tiny random image autoencoder with diffusers, and what it answers: the golden data of its tests.

    pip install torch==2.13.0 diffusers safetensors
    python tools/make_vae_golden.py tests/golden/vae_tiny

Writes config.json and diffusion_pytorch_model.safetensors as published autoencoders have them, and
expected.safetensors, computed in float64 and channels last: `pixels` [b h w 3] with the `mean` and `log_variance` of
their latents; `latents` [b v u c] with the pixels `decoded` from them; `tiled` pixels of more latents, and their
`tiled_latents`, decoded in tiles of 16 pixels; `tiled_mean` of the first 8 rows of `tiled`, encoded in such tiles.
Every parameter is random, norms and biases too, so that none can hide, and activations are small, so that the epsilon
of a norm cannot hide either.
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

TILE = 16
SETTINGS = {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [8, 8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": TILE,
    "scaling_factor": 0.13025,
}


def main(folder: Path, seed: int = 0) -> None:
    """Write the three files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    model = random_vae(seed)
    model.save_pretrained(folder)
    model = model.double()
    generator = torch.Generator().manual_seed(seed + 1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    pixels, latents, tiled_latents = draw(2, 3, 24, 20).tanh(), draw(2, 4, 5, 3), draw(1, 4, 9, 11)
    scaling = model.config["scaling_factor"]
    with torch.no_grad():
        posterior = model.encode(pixels).latent_dist
        decoded = model.decode(latents / scaling).sample
        model.enable_tiling()
        tiled = model.decode(tiled_latents / scaling).sample
        tiled_mean = model.encode(tiled[:, :, :8]).latent_dist.mean
    expected = {
        "pixels": pixels,
        "mean": posterior.mean,
        "log_variance": posterior.logvar,
        "latents": latents,
        "decoded": decoded,
        "tiled_latents": tiled_latents,
        "tiled": tiled,
        "tiled_mean": tiled_mean,
    }
    channels_last = {name: value.permute(0, 2, 3, 1).float().contiguous() for name, value in expected.items()}
    save_file(channels_last, folder / "expected.safetensors", metadata={"meta": json.dumps({"seed": seed})})


def random_vae(seed: int, **settings: object) -> AutoencoderKL:
    """An autoencoder of these settings whose every parameter is random."""
    model = AutoencoderKL(**{**SETTINGS, **settings}).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm_weight = "norm" in name and name.endswith("weight")
            scale = 0.5 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            values = torch.randn(parameter.shape, generator=generator) * scale
            parameter.copy_(values + 1 if is_norm_weight else values)
        model.encoder.conv_out.weight.mul_(8)  # a latent of about 1, far from nothing but its bias
        model.decoder.conv_out.weight.mul_(4)
        for half in (model.encoder, model.decoder):
            for attention in half.mid_block.attentions:
                if attention is not None:
                    attention.to_q.weight.mul_(4)
                    attention.to_k.weight.mul_(4)  # attention that looks at some pixels more than at others
    return model


if __name__ == "__main__":
    main(Path(sys.argv[1]))
