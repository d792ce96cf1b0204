"""The data of a run: the source, the features of its captions, and the latents of its pictures or sounds.

In: a configuration. Out: what `data.batches.Stream` reads. Captions, pictures and sounds are encoded once, and read
from files from then on. In a job of several processes each encodes a part.
"""

import jax
from jax.sharding import Mesh

from lumina_jax.config import Config, DataConfig
from lumina_jax.data.batches import CaptionLookup, row_tokens
from lumina_jax.data.example import Source, captions, contents
from lumina_jax.data.latents import encode_pictures, latent_data
from lumina_jax.data.sound_latents import encode_sounds, sound_latent_data
from lumina_jax.data.sources import open_source
from lumina_jax.encoders.caption_cache import encode_captions
from lumina_jax.encoders.caption_warnings import caption_warnings
from lumina_jax.encoders.image_vae import ImageVae
from lumina_jax.encoders.sound_vae import SoundVae
from lumina_jax.encoders.text import TextEncoder
from lumina_jax.failures import written_to
from lumina_jax.parallel.mesh import check_tokens
from lumina_jax.parallel.multihost import barrier, check_agreement, is_first, say


def opened_source(config: Config) -> Source:
    """The source, which must be the same in all processes."""
    source = open_source(config.data, config.model)
    found = contents(source)
    check_agreement(
        {"the number of samples": found.samples, "the digest of names, captions and labels": found.ordered},
        f"copy the same data to every host ({source!r}), and start all of them again",
    )
    return source


def encoded_source(
    config: Config, source: Source, encoder: TextEncoder | None, vae: ImageVae | SoundVae | None
) -> tuple[Source, CaptionLookup | None]:
    """The source, of latents if there is an autoencoder, and the features of its captions."""
    features = None if encoder is None else caption_features(config, source, encoder)
    source = source if vae is None else latents(config, source, vae)
    barrier("captions and pictures are encoded")
    return source, features


def caption_features(config: Config, source: Source, encoder: TextEncoder) -> CaptionLookup:
    """The features of every caption of the source."""
    say("encoding captions")
    all_captions = captions(source)
    with written_to(config.text.cache, "features of captions", "text.cache"):
        features = encode_captions(all_captions, encoder, config.text.cache)
    for warning in caption_warnings(encoder, all_captions, config.text.max_tokens) if is_first() else ():
        say(warning)
    return features


def counted_in_latents(config: Config, vae: ImageVae | SoundVae | None, mesh: Mesh) -> DataConfig:
    """The settings of the data with sizes in values of the latents, if there is an autoencoder.

    Raises:
      ValueError: the devices of the mesh cannot share a row of so many tokens.
    """
    data = config.data
    if vae is not None:
        data = (sound_latent_data if isinstance(vae, SoundVae) else latent_data)(data, vae.factor)
    check_tokens(row_tokens(data, config.model), mesh)
    return data


def latents(config: Config, source: Source, vae: ImageVae | SoundVae) -> Source:
    """The source with latents instead of pictures or sounds."""
    cache, shard = config.vae.cache, (jax.process_index(), jax.process_count())
    with written_to(cache, "latents", "vae.cache"):
        if isinstance(vae, SoundVae):
            say("encoding sounds")
            return encode_sounds(source, vae, config.data, cache, shard=shard)
        say("encoding pictures")
        return encode_pictures(source, vae, config.data, config.model, cache, shard=shard)
