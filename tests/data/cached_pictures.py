"""Small pictures, the tiny autoencoder, and what the cache of their latents holds."""

from pathlib import Path

import numpy as np
from PIL import Image

from lumina_jax.config import DataConfig, FolderConfig, ModelConfig, PictureConfig, VaeConfig
from lumina_jax.data import latents
from lumina_jax.encoders.image_vae import ImageVae
from lumina_jax.modalities import modality_of_source
from lumina_jax.parts import CACHE_VERSION

GOLDEN = Path(__file__).parent.parent / "golden" / "vae_tiny"
SIDE, FACTOR = 16, 4
DATA = DataConfig(
    source=FolderConfig(path="pictures"),
    media=PictureConfig(image_size=SIDE),
    batch_rows=2,
    caption_dropout=0.0,
    prefetch=2,
)
MODEL = ModelConfig(layers=1, heads=2, width=8, channels=4, patch_size=2, text_width=3)
PICTURES = 7


class CountingVae(ImageVae):
    """An autoencoder that remembers how many batches it has encoded."""

    def __init__(self, loaded):
        self.__dict__ = {**loaded.__dict__, "batches": 0}

    def encode(self, pixels):
        self.batches += 1
        return super().encode(pixels)


def write_picture(file, random):
    Image.fromarray(random.integers(0, 255, (SIDE + 4, SIDE + 9, 3), np.uint8)).save(file)


def in_latents(data=DATA, model=MODEL):
    """The modality of a source of pictures in latents of the tiny autoencoder."""
    return modality_of_source(data, model, VaeConfig(path=str(GOLDEN)))


def encode_pictures(source, vae, data, model, folder, **settings):
    return latents.encode(source, in_latents(data, model).encoding(vae), folder, **settings)


def encode(source, vae, tmp_path, data=DATA, **settings):
    return encode_pictures(source, vae, data, MODEL, tmp_path / "cache", **settings)


def parts(tmp_path):
    """Files with latents, and what is beside them."""
    [folder] = [entry for entry in (tmp_path / "cache" / CACHE_VERSION).iterdir() if entry.name != "files"]
    return sorted(folder.iterdir())


def part_of(encoded, index):
    return encoded._folder / encoded._names[encoded._part_of[index]]


def counted_batches(vae, call):
    """What a call returns, and how many batches of one or two pictures it has encoded."""
    before = vae.batches
    return call(), vae.batches - before
