"""What a picture, a clip, the views of an object and a sound are: one object for each kind of data.

`modality.py` says what is asked of them, and there is a file for each. In: a configuration. Out: the `Modality` of a
source, which answers for all that depends on the kind of data. A new one is registered with `register`
(docs/add-a-modality.md).
"""

from collections.abc import Callable
from typing import Any

import jax

from lumina_jax.config import (
    AutoencoderConfig,
    ClipConfig,
    Config,
    DataConfig,
    MediaConfig,
    ModelConfig,
    PictureConfig,
    SoundConfig,
    ViewGridConfig,
    ViewsConfig,
)
from lumina_jax.modalities.clip import ClipModality
from lumina_jax.modalities.modality import Asked as Asked
from lumina_jax.modalities.modality import Files as Files
from lumina_jax.modalities.modality import Judge as Judge
from lumina_jax.modalities.modality import Modality as Modality
from lumina_jax.modalities.modality import Shape as Shape
from lumina_jax.modalities.modality import SourceFile as SourceFile
from lumina_jax.modalities.picture import PictureModality
from lumina_jax.modalities.sound_latents import SoundLatents
from lumina_jax.modalities.spectrogram import SpectrogramModality
from lumina_jax.modalities.view_grid import ViewGridModality
from lumina_jax.modalities.views import ViewsModality
from lumina_jax.parallel.mesh import make_mesh


def modality_of_source(
    data: DataConfig, model: ModelConfig, vae: AutoencoderConfig | None = None, *, factor: int | None = None
) -> Modality:
    """The modality of a source.

    Args:
      vae: its autoencoder; None: it has none.
      factor: of an autoencoder whose files are not there; None: they are read.

    Raises:
      ValueError: the files of its autoencoder are missing, or its latents do not fit the model or the samples.
    """
    vae = AutoencoderConfig() if vae is None else vae
    return _kind(data, vae).of_source(data, model, vae, factor)


def modalities_of_sources(config: Config) -> list[Modality]:
    """The modality of each source of the data, a mixture's in order; errors as `modality_of_source`."""
    return [modality_of_source(part, config.model, config.vae_of(part.modality)) for part in config.data.parts]


def modality_of(config: Config, name: str | None = None) -> Modality:
    """A modality of the model, with the settings of its first source; None: the first.

    Raises:
      ValueError: the model has no such modality, no source has it, or as `modality_of_source`.
    """
    return modality_of_source(config.data_of(name), config.model, config.vae_of(name))


def load_autoencoders(config: Config) -> dict[str, Any]:
    """The autoencoder of each modality that has one, by the name of the modality, on the devices of this process.

    Raises:
      ValueError: files are missing or damaged, or latents do not fit the model or the samples.
    """
    found: dict[str, Any] = {}
    for modality in modalities_of_sources(config):
        if modality.vae.path and modality.config.name not in found:
            found[modality.config.name] = modality.load_autoencoder(make_mesh(devices=jax.local_devices()))
    return found


def register(media: type[MediaConfig], make: Callable[[AutoencoderConfig], type[Modality]] | type[Modality]) -> None:
    """Make sources with media of a class have a modality of a class.

    Args:
      make: the class of the modality, or what chooses it by the autoencoder.
    """
    MODALITY_OF_MEDIA[media] = make


def _kind(data: DataConfig, vae: AutoencoderConfig) -> type[Modality]:
    """The class of a source's modality."""
    if type(data.media) not in MODALITY_OF_MEDIA:
        raise ValueError(f"data.media={data.media.kind!r} has no modality; register one with modalities.register")
    made = MODALITY_OF_MEDIA[type(data.media)]
    return made if isinstance(made, type) else made(vae)


def _sounds(vae: AutoencoderConfig) -> type[Modality]:
    return SoundLatents if vae.path else SpectrogramModality


MODALITY_OF_MEDIA: dict[type[MediaConfig], Callable[[AutoencoderConfig], type[Modality]] | type[Modality]] = {
    PictureConfig: PictureModality,
    ClipConfig: ClipModality,
    ViewsConfig: ViewsModality,
    ViewGridConfig: ViewGridModality,
    SoundConfig: _sounds,
}
"""The class of the modality for each class of media."""
