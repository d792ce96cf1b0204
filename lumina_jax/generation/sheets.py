"""Sheets of pictures: those a training run draws as it goes, and the parts that sampling shares with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from lumina_jax.config import Config, SoundConfig, VisualConfig
from lumina_jax.encoders.image_vae import ImageVae, load_image_vae
from lumina_jax.encoders.phonemes import spoken_seconds
from lumina_jax.encoders.sound_vae import SoundVae, read_sound_vae_config, sound_vae
from lumina_jax.encoders.text import TextEncoder, text_encoder
from lumina_jax.encoders.vae_files import read_vae_config, vae_folder
from lumina_jax.failures import written_to
from lumina_jax.generation.pipeline import Pipeline, Sample, Shape
from lumina_jax.generation.request import check_request
from lumina_jax.mel import HOP, frames_of, whole_frames
from lumina_jax.modalities.files.contact_sheet import contact_sheet
from lumina_jax.modalities.files.movies import frame_sheet
from lumina_jax.modalities.files.png import save_png
from lumina_jax.modalities.files.sounds import spectrogram_picture
from lumina_jax.models.flag_dit import abstract_model
from lumina_jax.parallel.mesh import make_mesh
from lumina_jax.run import run_folder

SHEET_BATCH = 16
LENGTH_STEP = 4
"""Frames of a spectrogram that the length of a spoken text is a multiple of."""


@runtime_checkable
class ImageWriter(Protocol):
    """Where a sheet is shown besides its file."""

    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "h w 3"]) -> None: ...


def encoder_of(config: Config) -> TextEncoder | None:
    """The text encoder of a configuration, cut over the devices of this process; None for a label-conditional model.

    Raises:
      ValueError: it makes features of another width than the model takes.
    """
    if config.model.conditioning != "text":
        return None
    devices = jax.local_devices()  # of this process: processes may differ in what they have to encode
    mesh = make_mesh(fsdp=len(devices), devices=devices) if len(devices) > 1 else None
    text = config.text
    encoder = text_encoder(text.encoder, text.max_tokens, mesh=mesh, dtype=text.dtype, see_padding=text.see_padding)
    if encoder.width != config.model.text_width:
        raise ValueError(
            f"model.text_width={config.model.text_width} must be the width {encoder.width} of the text encoder "
            f"{config.text.encoder!r}"
        )
    return encoder


def vae_of(config: Config) -> ImageVae | SoundVae | None:
    """The autoencoder of a configuration on the devices of this process; None for a model of pixels or spectrograms.

    Raises:
      ValueError: its files are missing, or its latents do not fit the model or the size of the pictures.
    """
    if not config.vae.path:
        return None
    patch_pixels(config)
    mesh = make_mesh(devices=jax.local_devices())
    if isinstance(config.data.media, SoundConfig):
        return sound_vae(config.vae.path, mesh, config.vae.dtype)
    return load_image_vae(config.vae.path, dtype=config.vae.dtype, tile=config.vae.tile, mesh=mesh)


def patch_pixels(config: Config, modality: str | None = None) -> tuple[int, int]:
    """Pixels of a patch along height and width, or for a sound 1 and its frames; no weights are read for it.

    Raises:
      ValueError: as for `vae_of`.
    """
    media = config.data_of(modality).media
    is_sound = isinstance(media, SoundConfig)
    if not config.vae.path:
        side = 1 if is_sound else config.model.modality_of(modality).patch_size
        return side, side
    vae = read_sound_vae_config(config.vae.path) if is_sound else read_vae_config(vae_folder(config.vae.path))
    if vae.channels != config.model.channels:
        raise ValueError(
            f"model.channels={config.model.channels} must be the {vae.channels} channels of the latents of "
            f"{config.vae.path!r}"
        )
    if is_sound:
        return 1, vae.factor
    unit = vae.factor * config.model.patch_size
    assert isinstance(media, VisualConfig)
    if media.image_size % unit:
        raise ValueError(
            f"data.image_size={media.image_size} must be a multiple of {unit} pixels: each value of the latent "
            f"stands for {vae.factor}, and model.patch_size={config.model.patch_size}"
        )
    return unit, unit


def new_pipeline(
    config: Config,
    parameters: dict[str, Any] | None,
    encoder: TextEncoder | None,
    vae: ImageVae | SoundVae | None = None,
    mesh: Mesh | None = None,
) -> Pipeline:
    """A pipeline for a model of this configuration; `parameters` may follow later, on the devices of `mesh`."""
    return Pipeline(config, abstract_model(config.model)[0], parameters or {}, encoder, vae, mesh)


def trained_shape(config: Config, modality: str | None = None) -> Shape:
    """The size of the samples of a modality that a configuration trains on; of sounds the greatest."""
    media = config.data_of(modality).media
    if isinstance(media, SoundConfig):
        frames = frames_of(media.seconds, media.sample_rate)
        return Shape(1, whole_frames(frames, patch_pixels(config, modality)[1]) if config.vae.path else frames)
    assert isinstance(media, VisualConfig)
    frames, height, width = media.extent()
    return Shape(height, width, frames)


def shape_for(config: Config, prompt: str, modality: str | None = None) -> Shape:
    """The size of a sample of this prompt: a sound is as long as its text takes to say, if data.seconds_per_phoneme is
    given, and all else as in training. Lengths are rounded, so that few programs are compiled."""
    media = config.data_of(modality).media
    longest = trained_shape(config, modality)
    if not isinstance(media, SoundConfig) or media.seconds_per_phoneme is None:
        return longest
    heard = config.text.max_tokens if config.text.encoder == "phonemes" else None
    seconds = spoken_seconds(prompt, per_phoneme=media.seconds_per_phoneme, pause=media.pause, max_tokens=heard)
    frames = LENGTH_STEP * round(seconds * media.sample_rate / (HOP * LENGTH_STEP))
    return Shape(1, max(LENGTH_STEP, frames))


def check_previews(config: Config) -> None:
    """Raises ValueError unless `run.sample_prompts` can be drawn with the settings in `sample`; nothing is computed."""
    if config.run.sample_prompts:
        shapes = [shape_for(config, prompt) for prompt in config.run.sample_prompts]
        check_request(config, config.sample, config.run.sample_prompts, shapes, patch_pixels(config))


def sheet_writer(
    config: Config,
    encoder: TextEncoder | None,
    writer: ImageWriter | None,
    vae: ImageVae | SoundVae | None = None,
    mesh: Mesh | None = None,
) -> Callable[[int, dict[str, Any]], None]:
    """A function that draws `run.sample_prompts` with given parameters into samples/ of the run's folder.

    All processes of a job draw, since each has a part of the parameters; the one with a writer writes. The
    parameters lie on `mesh` as in training, and its devices share the samples; None: on one device.
    """
    pipeline = new_pipeline(config, None, encoder, vae, mesh)
    prompts, folder = config.run.sample_prompts, run_folder(config) / "samples"
    shape = [shape_for(config, prompt) for prompt in prompts]

    def show(step: int, parameters: dict[str, Any]) -> None:
        pipeline.parameters = parameters
        batch = min(max(SHEET_BATCH, pipeline.least_batch), len(prompts))
        samples = pipeline(prompts, config.sample, seed=config.run.seed, shape=shape, batch=batch)
        if writer is not None:
            sheet = contact_sheet([picture_of(sample) for sample in samples], prompts)
            with written_to(folder, "a sheet", "run.root"):
                save_png(Path(folder) / f"step_{step:07}.png", sheet, {"step": step, "prompts": list(prompts)})
            writer.image(step, "samples", sheet)

    return show


def picture_of(sample: Sample) -> UInt8[np.ndarray, "h w 3"]:
    """A sample on one picture: its frames side by side, or its spectrogram."""
    return spectrogram_picture(sample) if sample.ndim == 2 else frame_sheet(sample)
