"""What each modality says of its geometry, and that its way to latents and back fits together."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest

from lumina_jax.config import (
    AutoencoderConfig,
    ClipConfig,
    Config,
    DataConfig,
    MediaConfig,
    ModalityConfig,
    ModelConfig,
    OtherAutoencoder,
    Part,
    PictureConfig,
    SoundConfig,
    TextConfig,
    VaeConfig,
    ViewGridConfig,
    ViewsConfig,
)
from lumina_jax.data.example import Example, Record
from lumina_jax.data.preparation import Preparation
from lumina_jax.modalities import Asked, modality_of_source
from lumina_jax.modalities.decoding.media import LatentDistribution, Sound

MODEL = ModelConfig(
    layers=1,
    heads=2,
    width=16,
    patch_size=2,
    channels=4,
    others=(ModalityConfig(name="sound", patch_size=1, channels=80),),
)
SOUNDS = SoundConfig(seconds=0.6, sample_rate=16_000)
TONE = Sound((3000 * np.sin(np.arange(8000) / 9)).astype(np.int16), 16_000)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 40, 32, 3), np.uint8)


def modality(media, factor=1):
    """The modality of a source of these media, with an autoencoder if a factor is given."""
    data = DataConfig(media=media, modality="sound" if isinstance(media, SoundConfig) else None, caption_dropout=0.0)
    vae = AutoencoderConfig(path="somewhere") if factor > 1 else None
    return modality_of_source(data, MODEL, vae, factor=factor)


@pytest.mark.parametrize(
    ("media", "factor", "patch", "shape", "latents"),
    [
        (PictureConfig(image_size=32), 1, (2, 2), (32, 32, 1), (1, 32, 32, 4)),
        (PictureConfig(image_size=32), 8, (16, 16), (32, 32, 1), (1, 4, 4, 4)),
        (ClipConfig(image_size=32, frames=3), 4, (8, 8), (32, 32, 3), (3, 8, 8, 4)),
        (ViewsConfig(image_size=16, frames=6), 1, (2, 2), (16, 16, 6), (6, 16, 16, 4)),
        (ViewGridConfig(image_size=16, frames=6, grid_columns=3), 4, (8, 8), (32, 48, 1), (1, 8, 12, 4)),
        (SOUNDS, 1, (1, 1), (1, 38, 1), (1, 1, 38, 80)),
        (SOUNDS, 2, (1, 2), (1, 48, 1), (1, 1, 24, 80)),
    ],
)
def test_every_modality_says_how_large_patches_samples_and_latents_are(media, factor, patch, shape, latents):
    it = modality(media, factor)
    assert it.patch_extent == patch
    assert it.trained_shape == shape
    assert it.latent_size(it.trained_shape) == latents
    assert it.latent_extents == [latents[:3]]


def test_buckets_have_the_latents_of_every_size_that_patches_fill():
    extents = modality(PictureConfig(image_size=64, crop="buckets"), 4).latent_extents
    assert (1, 16, 16) in extents
    assert all(height * width <= 16 * 16 and height % 2 == width % 2 == 0 for _, height, width in extents)
    assert len(extents) == len(set(extents)) > 8


@pytest.mark.parametrize(
    ("media", "record"),
    [
        (PictureConfig(image_size=16), PIXELS[0]),
        (ClipConfig(image_size=16, frames=3), PIXELS),
        (ViewGridConfig(image_size=16, frames=6, grid_columns=3), PIXELS),
        (SOUNDS, TONE),
    ],
)
def test_what_a_model_without_autoencoder_is_trained_on_is_shown_as_it_was_decoded(media, record):
    it = modality(media)
    decoded = it.decode(record, None)
    latents = it.to_latents(decoded)
    assert latents.dtype == np.float32
    assert latents.shape[:3] == it.latent_size(it.trained_shape)[:3] or isinstance(media, SoundConfig)
    assert np.abs(latents).max() <= 1.5
    np.testing.assert_allclose(it.shown(it.from_latents(latents[None], None))[0], decoded, atol=1e-5)
    assert it.preview(decoded).ndim == 3
    assert it.files(8.0).frames(decoded).shape[0] == getattr(media, "frames", 1)


@pytest.mark.parametrize(
    ("media", "record", "reason"),
    [
        (PictureConfig(), TONE, "is a sound, but data.media is 'pictures'"),
        (SOUNDS, PIXELS[0], "is not a sound, but data.media is 'sounds'"),
        (SOUNDS, LatentDistribution(PIXELS, PIXELS), "holds latents already"),
    ],
)
def test_media_of_another_modality_are_refused(media, record, reason):
    with pytest.raises(ValueError, match=reason):
        modality(media).decode(record, None)


def test_latents_that_were_encoded_before_pass_through_preparation():
    prepared = Preparation(modality(PictureConfig(image_size=32), 8), MODEL, 0)
    mean = np.ones((1, 4, 4, 4), np.float32)
    found = prepared((0, Record("it", LatentDistribution(mean, 0 * mean), "a word", None)))[1]
    assert isinstance(found, Example)
    np.testing.assert_array_equal(found.latents, mean)


def test_sizes_that_mean_nothing_for_a_modality_cannot_be_asked_for():
    text = TextConfig()
    with pytest.raises(ValueError, match="--size and --views say how large a picture is, but this draws sounds"):
        modality(SOUNDS).asked_shapes(Asked(size=3, views=4), ["a"], text)
    with pytest.raises(ValueError, match="--seconds says how long a sound is, but this draws pictures"):
        modality(PictureConfig()).asked_shapes(Asked(seconds=1.0), ["a"], text)
    assert modality(ClipConfig(frames=3)).asked_shapes(Asked(height=8, video_frames=2), ["a"], text) == [(8, 32, 2)]


def test_media_without_a_modality_are_refused():
    @dataclass(frozen=True, kw_only=True)
    class Smells(MediaConfig):
        kind: Literal["smells"] = "smells"

    try:
        with pytest.raises(ValueError, match=r"data\.media='smells' has no modality; register one"):
            modality_of_source(DataConfig(media=Smells()), MODEL)
    finally:
        MediaConfig.kinds.pop("smells")


# autoencoders


def configured(**others):
    mixture = (Part(media=PictureConfig(image_size=16)), Part(media=SOUNDS, modality="sound"))
    return Config(model=MODEL, data=DataConfig(mixture=mixture), vae=VaeConfig(path="a", vocoder="v", **others))


def test_each_modality_has_the_autoencoder_that_is_named_for_it():
    alone = configured()
    assert alone.vae_of(None).path == alone.vae_of("image").path == "a"
    assert alone.vae_of("sound") == AutoencoderConfig(vocoder="v")
    both = configured(others=(OtherAutoencoder(modality="sound", path="b"),))
    assert (both.vae_of(None).path, both.vae_of("sound").path) == ("a", "b")
    assert Config.from_json(both.to_json()) == both


@pytest.mark.parametrize("names", [("image",), ("smell",), ("sound", "sound")])
def test_autoencoders_of_modalities_that_are_not_there_or_named_twice_are_refused(names):
    with pytest.raises(ValueError, match=r"vae\.others must name modalities of model\.others, \['sound'\], each once"):
        configured(others=tuple(OtherAutoencoder(modality=name, path="b") for name in names))
