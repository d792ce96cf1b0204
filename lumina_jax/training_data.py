"""The data of a run: the source, the features of its captions, and the latents of its samples.

In: a configuration. Out: the stream of batches that training reads. Captions and samples are encoded once, and read
from files from then on. In a job of several processes each encodes a part.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from lumina_jax.config import Config
from lumina_jax.data.batches import CaptionLookup, Stream
from lumina_jax.data.example import Source, captions, contents
from lumina_jax.data.latents import encode_sources
from lumina_jax.data.sources import open_source
from lumina_jax.encoders.caption_cache import encode_captions
from lumina_jax.encoders.caption_warnings import caption_warnings
from lumina_jax.encoders.text import TextEncoder
from lumina_jax.failures import written_to
from lumina_jax.modalities import Modality
from lumina_jax.parallel.multihost import barrier, check_agreement, is_first, say
from lumina_jax.training.feed import local_rows


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
    config: Config,
    source: Source,
    encoder: TextEncoder | None,
    modalities: Sequence[Modality],
    autoencoders: Mapping[str, Any],
) -> tuple[Source, CaptionLookup | None]:
    """The source, with latents where there is an autoencoder, and the features of its captions.

    Args:
      modalities: of each source of the data.
      autoencoders: by the name of the modality.
    """
    features = None if encoder is None else caption_features(config, source, encoder)
    source = latents(config, source, modalities, autoencoders) if autoencoders else source
    barrier("captions and samples are encoded")
    return source, features


def encoded_stream(
    config: Config,
    mesh: Mesh,
    source: Source,
    encoder: TextEncoder | None,
    modalities: Sequence[Modality],
    autoencoders: Mapping[str, Any],
) -> Stream:
    """The rows that this process makes of the batches of a run; arguments as for `encoded_source`."""
    source, features = encoded_source(config, source, encoder, modalities, autoencoders)
    return Stream(
        source,
        config.data,
        config.model,
        seed=config.run.seed,
        modalities=modalities,
        features=features,
        rows=local_rows(mesh, config.data.batch_rows),
    )


def caption_features(config: Config, source: Source, encoder: TextEncoder) -> CaptionLookup:
    """The features of every caption of the source."""
    say("encoding captions")
    all_captions = captions(source)
    with written_to(config.text.cache, "features of captions", "text.cache"):
        features = encode_captions(all_captions, encoder, config.text.cache)
    for warning in caption_warnings(encoder, all_captions, config.text.max_tokens) if is_first() else ():
        say(warning)
    return features


def latents(config: Config, source: Source, modalities: Sequence[Modality], autoencoders: Mapping[str, Any]) -> Source:
    """The source with latents for the samples of each modality that has an autoencoder."""
    encoded = [modality.plural for modality in modalities if modality.config.name in autoencoders]
    say(f"encoding {' and '.join(dict.fromkeys(encoded))}")
    with written_to(config.vae.cache, "latents", "vae.cache"):
        shard = (jax.process_index(), jax.process_count())
        return encode_sources(source, modalities, autoencoders, config.vae.cache, shard=shard)
