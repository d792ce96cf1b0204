"""Any media on one picture, for the sheet of a data set for which no model is configured.

In: what a record holds. Out: some of its frames side by side, or its spectrogram.
"""

import numpy as np
from jaxtyping import UInt8

from lumina_jax.config import ClipConfig, SoundConfig
from lumina_jax.mel import log_mel
from lumina_jax.modalities.decoding.frames import read_pictures
from lumina_jax.modalities.decoding.media import Media, Sound
from lumina_jax.modalities.decoding.sounds import read_sound
from lumina_jax.modalities.files.movies import frame_sheet
from lumina_jax.modalities.files.sounds import spectrogram_picture

FRAMES, SECONDS = 6, 60.0
"""The most frames of a clip, and the longest sound."""


def media_preview(media: Media) -> UInt8[np.ndarray, "height width 3"]:
    """Media on one picture, in their size."""
    if isinstance(media, Sound):
        sounds = SoundConfig(seconds=SECONDS)
        return spectrogram_picture(log_mel(read_sound(media, sounds), sounds.sample_rate))
    frames = read_pictures(media, ClipConfig(frames=FRAMES), None)
    return frame_sheet(np.stack([np.asarray(frame) for frame in frames]))
